"""Local edits, strength and attention on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from support.examples import EDIT
from support.pictures import file_pixels


def test_a_large_photo_differs_in_no_pixel_outside_the_mask(here, model, run):
    generator = np.random.default_rng(0)
    photo = generator.integers(0, 256, (800, 1200, 3), dtype=np.uint8)
    Image.fromarray(photo).save("large.png")
    mask = np.zeros((800, 1200), np.uint8)
    mask[300:560, 700:1000] = 255
    mask[400:480, 760:820] = 0
    Image.fromarray(mask).save("mask.png")
    code, out, err = run(
        *("edit", "large.png", *EDIT[2:], "--model", model, "--steps", 3, "--mask", "mask.png"),
        *("--full", "-o", "out.png", "--json"),
    )
    assert code == 0, err
    result = json.loads(out)
    changed = (file_pixels("out.png") != photo).any(axis=-1)
    assert not changed[mask == 0].any()
    assert changed[mask == 255].mean() > 0.5
    assert result["changed_fraction"] == pytest.approx(changed.mean())
    assert result["psnr_outside"] is None  # infinite


def test_a_mask_also_holds_at_the_models_resolution(here, model, run):
    mask = Image.new("L", (48, 48))
    mask.paste(255, (0, 0, 24, 48))
    mask.save("mask.png")
    code, out, err = run(
        *(*EDIT, "--model", model, "--steps", 3, "--method", "ddim", "--mask", "mask.png"),
        *("-o", "out.png", "--save-inversion", "i.safetensors", "--json"),
    )
    assert code == 0, err
    import nulltext

    photo = nulltext.Inversion.load("i.safetensors").photo.permute(1, 2, 0).numpy()
    changed = (file_pixels("out.png") != photo).any(axis=-1)
    assert not changed[:, 16:].any()
    assert changed[:, :12].any()
    assert json.loads(out)["mask_fraction"] == [0.5]


def test_a_mask_of_zeros_and_ones_is_a_mask_and_a_dim_one_is_pointed_out(here, model, run, saved):
    half = np.zeros((48, 48), np.uint8)
    half[:, :24] = 1
    Image.fromarray(half * 255).save("white.png")
    Image.fromarray(half).save("ones.png")
    np.save("bools.npy", half.astype(bool))
    Image.fromarray(np.tile(np.arange(90, dtype=np.uint8), (90, 1))).save("dim.png")
    edit = ("edit", "--inversion", saved, "--target", "a dog", "--model", model)
    for name in ("white.png", "ones.png", "bools.npy"):
        code, out, err = run(*edit, "--mask", name, "-o", f"{name}-out.png", "--json")
        assert code == 0, err
        result = json.loads(out)
        assert result["changed_fraction"] > 0.2
        assert result["unchanged"] == [None]
        assert (file_pixels(f"{name}-out.png") == file_pixels("white.png-out.png")).all()
    code, out, err = run(*edit, "--mask", "dim.png", "-o", "dim-out.png", "--json")
    assert code == 0
    note = "brightest value of the mask 'dim.png' is 89 of 255"
    assert note in " ".join(err.split())
    assert note in json.loads(out)["remarks"][0]


def test_an_edit_that_changed_nothing_says_so_and_why(here, model, run, saved):
    """At strength 0, where the blend is empty, and where the mask lies on the crop's border."""
    edge = np.zeros((48, 64), np.uint8)
    edge[20:24, 8] = 255  # column 0 of the crop, where the edit has faded out
    Image.fromarray(edge).save("edge.png")
    Image.fromarray(np.where(np.arange(64) > 30, 255, 0 * edge).astype(np.uint8)).save("white.png")
    edit = ("edit", "cat.png", "--inversion", saved, "--model", model, "--target", "a dog")
    half = ("--mask", "white.png")
    everywhere = ("--blend", "dog", "--blend-except", "dog", "--blend-threshold", 0)
    cases = [
        (("--strength", 0), "at strength 0", True),
        (("--strength", 0, "--region", "everywhere"), "at strength 0", True),
        (("--strength", 0, "--detail", "model"), "at strength 0", False),
        (("--strength", 0, "--full"), "at strength 0", True),
        (("--strength", 0, "--full", *half, "--detail", "model"), "at strength 0", False),
        (everywhere, "the blend of dog is empty (0 % of the picture)", True),
        (("--mask", "edge.png", "--full"), "fades out towards the crop's border", True),
    ]
    for options, why, same in cases:
        code, out, err = run(*edit, *options, "-o", "out.png", "--json")
        assert code == 0, err
        (said,) = json.loads(out)["unchanged"]
        assert why in said
        assert (json.loads(out)["changed_fraction"] == 0) == same
        what = "changed nothing" if same else "is the reconstruction of the photo"
        assert f'"a dog" {what}: {said}.' in " ".join(err.split())
    for options, same in ((("--full",), True), (("--detail", "model"), False)):
        code, out, _ = run(*edit, "--strength", 0, *options, "-o", "out.png")
        assert ("Changed nothing." in out, "of the pixels" in out) == (same, not same)


def test_a_blend_says_how_much_it_covers(here, model, run, saved):
    edit = ("edit", "--inversion", saved, "--target", "a dog", "--model", model, "--blend", "dog")
    code, _, err = run(*edit, "--blend-threshold", "0", "-o", "all.png")
    assert code == 0, err
    assert "covers all" in err
    code, out, err = run(*edit, "--blend-threshold", "0.9", "-o", "some.png", "--json")
    assert code == 0, err
    assert "The blend of dog" in err or "covers all" in err
    assert 0 <= json.loads(out)["mask_fraction"][0] <= 1


def test_strength_0_is_the_replay_and_a_sweep_is_a_grid(here, model, run, saved):
    assert run("replay", saved, "--model", model, "-o", "replay.png")[0] == 0
    edit = ("edit", "--inversion", saved, "--model", model, "--target", "a dog")
    code, out, err = run(
        *(*edit, "--target", "a red cat", "--strength", "0", "-o", "out.png"),
        *("--sweep", "grid.png", "--json", "--region", "everywhere", "--detail", "model"),
    )
    assert code == 0, err
    assert json.loads(out)["sweep"] == "grid.png"
    for name in ("out-1.png", "out-2.png"):
        # the autoencoder in a batch of another size: a byte at most
        assert np.abs(file_pixels(name).astype(int) - file_pixels("replay.png")).max() <= 1
    with Image.open("grid.png") as grid:
        assert grid.width > 5 * 256
        assert grid.height > 2 * 256


def test_the_exact_source_reaches_the_bound(here, model, run):
    code, out, err = run(
        *("edit", "cat.png", "--source", "a cat", "--target", "a dog", "-o", "o.png"),
        *("--model", model, "--method", "ddim", "--steps", 3, "--source-branch", "exact", "--json"),
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["psnr_reconstruction"] == pytest.approx(result["psnr_bound"], abs=1e-3)
    assert result["psnr_replay"] != result["psnr_reconstruction"]


def test_attention_draws_every_word(here, model, run, saved):
    code, out, err = run(
        *("attention", saved, "--model", model, "-o", "a.png", "--npy", "a.npz", "--json"),
        *("--target", "a red dog", "--every", "2"),
    )
    assert code == 0, err
    result = json.loads(out)
    assert [row["word"] for row in result["words"]] == ["a", "cat", "a", "red", "dog"]
    with Image.open("a.png") as picture:
        assert picture.height > 4 * 256  # two prompts, and steps 1 and 3 of each
    with np.load("a.npz") as arrays:
        assert arrays["words_1"].tolist() == ["a", "red", "dog"]
        assert arrays["heat_1"].shape == (3, 8, 8)
        assert arrays["steps_0"].shape == (2, 3, 8, 8)
    assert run("attention", saved, "--model", model, "-o", "no/such.png")[0] == 2


def test_a_region_is_written_and_its_picture_is_a_mask(here, model, run, saved):
    edit = ("edit", "cat.png", "--inversion", saved, "--model", model, "--full")
    targets = ("--target", "a dog", "--target", "a red cat")
    code, out, err = run(*edit, *targets, "-o", "o.png", "--region-out", "r.png", "--json")
    assert code == 0, err
    assert json.loads(out)["regions"] == ["r-1.png", "r-2.png"]
    assert "Finding where" in err
    photo = file_pixels("cat.png")
    for number in (1, 2):
        region = file_pixels(f"r-{number}.png")
        assert region.shape == photo.shape[:2]
        changed = (file_pixels(f"o-{number}.png") != photo).any(axis=-1)
        assert not changed[region == 0].any()
        assert changed.any()
    code, _, err = run(*edit, "--target", "a dog", "--mask", "r-1.png", "-o", "m.png")
    assert code == 0, err
    inside = file_pixels("r-1.png") > 0
    assert not (file_pixels("m.png") != photo).any(axis=-1)[~inside].any()


def test_a_picture_says_how_its_region_and_hue_came_about(here, model, run, saved):
    edit = ("edit", "--inversion", saved, "--model", model, "-o", "o.png", "--target")
    for options, region, hue in (
        (("a red cat",), "cat", "red"),
        (("a red cat", "--hue", "model"), "cat", None),
        (("a red cat", "--region", "everywhere"), None, None),
        (("a cat", "--weight", "cat=2"), "cat", None),
        (("a dog",), "cat", None),
    ):
        assert run(*edit, *options)[0] == 0
        with Image.open("o.png") as picture:
            settings = json.loads(picture.text["nulltext"])
        assert (settings["region"], settings["hue"]) == (region, hue)


def test_opacity_blends_the_edit_over_the_photo(here, model, run, saved):
    edit = (
        "edit",
        "cat.png",
        "--inversion",
        saved,
        "--model",
        model,
        "--full",
        "--target",
        "a dog",
    )
    for opacity, name in (("1", "whole.png"), ("0.4", "part.png"), ("0", "none.png")):
        code, _, err = run(*edit, "--opacity", opacity, "-o", name)
        assert code == 0, err
    photo, whole = (file_pixels(name).astype(float) for name in ("cat.png", "whole.png"))
    assert (whole != photo).any()
    assert (file_pixels("part.png") == np.rint(photo + 0.4 * (whole - photo))).all()
    assert (file_pixels("none.png") == photo).all()
    with Image.open("part.png") as picture:
        assert json.loads(picture.text["nulltext"])["opacity"] == 0.4
    code, _, err = run(*edit, "--opacity", "1.5", "-o", "more.png")
    assert (code, "--opacity is 1.5" in err) == (2, True)

"""`nulltext invert` of several photos: as one by one, and all or nothing at the start."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import nulltext


@pytest.fixture
def here(tmp_path, monkeypatch, photo):
    """A folder with three photos, one of other proportions, and a folder for inversions."""
    monkeypatch.chdir(tmp_path)
    photo.save("cat.png")
    photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("dog.png")
    photo.crop((0, 0, 48, 48)).save("cow.png")
    (tmp_path / "out").mkdir()
    return tmp_path


PHOTOS = ("cat.png", "cow.png", "dog.png")
SHORT = ("--budget", "paper", "--steps", 3, "--inner-steps", 2, "--size", "photo")


def test_the_pivot_of_a_method_is_said_or_its_default(here, model, run):
    asked = {
        "default": (),
        "paper": ("--budget", "paper", "--inner-steps", 1),
        "moved": ("--budget", "paper", "--inner-steps", 1, "--pivot", "fixed-point"),
    }
    line = ("invert", "cat.png", "--prompt", "a cat", "--steps", 2, "--model", model)
    for name, more in asked.items():
        code, _, err = run(*line, *more, "-o", f"{name}.safetensors")
        assert code == 0, err
    made = [nulltext.Inversion.load(f"{name}.safetensors").header for name in asked]
    assert [header.method for header in made] == ["fixed-point", "null-text", "null-text"]
    assert [header.method_config.get("pivot") for header in made] == [None, "ddim", "fixed-point"]


def test_several_photos_are_inverted_as_one_by_one(here, model, run):
    prompts = [f"a {name[:3]}" for name in PHOTOS]
    each = [word for prompt in prompts for word in ("--prompt", prompt)]
    code, out, err = run(
        *("invert", *PHOTOS, *each, *SHORT, "--model", model),
        *("-o", "out", "--json"),
    )
    assert code == 0, err
    assert "Photos 1 to 3 of 3: cat.png, cow.png, dog.png" in err
    results = json.loads(out)
    assert [row["file"] for row in results] == [f"out/{name[:3]}.safetensors" for name in PHOTOS]
    for name, prompt, row in zip(PHOTOS, prompts, results, strict=True):
        together = nulltext.Inversion.load(row["file"])
        code, alone_out, err = run(
            "invert", name, "--prompt", prompt, *SHORT, "--model", model, "--json"
        )
        assert code == 0, err
        alone = nulltext.Inversion.load(name.replace("png", "safetensors"))
        figures = json.loads(alone_out)
        assert set(figures) == set(row)
        assert figures["unet_evaluations"] == row["unet_evaluations"]
        assert together.header.prompt == prompt
        assert together.header.image_sha256 == alone.header.image_sha256
        # float32, 3 timesteps of 2 Adam steps, whose direction magnifies rounding
        torch.testing.assert_close(together.trajectory, alone.trajectory, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.null_embeds, alone.null_embeds, atol=2e-3, rtol=0)


def test_one_prompt_serves_all_and_names_come_from_the_photos(here, model, run):
    code, _, err = run(
        *("invert", *PHOTOS, "--prompt", "a cat", "--method", "ddim", "--steps", 2),
        *("--model", model, "-o", here),
    )
    assert code == 0, err
    for count, name in enumerate(PHOTOS):
        assert f"Photo {count + 1} of 3: {name}" in err
        inversion = nulltext.Inversion.load(here / name.replace("png", "safetensors"))
        assert inversion.header.prompt == "a cat"


def make_bad_files(folder):
    (folder / "half.png").write_bytes((folder / "cat.png").read_bytes()[:200])
    (folder / "sub").mkdir()
    (folder / "sub" / "cat.png").write_bytes((folder / "cat.png").read_bytes())


ONE = ("--prompt", "a cat")
REFUSED = {
    "one photo is damaged": ((*PHOTOS[:2], "half.png", *ONE), "half.png"),
    "one photo is missing": ((*PHOTOS, "gone.png", *ONE), "gone.png"),
    "the crop fits not all": ((*PHOTOS, *ONE, "--crop", "10,0,48"), "'cow.png'"),
    "prompts for some": ((*PHOTOS, *ONE, *ONE), "3 photos and 2 --prompt"),
    "one prompt is empty": ((*PHOTOS[:2], *ONE, "--prompt", " "), "empty"),
    "two of one name": (("cat.png", "sub/cat.png", *ONE), "'sub/cat.png' would both"),
    "several into a file": ((*PHOTOS, *ONE, "-o", "all.safetensors"), "no folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_with_one_is_said_before_any_work(case, here, model, run):
    make_bad_files(here)
    arguments, words = REFUSED[case]
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    code, out, err = run("invert", *arguments, "--model", model, "--steps", 2)
    assert code == 2, err
    assert out == ""
    assert words in err
    assert err.startswith("Error: ")
    assert len(err.strip().splitlines()) == 1, err
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_photos_side_by_side_in_a_batch_are_one_or_more(here, model, run):
    job = '{"image": "cat.png", "source": "a cat", "target": "a dog", "steps": 2}'
    (here / "jobs.jsonl").write_text(job)
    line = ("batch", "jobs.jsonl", "-o", "edited", "--model", model, "--batch-size")
    code, out, err = run(*line, 0)
    assert (code, out) == (2, "")
    assert "--batch-size" in err
    assert not (here / "edited").exists()
    assert run(*line, 2)[0] == 0

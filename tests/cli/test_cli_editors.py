"""Editors, chains and sweeps on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import nulltext
from nulltext.errors import OptionError
from nulltext.image.images import to_pil
from nulltext.jobs.edits import parse_axis
from support.pictures import file_pixels


def picture_of(path):
    """A picture and the settings in it."""
    with Image.open(path) as picture:
        return np.asarray(picture), json.loads(picture.text["nulltext"])


def test_a_chain_writes_one_picture_per_link(here, model, run, saved):
    code, out, err = run(
        *("edit", "--inversion", saved, "--model", model, "--target", "a red cat"),
        *("--then", "a red dog", "--then", "a red dog on a sofa", "-o", "o.png", "--json"),
        *(
            "--strip",
            "s.png",
            "--weight",
            "red=2",
            "--sweep",
            "g.png",
            "--region",
            "everywhere",
            "--detail",
            "model",
        ),
    )
    assert code == 0, err
    assert json.loads(out)["outputs"] == ["o-1.png", "o-2.png", "o-3.png"]
    last, settings = picture_of("o-3.png")
    assert settings["after"] == ["a red cat", "a red dog"]
    assert settings["weights"] == {"red": 2.0}
    loaded, inversion = nulltext.load(model), nulltext.Inversion.load(saved)
    first = nulltext.EditSpec("a red cat", weights={"red": 2.0})
    line = nulltext.chain(first, "a red dog", "a red dog on a sofa")
    expected = np.asarray(to_pil(nulltext.edit(loaded, inversion, line).images[2]))
    # beside a sweep's rows, in batches of other sizes: a byte or two
    assert np.abs(last.astype(int) - expected).max() <= 3


def test_links_may_be_held_more_than_the_first(here, model, run, saved):
    code, _, err = run(
        *("edit", "--inversion", saved, "--model", model, "--target", "a red dog"),
        *("--then", "a red dog on a sofa", "--strength", "1", "--then-strength", "0"),
        *("-o", "o.png", "--region", "everywhere", "--detail", "model"),
    )
    assert code == 0, err
    (first, free), (second, held) = picture_of("o-1.png"), picture_of("o-2.png")
    assert np.array_equal(first, second)
    assert (free["cross_steps"], held["cross_steps"]) == (0.0, 1.0)
    assert (free["pull"], held["pull"]) == ("0.0", "inf")


def test_masactrl_with_its_options(here, model, run, saved):
    edit = ("edit", "--inversion", saved, "--model", model, "--target", "a cat on a sofa")
    code, _, err = run(
        *(*edit, "--editor", "masactrl", "--masa-start", "0", "--masa-layer", "0.5"),
        *("--masa-word", "cat", "--target-guidance", "3", "-o", "m.png"),
        *("--region", "everywhere", "--detail", "model"),
    )
    assert code == 0, err
    made, settings = picture_of("m.png")
    given = {name: settings[name] for name in ("editor", "start", "start_layer", "foreground")}
    assert given == {
        "editor": "masactrl",
        "start": 0.0,
        "start_layer": 0.5,
        "foreground": ["cat"],
    }
    assert settings["target_guidance"] == 3.0
    loaded, inversion = nulltext.load(model), nulltext.Inversion.load(saved)
    spec = nulltext.EditSpec(
        "a cat on a sofa", editor=nulltext.MasaCtrl(0.0, 0.5, ("cat",)), guidance_scale=3.0
    )
    expected = np.asarray(to_pil(nulltext.edit(loaded, inversion, spec).images[0]))
    assert np.abs(made.astype(int) - expected).max() <= 1


def test_a_sweep_over_two_knobs_shows_each_pair(here, model, run, saved, monkeypatch):
    from nulltext.jobs import pictures

    drawn = []
    plain = pictures.labelled_grid
    monkeypatch.setattr(
        pictures, "labelled_grid", lambda blocks: drawn.append(blocks) or plain(blocks)
    )
    code, _, err = run(
        *("edit", "--inversion", saved, "--model", model, "--target", "a dog", "-o", "o.png"),
        *("--sweep", "g.png", "--over", "strength=0:1:3", "--over", "target-guidance=1,4"),
        *("--region", "everywhere", "--detail", "model"),
    )
    assert code == 0, err
    [[block]] = drawn
    assert block.title == "a dog"
    assert list(block.columns) == ["strength 0", "strength 0.5", "strength 1"]
    assert list(block.rows) == ["target-guidance 1", "target-guidance 4"]
    loaded, inversion = nulltext.load(model), nulltext.Inversion.load(saved)
    for row, scale in enumerate((1.0, 4.0)):
        for column, strength in enumerate((0.0, 0.5, 1.0)):
            spec = nulltext.EditSpec("a dog", guidance_scale=scale).at_strength(strength)
            expected = to_pil(nulltext.edit(loaded, inversion, spec).images[0])
            shown = np.asarray(block.images[row][column]).astype(int)
            # batches of other sizes: a byte or two
            assert np.abs(shown - np.asarray(expected)).max() <= 3
    with Image.open("g.png") as grid:
        assert grid.width > 3 * 256
        assert grid.height > 2 * 256


def test_values_are_spread_or_listed():
    assert parse_axis("strength=0:1:5").values == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert parse_axis("target-guidance=3,7.5, 12").values == (3.0, 7.5, 12.0)
    assert parse_axis("masa-start=0:0.2:2").labels == ["masa-start 0", "masa-start 0.2"]
    for wrong in (
        "cross=",
        "cross=0:1",
        "cross=0:1:1",
        "cross=0:1:x",
        "cross=0;1",
        "cross=0:1:999",
    ):
        with pytest.raises(OptionError, match="no values that can be read"):
            parse_axis(wrong)


MASA = ("--editor", "masactrl")
SWEEP = ("--sweep", "g.png", "--over")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((*MASA, "--cross-steps", "0"), "--cross-steps belongs to --editor prompt-to-prompt"),
        ((*MASA, "--weight", "dog=2"), "--weight belongs to --editor prompt-to-prompt"),
        (("--masa-start", "0.1"), "--masa-start belongs to --editor masactrl"),
        (("--masa-word", "dog"), "--masa-word belongs to --editor masactrl"),
        ((*MASA, "--masa-start", "0.1", "--strength", "1"), "--strength sets --masa-start, too"),
        ((*MASA, "--masa-start", "2"), "start is 2"),
        ((*MASA, "--masa-layer", "1"), "No self-attention layer"),
        ((*MASA, "--masa-word", "tabby"), "'tabby' is not a word"),
        (("--target-guidance", "-1"), "guidance is -1"),
        (("--target", "a sofa", "--then", "a dog"), "--then goes on from one --target"),
        (("--then", "a dog"), "same as the source"),
        (
            ("--then", "a sofa", "--then-strength", "3"),
            "--then-strength is 3; choose a number from 0 to 1",
        ),
        (("--then-strength", "0.5"), "--then adds"),
        (("--over", "strength=0:1:5"), "add --sweep"),
        ((*SWEEP, "size=1,2"), "names no knob"),
        ((*SWEEP, "strength=0:1"), "no values that can be read"),
        ((*SWEEP, "strength=0,2"), "--strength is 2; choose"),
        ((*SWEEP, "cross=0,1.5"), "--cross-steps is 1.5; choose"),
        (("--cross-steps", "0.2", "--sweep", "g.png"), "which --cross-steps sets as well"),
        (
            ("--then", "a sofa", "--then-strength", "0.3", *SWEEP, "cross=0,1"),
            "which --then-strength sets as well",
        ),
        ((*SWEEP, "masa-start=0,1"), "knob of another --editor"),
        ((*MASA, *SWEEP, "cross=0,1"), "knob of another --editor"),
        ((*SWEEP, "cross=0,1", "--over", "strength=0,1"), "strength turns cross, too"),
        ((*SWEEP, "cross=0,1", "--over", "cross=0.5"), "occurs twice"),
        ((*SWEEP, "cross=0:1:9", "--over", "self=0:1:9"), "81 pictures"),
        ((*SWEEP, "cross=0", "--over", "self=0", "--over", "strength=0"), "two sides"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(here, model, run, saved, options, words):
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    code, out, err = run(
        *("edit", "--inversion", saved, "--model", model, "--target", "a dog", *options)
    )
    assert code == 2, err
    assert out == ""
    assert words in err
    assert len(err.strip().splitlines()) == 1, err
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_the_sources_luminance_comes_back_without_its_colour(here, model, run):
    y, x = np.mgrid[0:96, 0:96]
    fine = 40 * ((x + y) % 2)  # too fine for the model: 32 px
    photo = np.stack([160 + fine, 90 + fine // 2, 60 + 0 * fine], axis=-1).astype(np.uint8)
    Image.fromarray(photo).save("fine.png")
    chroma = {}
    for detail in ("model", "photo", "luminance"):
        code, _, err = run(
            *("edit", "fine.png", "--source", "a cat", "--target", "a dog", "--model", model),
            *("--method", "ddim", "--steps", 2, "--full", "--detail", detail, "-o", "o.png"),
            *("--region", "everywhere"),
        )
        assert code == 0, err
        made = file_pixels("o.png").astype(float)
        centre = made[24:72, 24:72] if made.shape[0] == 96 else made
        step = centre[:, 1:] - centre[:, :-1]
        luma = np.abs(step @ [0.299, 0.587, 0.114]).mean()
        chroma[detail] = (luma, np.abs(step[..., 0] - step[..., 2]).mean())
    assert chroma["luminance"][0] == pytest.approx(chroma["photo"][0], rel=0.15)
    assert chroma["luminance"][0] > 2 * chroma["model"][0]
    coloured, plain = (chroma[name][1] - chroma["model"][1] for name in ("photo", "luminance"))
    assert plain < 0.1 * coloured  # beyond what the model draws itself

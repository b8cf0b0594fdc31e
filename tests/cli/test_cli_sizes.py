"""Sizes and families on the command line: non-square photos, and an SDXL folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import nulltext
from support.examples import EDIT
from support.pictures import file_pixels
from support.tiny import tiny_pipeline

FAST = ("--steps", 2, "--method", "ddim")


def mask_of(size, box):
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save("mask.png")
    return np.asarray(mask)


def test_the_whole_photo_in_its_own_proportions_keeps_its_bytes_outside_the_mask(here, model, run):
    mask = mask_of((64, 48), (30, 10, 60, 40))
    code, out, err = run(
        *(*EDIT, "--model", model, *FAST, "--size", "photo", "--mask", "mask.png", "--full"),
        *("-o", "out.png", "--save-inversion", "i.safetensors", "--json"),
    )
    assert code == 0, err
    changed = (file_pixels("out.png") != file_pixels("cat.png")).any(axis=-1)
    assert not changed[mask == 0].any()
    assert changed[mask == 255].any()
    assert json.loads(out)["psnr_outside"] is None
    header = nulltext.Inversion.load("i.safetensors").header
    assert header.crop == [0, 0, 64, 48]
    code, out, err = run("inspect", "i.safetensors", "--json")
    assert json.loads(out)["size"] == [36, 28]
    code, _, err = run(
        *("edit", "cat.png", "--inversion", "i.safetensors", "--target", "a dog"),
        *("--model", model, "--mask", "mask.png", "--full", "-o", "again.png"),
    )
    assert code == 0, err
    assert (file_pixels("again.png") == file_pixels("out.png")).all()


def test_a_crop_of_the_sizes_proportions_is_put_around_the_mask(here, model, run):
    generator = np.random.default_rng(0)
    photo = generator.integers(0, 256, (800, 1200, 3), dtype=np.uint8)
    Image.fromarray(photo).save("large.png")
    mask = mask_of((1200, 800), (700, 500, 900, 600))
    code, _, err = run(
        *("edit", "large.png", *EDIT[2:], "--model", model, *FAST, "--size", "48x24"),
        *("--mask", "mask.png", "--full", "-o", "out.png", "--save-inversion", "i.safetensors"),
    )
    assert code == 0, err
    inversion = nulltext.Inversion.load("i.safetensors")
    x, y, width, height = inversion.header.crop
    assert width == 2 * height == 512
    assert x <= 700
    assert y <= 500
    assert x + width >= 900
    assert y + height >= 600
    assert inversion.photo.shape == (3, 24, 48)
    changed = (file_pixels("out.png") != photo).any(axis=-1)
    assert not changed[mask == 0].any()
    assert changed.any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "big"), "WIDTHxHEIGHT"),
        (("--size", "38x32"), "--size 36x32"),
        (("--size", "48x24", "--crop", "0,0,40"), "--crop 0,10,40,20"),
        (("--size", "8192x8192"), "made for"),
        (("--size", "photo", "--crop", "0,0,64,8"), "longer than 4 to 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(here, model, run, arguments, words):
    code, _, err = run(*EDIT, "--model", model, *FAST, *arguments)
    assert code == 2
    assert words in err
    assert [path.name for path in here.iterdir()] == ["cat.png"]


def test_a_saved_inversion_settles_the_size(here, model, run, saved):
    edit = ("edit", "--inversion", saved, "--target", "a dog", "--model", model)
    code, _, err = run(*edit, "--size", "photo")
    assert code == 2
    assert "--size is settled" in err


def test_every_verb_works_with_an_sdxl_folder(here, run):
    tiny_pipeline("sdxl").save_pretrained(here / "sdxl")
    model = ("--model", here / "sdxl")
    code, out, err = run(
        *("invert", "cat.png", "--prompt", "a cat", *model, "--budget", "fast", "--steps", 2),
        *("--size", "48x32", "-o", "i.safetensors", "--json"),
    )
    assert code == 0, err
    assert json.loads(out)["method"] == "fixed-point"
    edit = ("edit", "--inversion", "i.safetensors", "--target", "a dog")
    for arguments in (
        (*edit, "--blend", "dog", "-o", "edit.png"),
        ("replay", "i.safetensors", "-o", "replay.png"),
        ("attention", "i.safetensors", "-o", "attention.png"),
    ):
        code, _, err = run(*arguments, *model)
        assert code == 0, err
        assert (here / arguments[-1]).is_file()
    assert file_pixels("edit.png").shape == (32, 48, 3)
    (here / "other").mkdir()
    tiny_pipeline("sdxl", seed=1).save_pretrained(here / "other")
    code, _, err = run(*edit, "--model", here / "other")
    assert code == 2
    assert "other weights" in err

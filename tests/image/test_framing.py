"""Sizes: what they may be, which part of the photo they show, and that they run to the end."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nulltext
from nulltext.attention.blend import LocalBlend
from nulltext.attention.processor import attach
from nulltext.attention.prompt_to_prompt import largest_self_site
from nulltext.editing.heatmaps import heat_map_steps
from nulltext.errors import InversionFileError, OptionError
from nulltext.image.images import (
    SDXL_BUCKETS,
    CropBox,
    Sizes,
    default_crop,
    largest_centred,
    parse_size,
)

SD15 = Sizes((512, 512), 8)
SDXL = Sizes(
    (1024, 1024),
    8,
    tuple({(64 * a, 64 * b) for p in SDXL_BUCKETS for a, b in (p, p[::-1])}),
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("768x512", (768, 512)), (" 640 X 448", (640, 448)), ("8×16", (8, 16)), ("Photo", "photo")],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "768", "0x512", "a x b", "-8x8", "8.5x8", "8x8x8", "foto"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(OptionError, match="WIDTHxHEIGHT"):
        parse_size(text)


@given(st.integers(64, 6000), st.integers(64, 6000))
def test_the_photos_own_size_has_its_proportions_and_the_models_pixels(width, height):
    box = CropBox(0, 0, width, height)
    if not 1 / 4 <= width / height <= 4:
        with pytest.raises(OptionError, match="--crop"):
            SD15.of(box, "photo")
        return
    got_height, got_width = SD15.of(box, "photo")
    assert got_height % 8 == got_width % 8 == 0
    # each side is rounded to a multiple of 8, the shorter one being 256 or more
    assert math.isclose(got_width / got_height, width / height, rel_tol=0.04)
    assert math.isclose(got_width * got_height, 512 * 512, rel_tol=0.04)


def test_sdxl_takes_the_nearest_bucket():
    assert SDXL.of(CropBox(0, 0, 1200, 800), "photo") == (832, 1216)
    assert SDXL.of(CropBox(0, 0, 800, 1200), "photo") == (1216, 832)
    assert SDXL.of(CropBox(0, 0, 4000, 1000), "photo") == (512, 2048)
    assert SDXL.of(CropBox(0, 0, 999, 1000), None) == (1024, 1024)
    assert len(SDXL.buckets) == 2 * len(SDXL_BUCKETS) - 1  # the square is its own mirror image
    for width, height in SDXL.buckets:
        assert 0.9 < width * height / 1024**2 <= 1.0625


def test_buckets_are_there_where_they_are_whole(tiny_sdxl, tiny_sd1):
    assert tiny_sdxl.buckets == SDXL_BUCKETS
    assert tiny_sd1.buckets == ()
    assert tiny_sdxl.sizes.buckets == (), "2 px are no multiple of the stride of 4"
    assert tiny_sdxl.sizes.of(CropBox(0, 0, 60, 40), "photo") == (28, 40)


@pytest.mark.parametrize(
    ("box", "choice", "words"),
    [
        ((0, 0, 300, 200), (300, 200), "multiples of 8.*--size 296x200"),
        ((0, 0, 300, 200), (512, 512), r"--crop 50,0,200,200"),
        ((10, 20, 200, 200), (768, 512), r"--crop 10,53,200,133"),
        ((0, 0, 300, 200), (24, 16), "from 128 to 4096"),
        ((0, 0, 300, 200), (9600, 6400), "from 128 to 4096"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_what_does(box, choice, words):
    with pytest.raises(OptionError, match=words):
        SD15.of(CropBox(*box), choice)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 40), st.integers(1, 40))
def test_the_centred_box_fits_touches_and_has_the_proportions(width, height, across, down):
    box = largest_centred(width, height, (across, down))
    box.check_inside((width, height))
    assert box.width == width or box.height == height
    exact = box.width * down - box.height * across
    assert abs(exact) <= max(across, down), "a pixel of rounding at most"
    assert abs((width - box.width) - 2 * box.x) <= 1


def test_default_boxes():
    assert default_crop((60, 40), None) == CropBox(10, 0, 40, 40)
    assert default_crop((60, 40), "photo") == CropBox(0, 0, 60, 40)
    assert default_crop((60, 40), (768, 256)) == CropBox(0, 10, 60, 20)


def test_self_attention_is_injected_at_the_same_sites_of_odd_latents():
    assert largest_self_site(64, 64) == 16 * 16
    assert largest_self_site(65, 97) == 17 * 25
    assert largest_self_site(8, 8) == 16 * 16


@torch.no_grad()
@pytest.mark.parametrize("size", [(9, 13), (5, 8), (7, 7)])
def test_odd_latents_go_through_the_unet_and_their_sites_are_read(tiny, size):
    seen = set()

    class Probe:
        guided = False

        def action(self, site):
            seen.add((site.height, site.width))
            return "observe"

        def observe(self, layer, site):
            assert layer.hidden_states.shape[1] == site.height * site.width

        def reads(self, site):
            return True

        def read(self, own, site, heads):
            assert own.shape[-2] == site.height * site.width

    latents = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0))
    with attach(tiny.unet, Probe()):
        noise = tiny.predict(latents, tiny.schedule.level(500), tiny.embed(["a cat"]))
    assert noise.shape == latents.shape
    halves = tuple(math.ceil(side / 2) for side in size)
    assert halves in seen
    assert seen <= {size, halves}


@pytest.mark.parametrize("size", [(52, 36), (24, 40), "photo"])
def test_non_square_photos_are_inverted_replayed_and_edited(tiny, photo, size):
    """48 x 64 px photos at sides that are no multiples of what the UNet halves."""
    method = nulltext.inversion.NullText(inner_steps=1)
    inversion = nulltext.invert(tiny, photo, "a white cat", method=method, num_steps=2, size=size)
    height, width = inversion.photo.shape[1:]
    stride = tiny.vae_stride
    if size == "photo":
        assert inversion.header.crop == [0, 0, 64, 48]
        assert width > height
    else:
        assert (width, height) == size
    assert inversion.trajectory.shape[-2:] == (height // stride, width // stride)
    spec = nulltext.EditSpec("a white dog", blend=LocalBlend(("dog",), start=0.0, threshold=0.5))
    edit = nulltext.edit(tiny, inversion, ["a black cat", spec])
    assert edit.images.shape == (2, 3, height, width)
    assert torch.equal(edit.reconstruction, nulltext.replay(tiny, inversion).image)
    assert edit.masks.shape[1:] == inversion.trajectory.shape[-2:]
    (maps,) = nulltext.diffusion.run(heat_map_steps(tiny, inversion))
    rows, columns = maps.words[0].heat.shape
    assert (columns > rows) == (width > height)


def test_a_mask_holds_the_rest_of_a_non_square_photo(tiny_sd1, photo):
    inversion = nulltext.invert(tiny_sd1, photo, "a cat", method="ddim", num_steps=3, size=(48, 36))
    mask = torch.zeros(36, 48)
    mask[12:24, 28:44] = 1
    edit = nulltext.edit(tiny_sd1, inversion, nulltext.EditSpec("a dog", mask=mask))
    assert edit.masks.shape == (1, 9, 12)
    expected = torch.zeros(9, 12)
    expected[3:6, 7:11] = 1
    assert torch.equal(edit.masks[0], expected)


def test_a_crop_that_is_not_square_keeps_its_proportions(tiny_sd1, photo):
    inversion = nulltext.invert(
        tiny_sd1, photo, "a cat", method="ddim", num_steps=1, crop=CropBox(2, 3, 60, 30)
    )
    assert inversion.photo.shape == (3, 24, 44)
    assert inversion.header.crop == [2, 3, 60, 30]


def test_tensors_of_another_size_than_the_photo_are_refused(tiny_sd1, photo):
    inversion = nulltext.invert(tiny_sd1, photo, "a cat", method="ddim", num_steps=1)
    from dataclasses import replace

    with pytest.raises(InversionFileError, match="does not fit"):
        nulltext.replay(tiny_sd1, replace(inversion, photo=inversion.photo[:, :24]))


def test_a_size_may_be_written_as_on_the_command_line(tiny_sd1, photo):
    made = nulltext.invert(tiny_sd1, photo, "a cat", method="ddim", num_steps=1, size="48x36")
    assert tuple(made.photo.shape[1:]) == (36, 48)
    with pytest.raises(OptionError, match="WIDTHxHEIGHT"):
        nulltext.invert(tiny_sd1, photo, "a cat", method="ddim", num_steps=1, size="large")


def test_a_crop_that_is_no_box_is_refused(tiny_sd1, photo):
    with pytest.raises(OptionError, match=r"is no nulltext\.CropBox"):
        nulltext.invert(tiny_sd1, photo, "a cat", crop=(0, 0, 8, 8))


def test_a_method_that_is_a_class_is_refused_by_name(tiny_sd1, photo):
    with pytest.raises(OptionError, match=r"is the class DDIM; pass an instance, DDIM\(\)"):
        nulltext.invert(tiny_sd1, photo, "a cat", method=nulltext.inversion.DDIM)

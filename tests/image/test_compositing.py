"""Compositing: exact outside, exact without an edit, and the formula in between."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d, pad

from nulltext.diffusion.loops import run
from nulltext.editing.loop import Edit
from nulltext.editing.placing import Canvas, place_steps
from nulltext.editing.spec import EditSpec
from nulltext.image.bands import finish
from nulltext.image.compositing import (
    Weight,
    blend_bands,
    box_bands,
    compare_bands,
    composite,
    cut_sides,
    dilate,
    fade_bands,
    fit_detail,
    original_picture,
    otsu,
)
from nulltext.image.images import CropBox
from nulltext.image.photos import Photo
from nulltext.image.saving import Picture
from nulltext.jobs.pictures import remarks_on
from support.pictures import composited, noise, pixels


@pytest.fixture
def canvas():
    """A noisy photo, and a crop inside it."""
    return Photo(Image.fromarray(noise(80, 120, 3))), CropBox(30, 10, 64, 64)


@pytest.fixture
def pair():
    """A reconstruction, and an edit that paints a square of it."""
    reconstruction = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(3)) - 0.5
    edit = reconstruction.clone()
    edit[:, 10:20, 12:22] += 0.7
    return edit, reconstruction


@pytest.mark.parametrize(
    ("columns", "level", "why"),
    [
        (slice(0, 2), 1.0, "fades out towards the crop's border"),
        (slice(200, 220), 1.0, "draws the same pixels"),
        (slice(200, 220), 0.05, "draws the same pixels"),
    ],
)
def test_why_an_edit_does_not_show_is_told_by_where_it_may(columns, level, why):
    box = CropBox(40, 12, 416, 416)
    canvas = Canvas(Photo(Image.fromarray(noise(440, 500, 3))), box, full=True)
    mask = torch.zeros(416, 416)
    mask[100:300, columns] = level
    reconstruction = torch.zeros(1, 3, 416, 416)
    images = reconstruction.clone()
    images[..., :100] += 8 / 255  # four levels, of which a 26th shows in the second column
    edit = Edit(images, reconstruction, 30.0, 1, torch.ones(1, 52, 52), (None,))
    placed = run(place_steps(canvas, edit, 0, EditSpec("a dog", mask=mask), "photo"))
    assert placed.changed_fraction == 0
    assert why in placed.unchanged
    assert placed.nothing == f"changed nothing: {placed.unchanged}."


@pytest.mark.parametrize("detail", ["auto", "photo", "model"])
def test_pixels_of_weight_zero_keep_their_bytes(canvas, pair, detail):
    photo, box = canvas
    weight = torch.zeros(64, 64)
    weight[20:40, 20:40] = 0.7
    after = composite(photo, box, *pair, weight, detail)
    same = (pixels(photo.image) == pixels(after)).all(axis=-1)
    outside = np.ones((80, 120), dtype=bool)
    outside[30:50, 50:70] = False
    assert same[outside].all()
    assert not same[~outside].all()
    found = finish(compare_bands(original_picture(photo), Picture(after), weight == 0, box))
    assert (found.psnr_outside, found.largest_outside) == (math.inf, 0)
    assert found.changed_fraction == pytest.approx(400 / 9600, rel=0.1)


@pytest.mark.parametrize("detail", ["auto", "photo"])
def test_an_edit_that_is_the_reconstruction_gives_the_photo_back(canvas, pair, detail):
    photo, box = canvas
    _, same = pair
    after = composite(photo, box, same, same, torch.ones(64, 64), detail)
    assert (pixels(after) == pixels(photo.image)).all()


def test_without_detail_the_pixels_are_the_models(canvas, pair):
    photo, box = canvas
    flat = torch.full((3, 32, 32), 0.2)
    after = composite(photo, box, flat, pair[1], torch.ones(64, 64), "model")
    inside = pixels(after)[10:74, 30:94]
    assert (inside == round(1.2 * 127.5)).all()


def test_with_the_photos_detail_a_shift_in_colour_is_a_shift_of_the_photo(pair):
    grey = Photo(Image.fromarray(np.full((64, 64, 3), 100, np.uint8) + noise(64, 64, 3) // 8))
    _, reconstruction = pair
    box = CropBox(0, 0, 64, 64)
    shifted = reconstruction + torch.tensor([0.2, 0.0, -0.1])[:, None, None]
    after = composite(grey, box, shifted, reconstruction, torch.ones(64, 64), "photo")
    change = (pixels(after) - pixels(grey.image)).reshape(-1, 3)
    expected = np.array([0.2, 0.0, -0.1]) * 127.5
    assert np.abs(change - expected).max() <= 1  # rounding to bytes


def test_alpha_comes_back_untouched(pair):
    alpha = Image.fromarray(noise(64, 64))
    colours = Image.fromarray(noise(64, 64, 3, seed=1))
    photo = Photo(colours, alpha, straight=colours)
    after = composite(photo, CropBox(0, 0, 64, 64), *pair, torch.ones(64, 64))
    assert after.mode == "RGBA"
    assert (pixels(after.getchannel("A")) == pixels(alpha)).all()


def test_a_persons_mask_fades_inside_its_borders_only():
    mask = torch.zeros(200, 200)
    mask[50:150, 60:140] = 1
    mask[100:150, 100:140] = 0  # a concave corner
    faded = finish(fade_bands(mask))
    assert bool((faded[mask == 0] == 0).all())
    assert float(faded[75, 80]) == 1
    assert 0 < float(faded[52, 80]) < 1
    stroke = torch.zeros(200, 200)
    stroke[100, 20:180] = 1
    assert float(finish(fade_bands(stroke))[100, 100]) == 1
    grey = torch.zeros(200, 200)
    grey[:, 20:90], grey[:, 110:180] = 1.0, 0.3
    faded = finish(fade_bands(grey))
    assert float(faded[100, 50]) == 1
    assert float(faded[100, 150]) == pytest.approx(0.3)
    assert bool((faded <= grey).all())


def test_a_derived_mask_grows_and_fades_outwards():
    mask = torch.zeros(96, 96)
    mask[40:50, 40:50] = 1
    wide = dilate(mask)
    assert bool((wide >= mask).all())
    assert float(wide[36, 45]) > 0
    assert float(wide[20, 45]) == 0


def test_weights_fade_to_zero_at_inner_crop_borders_alone():
    weight = Weight([torch.ones(8, 8)], CropBox(0, 20, 40, 40), (100, 60)).rows(slice(0, 40))
    assert float(weight[0].max()) == 0  # photo above
    assert float(weight[:, -1].max()) == 0  # photo to the right
    assert float(weight[-1, 0]) == 1  # the photo's own corner
    assert weight.shape == (40, 40)


def test_running_sums_are_the_box_mean():
    x = torch.rand(31, 47, generator=torch.Generator().manual_seed(0))
    expected = avg_pool2d(pad(x[None, None], [5] * 4, mode="replicate"), 11, stride=1)[0, 0]
    torch.testing.assert_close(finish(box_bands(x, 5)), expected, atol=1e-6, rtol=1e-5)


def testotsu_parts_two_heaps():
    generator = torch.Generator().manual_seed(0)
    low, high = torch.randn(300, generator=generator), 9 + torch.randn(500, generator=generator)
    assert 2.5 < otsu(torch.cat([low, high])) < 7


def test_detail_is_carried_as_the_edit_carries_the_reconstruction():
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.rand(3, 64, 64, generator=generator) * 2 - 1 for _ in range(2))
    mixing = torch.tensor([[0.2, 0.5, 0.0], [0.0, 0.6, 0.1], [0.3, 0.0, 0.4]])
    edit = torch.einsum("ij,jhw->ihw", mixing, old) + 0.1  # left: other colours, the same shapes
    edit[..., 32:] = new[..., 32:]
    fitted, share = fit_detail(edit, old, "auto")
    expected = mixing[..., None, None].expand(3, 3, 64, 20)
    # the ridge of 0.02 beside a variance of 1/3, and the windows' noise
    torch.testing.assert_close(share[..., :20], expected, atol=0.15, rtol=0)
    assert float(share[..., 44:].abs().mean()) < 0.2
    departures = (fitted - edit).abs()
    assert float(departures[..., :20].max()) < 0.15
    assert float(departures[..., 44:].mean()) < 0.15  # what is new stays, of a mean of 0.5


def disc(side, radius, inside, outside, blur=0.0):
    """A disc of one colour on another, [3, side, side], its edge some pixels wide."""
    y, x = torch.meshgrid(*[torch.arange(side) - side / 2 + 0.5] * 2, indexing="ij")
    within = ((radius - (x**2 + y**2).sqrt()) / max(blur, 1.0) + 0.5).clamp(0, 1)
    colours = (torch.tensor(c)[:, None, None] for c in (inside, outside))
    new, old = colours
    return within * new + (1 - within) * old


ORANGE, PINK, DARK = (0.9, 0.2, -0.4), (0.8, -0.6, 0.4), (-0.8, -0.6, -0.6)


def as_photo(x):
    return Photo(Image.fromarray(((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()))


def test_an_edge_takes_the_new_colour_on_both_sides():
    photo = as_photo(disc(512, 160, ORANGE, DARK))
    old, new = (disc(64, 20, colour, DARK, blur=2.5) for colour in (ORANGE, PINK))
    after = composite(photo, CropBox(0, 0, 512, 512), new, old, torch.ones(512, 512))
    ideal = as_photo(disc(512, 160, PINK, DARK))
    error = np.abs(pixels(after).astype(float) - pixels(ideal.image))
    plain = composite(photo, CropBox(0, 0, 512, 512), new, old, torch.ones(512, 512), "photo")
    rim = np.abs(pixels(plain).astype(float) - pixels(ideal.image))
    assert error.max() < 20  # levels; the ridge keeps a little of the old colour
    assert error.max() < rim.max() / 3


def test_what_is_gone_leaves_no_outline():
    photo = as_photo(disc(512, 160, ORANGE, DARK))
    old = disc(64, 20, ORANGE, DARK, blur=2.5)
    gone = torch.tensor(DARK)[:, None, None].expand(3, 64, 64)
    after = composite(photo, CropBox(0, 0, 512, 512), gone, old, torch.ones(512, 512))
    ideal = ((torch.tensor(DARK) + 1) * 127.5).numpy()
    ghost = np.abs(pixels(after) - ideal).max()
    assert ghost < 16  # of 217 levels of the disc's red


def test_at_16_bits_an_edit_that_is_the_reconstruction_is_the_photo():
    deep = np.random.default_rng(0).integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    photo = Photo(Image.fromarray((deep >> 8).astype(np.uint8)), deep=deep)
    same = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(3)) - 0.5
    after = composited(photo, CropBox(0, 0, 64, 64), same, same, torch.ones(64, 64))
    assert (after.deep == deep).all()


def test_a_region_that_goes_on_beyond_the_crop_is_told_by_its_sides():
    box, size = CropBox(0, 20, 80, 80), (120, 140)  # at the photo's left, inside elsewhere
    whole = Weight([torch.ones(16, 16)], box, size)
    assert cut_sides(whole, box, size) == ["right", "top", "bottom"]
    inner = torch.zeros(16, 16)
    inner[4:12, 4:12] = 1
    assert cut_sides(Weight([inner], box, size), box, size) == []
    inner[4:12] = 1
    assert cut_sides(Weight([inner], box, size), box, size) == ["right"]


def test_an_edit_that_is_cut_off_says_what_to_do():
    photo, box = Photo(Image.fromarray(noise(64, 96, 3))), CropBox(16, 0, 64, 64)
    pictures = torch.zeros(2, 1, 3, 32, 32)
    pictures[0] = 0.4
    edit = Edit(pictures[0], pictures[1], 30.0, 1, torch.ones(1, 4, 4), (None,))
    mask = torch.ones(64, 64)
    mask[:8] = 0
    spec = EditSpec("a dog", mask=mask)
    placed = run(place_steps(Canvas(photo, box, full=True), edit, 0, spec, "auto"))
    assert placed.cut == ("left", "right")
    assert placed.seam == "stops inside the photo, at the crop's left and right"
    assert "invert with --size photo" in next(remarks_on(placed))
    crop = Canvas(Photo(photo.image.crop(box.edges)), CropBox(0, 0, 64, 64), full=False)
    assert run(place_steps(crop, edit, 0, spec, "auto")).seam is None


def test_a_blend_is_the_rounded_mean_and_equal_pixels_stay():
    generator = np.random.default_rng(0)
    before = generator.integers(0, 1 << 16, (7, 9, 3)).astype(np.uint16)
    after = generator.integers(0, 1 << 16, (7, 9, 3)).astype(np.uint16)
    after[:, :4] = before[:, :4]
    old, new = (
        Picture(Image.fromarray((deep >> 8).astype(np.uint8)), deep) for deep in (before, after)
    )
    assert finish(blend_bands(old, new, 1)) is new
    assert (np.asarray(finish(blend_bands(old, new, 0)).image) == np.asarray(old.image)).all()
    half = finish(blend_bands(old, new, 0.5))
    assert half.deep is not None
    assert (half.deep == np.rint((before.astype(float) + after) / 2)).all()
    wanted = np.rint((np.asarray(old.image).astype(float) + np.asarray(new.image)) / 2)
    assert (np.asarray(half.image) == wanted).all()
    assert (half.deep[:, :4] == before[:, :4]).all()


def test_a_blend_keeps_the_opacity_of_the_photo():
    colours, alpha = Image.new("RGB", (4, 3), (10, 20, 30)), Image.new("L", (4, 3), 77)
    edited = Image.new("RGB", (4, 3), (110, 20, 31))
    edited.putalpha(alpha)
    blended = finish(blend_bands(Picture(colours, alpha=alpha), Picture(edited), 0.25))
    assert blended.image.getpixel((0, 0)) == (35, 20, 30, 77)

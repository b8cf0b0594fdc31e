"""Regions that are found: what an edit is about decides, whoever stands beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

import nulltext
from nulltext.attention.blend import LocalBlend
from nulltext.diffusion.loops import run
from nulltext.editing.finding import PROBED, find_steps
from nulltext.editing.placing import Canvas, placed_steps
from nulltext.image.photos import load_photo
from support.examples import DAHLIA_PROMPT, EXAMPLE

RED = DAHLIA_PROMPT.replace("orange", "red")
GREEN = DAHLIA_PROMPT.replace("dark", "green")
DAISY = "a photo of a white daisy with a dark background"
PAINTING = DAHLIA_PROMPT.replace("photo", "painting")


@pytest.fixture(scope="module")
def places(flowers, dahlia_inversion):
    """Put edits into the dahlia's photo, by target."""

    def call(*specs, region="auto", full=True, hue="named"):
        listed = [nulltext.EditSpec(s) if isinstance(s, str) else s for s in specs]
        canvas = Canvas.of(dahlia_inversion, load_photo(EXAMPLE), full=full)
        how = {"region": region, "detail": "auto", "hue": hue}
        steps = placed_steps(flowers, dahlia_inversion, listed, canvas, **how)
        return run(steps)[1]

    return call


@pytest.fixture(scope="module")
def dahlias(places):
    return dict(zip((RED, GREEN, DAISY), places(RED, GREEN, DAISY), strict=True))


def disc(placed, share: float) -> torch.Tensor:
    """The dahlia's middle in the crop: a disc of a share of the crop's half side."""
    height, width = placed.region.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (x / width - 0.48) ** 2 + (y / height - 0.52) ** 2 < (share / 2) ** 2


def test_a_colour_stays_within_the_flower(dahlias):
    region = dahlias[RED].region
    assert (region[disc(dahlias[RED], 0.5)] == 255).all()
    assert (region[~disc(dahlias[RED], 0.85)] == 0).float().mean() > 0.9
    assert dahlias[RED].found == "flower"
    assert dahlias[GREEN].found == "all but flower"
    assert dahlias[RED].psnr_outside == float("inf")


def test_a_background_leaves_the_flower_alone(dahlias):
    region = dahlias[GREEN].region
    assert (region[disc(dahlias[GREEN], 0.5)] == 0).all()
    assert (region[~disc(dahlias[GREEN], 0.95)] > 0).float().mean() > 0.8


def test_a_kind_covers_both_outlines(dahlias):
    assert (dahlias[DAISY].region[disc(dahlias[DAISY], 0.5)] == 255).all()


def test_a_change_of_the_picture_is_everywhere(places):
    [painting] = places(PAINTING, full=False)
    assert painting.found is None
    assert (painting.region == 255).all()


def test_a_target_has_one_region_whoever_stands_beside_it(places, dahlias):
    [alone] = places(RED)
    together = dahlias[RED].region
    # other batches, other matrix kernels: the cut may differ in single pixels
    assert (alone.region != together).float().mean() < 0.01


def test_masks_and_blends_win(flowers, dahlia_inversion):
    mask = torch.zeros(128, 128)
    mask[:64] = 1
    specs = [
        nulltext.EditSpec(RED, mask=mask),
        nulltext.EditSpec(RED, blend=LocalBlend(("flower",))),
    ]
    counted = flowers.counted()
    assert run(find_steps(counted, dahlia_inversion, specs, "auto")) == [None, None]
    assert counted.passes.total == 0


def test_everywhere_asks_nothing(flowers, dahlia_inversion):
    counted = flowers.counted()
    specs = [nulltext.EditSpec(RED)]
    assert run(find_steps(counted, dahlia_inversion, specs, "everywhere")) == [None]
    assert counted.passes.total == 0


def test_a_target_is_asked_for_once(flowers, dahlia_inversion):
    counted = flowers.counted()
    specs = [nulltext.EditSpec(text).at_strength(s) for text in (RED, DAISY) for s in (0.3, 0.8)]
    found = run(find_steps(counted, dahlia_inversion, specs, "auto"))
    assert counted.passes.total == len(PROBED) * 3  # the photo and two targets
    assert found[0] is found[1]
    assert found[0] is not found[2]


def test_attention_alone_and_with_the_predictions_agree_on_the_flower(places, dahlias):
    [by_words] = places(RED, region="words")
    a, b = by_words.region > 127, dahlias[RED].region > 127
    assert float((a & b).sum() / (a | b).sum()) > 0.6


def test_on_the_crop_the_photo_stays_outside(places, dahlia_inversion):
    [red] = places(RED, full=False)
    edited = torch.from_numpy(np.array(red.image)).permute(2, 0, 1)
    same = (edited == dahlia_inversion.photo).all(dim=0)
    assert same[red.region == 0].all()
    assert not same[disc(red, 0.4)].all()


@pytest.mark.parametrize("targets", [1, 5])
def test_every_family(tiny, photo, targets):
    """Random weights know no places: shapes, range and count are all there is to see."""
    inversion = nulltext.invert(tiny, photo, "a photo of a cat", method="ddim", num_steps=3)
    words = ["a photo of a dog", "a photo of a red cat", "a photo of a cat sofa"]
    specs = [nulltext.EditSpec(words[i % 3]) for i in range(targets)]
    counted = tiny.counted()
    found = run(find_steps(counted, inversion, specs, "auto"))
    assert counted.passes.total == 2 * (1 + min(targets, 3))  # of three steps two are asked at
    for finding in found:
        assert finding.scores.shape[1:] == inversion.photo.shape[-2:]
        assert 0 <= finding.scores.min() <= finding.scores.max() <= 1
        picture = inversion.photo.float() / 127.5 - 1
        region = finding.region(picture, interpolate(picture[None], scale_factor=2)[0])
        assert 0 <= region.min() <= region.max() <= 1


def test_red_is_red(places, dahlias):
    """The bundled model's red of the dahlia is crimson: the word's own hue is put in its place."""
    [drawn] = places(nulltext.EditSpec(RED), hue="model")

    def redness(placed):
        pixels = torch.from_numpy(np.array(placed.image)).float()[:, 106:533]
        red, green, blue = pixels[disc(placed, 0.5)].mean(dim=0)
        return float(red - green), float(red - blue)

    assert redness(drawn)[1] < redness(drawn)[0] - 20  # bluish
    assert redness(dahlias[RED])[1] > redness(dahlias[RED])[0] - 40
    assert redness(dahlias[RED])[1] > redness(drawn)[1] + 10


def test_at_strength_0_the_photo_stays(places):
    [still] = places(nulltext.EditSpec(RED).at_strength(0.0))
    assert still.changed_fraction == 0
    assert still.unchanged is not None

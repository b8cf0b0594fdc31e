"""Hues of edits: brought to the word's, no further than the model went, and nothing else."""

from __future__ import annotations

import colorsys

import pytest
import torch

from nulltext.image.colours import FAR, HUES, MOST, to_named_hue

ALL = torch.ones(12, 16)


def plain(hue: float, saturation: float = 0.8, value: float = 0.7) -> torch.Tensor:
    """A picture of one colour, a little uneven in its light."""
    light = torch.linspace(0.8, 1.0, ALL.numel()).view(ALL.shape)
    colour = torch.tensor(colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value))
    return 2 * colour[:, None, None] * light - 1


def hue_of(picture: torch.Tensor) -> float:
    mean = ((picture + 1) / 2).mean(dim=(1, 2)).tolist()
    return 360 * colorsys.rgb_to_hsv(*mean)[0]


@pytest.mark.parametrize(
    ("edited", "colour", "wanted"),
    [
        (340, "red", 356),
        (20, "red", 8),
        (66, "yellow", 60),
        (318, "pink", 328),
        (325, "purple", 300),
    ],
)
def test_a_hue_that_missed_ends_at_the_nearest_end_of_the_words_range(edited, colour, wanted):
    picture = plain(edited)
    turned = to_named_hue(picture, plain(200), ALL, colour)
    assert hue_of(turned) == pytest.approx(wanted, abs=0.1)
    for kept in (lambda x: x.max(dim=0).values, lambda x: x.min(dim=0).values):
        torch.testing.assert_close(kept(turned), kept(picture))  # value and chroma


@pytest.mark.parametrize("colour", sorted(HUES))
def test_a_hue_within_the_range_stays_bit_for_bit(colour):
    first, last = HUES[colour]
    picture = plain((first + last) / 2)
    assert to_named_hue(picture, plain(first + 120), ALL, colour) is picture


def test_an_edit_is_turned_no_further_than_it_went_itself():
    before = plain(30)
    assert to_named_hue(before, before, ALL, "red") is before
    turned = to_named_hue(plain(26), before, ALL, "red")
    assert hue_of(turned) == pytest.approx(22, abs=0.1)


def test_an_edit_of_a_colourless_thing_is_turned_by_no_more_than_the_limit():
    turned = to_named_hue(plain(60), plain(0, saturation=0.0), ALL, "red")
    assert hue_of(turned) == pytest.approx(60 - MOST, abs=0.1)


def test_other_colours_and_grey_stay():
    picture = plain(340)
    picture[:, :, 12:] = plain(340 + FAR + 1)[:, :, 12:]
    picture[:, :3] = plain(0, saturation=0.0)[:, :3]
    weight = ALL.clone()
    weight[:, 12:] = 0
    turned = to_named_hue(picture, plain(30), weight, "red")
    assert torch.equal(turned[:, :, 12:], picture[:, :, 12:])
    torch.testing.assert_close(turned[:, :3], picture[:, :3])
    assert not torch.equal(turned[:, 5, :8], picture[:, 5, :8])


def test_a_picture_without_colour_is_left():
    grey = plain(0, saturation=0.0)
    assert to_named_hue(grey, plain(30), ALL, "red") is grey

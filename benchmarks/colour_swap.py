"""Did an edit that asks for another colour get it? A check that needs no other model.

The chroma of an RGB colour is a vector in the plane across the grey axis,

    c = (R - (G + B) / 2,  sqrt(3) / 2 (G - B)),

whose angle is the hue. A swap counts where the mean chroma over the middle of the picture, where
the flower is, came at least half way from the photo's hue to the target colour's.
Source: the hexagonal hue of Smith 1978.
"""

from __future__ import annotations

import math

from torch import Tensor

HUES = {"red": 0.0, "orange": 30.0, "yellow": 55.0, "purple": 290.0, "pink": 330.0}
"""Degrees."""

TARGETS = ("red", "yellow", "purple")
"""Colours to swap to: far apart, and known to the bundled model."""

FAR_ENOUGH = 0.5
"""Part of the way to the target's hue from which on a swap counts."""


def swapped_colour(colour: str | None) -> str:
    """The target colour for a flower of some colour: the first that lies far from it."""
    if colour not in HUES:
        return "red"
    return max(TARGETS, key=lambda target: hue_distance(HUES[colour], HUES[target]))


def hue_distance(left: float, right: float) -> float:
    """Degrees between two hues, 0 to 180."""
    return abs((left - right + 180.0) % 360.0 - 180.0)


def centre_hue(image: Tensor) -> float:
    """Hue in degrees of the mean chroma over the middle half of a picture [3, H, W]."""
    _, height, width = image.shape
    middle = image[:, height // 4 : -(height // 4), width // 4 : -(width // 4)]
    red, green, blue = middle.flatten(1).mean(dim=1).tolist()
    return math.degrees(math.atan2(math.sqrt(0.75) * (green - blue), red - (green + blue) / 2))


def swap_distance(image: Tensor, target: str) -> float:
    """Degrees between the picture's hue and the colour that was asked for."""
    return hue_distance(centre_hue(image), HUES[target])


def is_swapped(before: float, after: float) -> bool:
    """Whether an edit counts, by the distances of the photo and of the edit."""
    return after <= (1.0 - FAR_ENOUGH) * before

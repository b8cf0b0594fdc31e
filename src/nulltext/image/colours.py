"""Bring the hue of an edit to the colour that was asked for.

Guidance moves a hue along a straight line from the source's towards the target's and, depending on
the photo, stops short of it or runs past it. A colour word names a range of hues. With h the mean
hue of an edit inside its region, weighted by chroma, h_0 that of the picture that it started from,
and d the way from h to the nearest end of the range,

    pixels of hue h' are turned by d g(|h' - h|)      d cut off to |h - h_0| and `MOST`

g is 1 up to `NEAR` and falls to 0 at `FAR`, so that a heart or a leaf of another colour keeps its
own. Saturation and value (HSV) stay. So a hue is turned no further than the model itself turned it
(from a start without colour, `MOST`), and an edit that changes nothing stays as it is. The ranges
are ours, around the hues of the words in common tables of colours and in photos of flowers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

HUES: Final[Mapping[str, tuple[float, float]]] = {
    "red": (-4.0, 8.0),
    "scarlet": (-2.0, 12.0),
    "crimson": (-15.0, 0.0),
    "orange": (22.0, 36.0),
    "yellow": (44.0, 60.0),
    "golden": (38.0, 52.0),
    "green": (85.0, 150.0),
    "turquoise": (165.0, 185.0),
    "teal": (170.0, 195.0),
    "cyan": (175.0, 195.0),
    "blue": (200.0, 245.0),
    "indigo": (235.0, 265.0),
    "violet": (255.0, 285.0),
    "purple": (265.0, 300.0),
    "magenta": (290.0, 325.0),
    "pink": (328.0, 350.0),
}
"""Hues in degrees that a word names; those of brown, grey, black and white are no matter of hue."""
MOST: Final = 35.0
"""Degrees by which a hue is turned, at most."""
NEAR, FAR = 35.0, 70.0
"""Degrees from the mean up to which a pixel's hue turns along, and from which it stays."""
LEAST_CHROMA: Final = 0.02
"""Mean chroma in [0, 1] below which there is no hue to speak of."""


def to_named_hue(picture: Tensor, before: Tensor, weight: Tensor, colour: str) -> Tensor:
    """Turn a picture's hue to a colour's, by the module's formula.

    Args:
        picture, before: [3, H, W] in about [-1, 1], the edit and what it started from.
        weight: [H, W] in [0, 1], where the mean hues are taken; pixels elsewhere turn along.
        colour: a key of `HUES`.

    Returns: [3, H, W]; the picture itself where its hue is the colour's already, has not moved, or
    where there is no colour.
    """
    mean, started = _mean_hue(picture, weight), _mean_hue(before, weight)
    if mean is None:
        return picture
    moved = MOST if started is None else min(MOST, abs(_way(started, mean)))
    way = max(-moved, min(moved, _way_into(mean, HUES[colour])))
    if way == 0:
        return picture
    hue, value, chroma = _to_hsv(picture)
    apart = ((hue - mean + 180) % 360 - 180).abs()
    along = ((FAR - apart) / (FAR - NEAR)).clamp(0, 1)
    turned = _from_hsv(hue + way * along, value, chroma)
    return torch.where(along * chroma > 0, 2 * turned - 1, picture)


def _mean_hue(picture: Tensor, weight: Tensor) -> float | None:
    """Return the mean hue of a region in degrees; None where it has no colour to speak of."""
    hue, _, chroma = _to_hsv(picture)
    pull = (weight * chroma).double()
    if float(pull.sum()) <= LEAST_CHROMA * float(weight.sum()):
        return None
    angle = hue.double() * (torch.pi / 180)
    mean = torch.atan2((pull * angle.sin()).sum(), (pull * angle.cos()).sum())
    return float(mean) * 180 / math.pi


def _to_hsv(picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue in degrees, value and chroma in [0, 1], each [H, W], of HSV's cone."""
    red, green, blue = (picture.clamp(-1, 1) + 1) / 2
    largest = torch.maximum(torch.maximum(red, green), blue)
    chroma = largest - torch.minimum(torch.minimum(red, green), blue)
    span = chroma.clamp_min(torch.finfo(chroma.dtype).tiny)
    by_red = (green - blue) / span % 6
    by_green = (blue - red) / span + 2
    by_blue = (red - green) / span + 4
    sextant = torch.where(largest == red, by_red, torch.where(largest == green, by_green, by_blue))
    return 60 * sextant, largest, chroma


def _from_hsv(hue: Tensor, value: Tensor, chroma: Tensor) -> Tensor:
    """Return [3, H, W] in [0, 1], the inverse of `_to_hsv`."""
    channels = []
    for offset in (5, 3, 1):
        place = (offset + hue / 60) % 6
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels)


def _way(first: float, last: float) -> float:
    """Return the degrees from one hue to another, -180 to 180."""
    return (last - first + 180) % 360 - 180


def _way_into(hue: float, ends: tuple[float, float]) -> float:
    """Return the degrees from a hue to the nearest end of a range; 0 within it."""
    first, last = (_way(hue, end) for end in ends)
    return 0.0 if first <= 0 <= last else min(first, last, key=abs)

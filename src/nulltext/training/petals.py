"""Where the flower is in a photo, and which colours flower and background have.

Labels say what a photo shows, not where. A rough split of the pixels into what may be petal
(warm, purple or bright) and what hardly is (foliage, sky, shade) starts a graph cut (GrabCut),
which finds the outline. From the two parts the words for their colours are read off: that which
most of the pixels have, if one clearly has the most.
Sources: Rother et al. 2004 (GrabCut), by way of OpenCV; Nilsback and Zisserman 2008, on flowers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nulltext.errors import OptionError

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

ROUNDS = 3
"""Rounds of GrabCut."""
MIN_SHARE, MAX_SHARE = 0.03, 0.9
"""Shares of the picture between which an outline is believed."""
LEAST_PIXELS = 0.01
"""Share of the picture that flower and background each need before the cut can start."""
HOLE, SPECK = 0.06, 0.004
"""Shares of the picture up to which holes are filled, and specks dropped."""
CENTRE = 0.8
"""Squared radius (1 at the middle of an edge) within which the flower is looked for first."""
CLEAR_MAJORITY = 0.5
"""Share of a part's pixels that must have a colour for its word to be used."""

COLOURS = ("red", "orange", "yellow", "pink", "purple", "blue", "white")
BACKGROUNDS = ("green", "blue", "dark", "white", "grey", "brown")


@dataclass(frozen=True)
class Grounding:
    """What can be seen in one photo."""

    mask: Bools | None
    """[H, W], where the flower is; None where no outline is believed."""
    colour: str | None
    """One of `COLOURS`."""
    background: str | None
    """One of `BACKGROUNDS`."""


def ground(pixels: NDArray[np.uint8]) -> Grounding:
    """Find flower and background of an RGB photo [H, W, 3].

    Raises:
        OptionError: OpenCV is not installed.
    """
    mask = outline(pixels)
    hue, saturation, value = hsv(pixels)
    if mask is None:
        return Grounding(None, None, None)
    flower = _flower_word(hue[mask], saturation[mask], value[mask])
    rest = ~mask
    return Grounding(mask, flower, _background_word(hue[rest], saturation[rest], value[rest]))


def hsv(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
    """Hue in degrees [0, 360), saturation and value in [0, 1], each [H, W], of RGB [H, W, 3]."""
    rgb = pixels.astype(np.float32) / 255.0
    value = rgb.max(-1)
    spread = value - rgb.min(-1)
    saturation = spread / np.maximum(value, 1e-6)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    safe = np.maximum(spread, 1e-6)
    sector = np.select(
        [value == red, value == green],
        [(green - blue) / safe % 6, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    return (60.0 * sector).astype(np.float32) % 360.0, saturation, value


def outline(pixels: NDArray[np.uint8]) -> Bools | None:
    """The flower's pixels [H, W], or None where no outline is believed."""
    cv2 = _opencv()
    start = _first_guess(cv2, pixels)
    possible = np.isin(start, (cv2.GC_FGD, cv2.GC_PR_FGD)).mean()
    if not LEAST_PIXELS < possible < 1.0 - LEAST_PIXELS:
        return None
    cv2.setRNGSeed(0)  # its mixtures are seeded by k-means
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(pixels[..., ::-1].copy(), start, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = np.isin(start, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    found = _cleaned(cv2, found)
    mask: Bools = found.astype(bool)
    return mask if MIN_SHARE <= mask.mean() <= MAX_SHARE else None


def _first_guess(cv2: Any, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """GrabCut's labels before the first round, by colour and distance from the centre."""
    hue, saturation, value = hsv(cv2.GaussianBlur(pixels, (3, 3), 0))
    foliage = (hue > 65) & (hue < 255) & (saturation > 0.22)
    dull = (saturation < 0.35) & (value < 0.55)
    brown = (hue > 10) & (hue < 60) & (value < 0.45)
    petal = ~(foliage | dull | brown | (value < 0.22))
    height, width = petal.shape
    y, x = np.mgrid[0:height, 0:width]
    radius = ((2 * y - height) / height) ** 2 + ((2 * x - width) / width) ** 2
    labels = np.full(petal.shape, cv2.GC_PR_BGD, np.uint8)
    labels[petal & (radius < CENTRE)] = cv2.GC_PR_FGD
    labels[(foliage & (saturation > 0.3)) | ((value < 0.1) & (radius > 0.5))] = cv2.GC_BGD
    border = np.ones(petal.shape, bool)
    border[2:-2, 2:-2] = False
    labels[border & ~petal] = cv2.GC_BGD
    return labels


def _cleaned(cv2: Any, found: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Small holes filled, specks dropped."""
    height, width = found.shape
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(1 - found)
    left, top, wide, high, area = boxes.T
    closed = (left > 0) & (top > 0) & (left + wide < width) & (top + high < height)
    closed &= area < HOLE * found.size
    closed[0] = False  # the flower itself
    found = np.where(closed[labels], 1, found).astype(np.uint8)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(found)
    kept = boxes[:, 4] >= SPECK * found.size
    kept[0] = False  # everything else
    return kept[labels].astype(np.uint8)


def _flower_word(hue: Floats, saturation: Floats, value: Floats) -> str | None:
    """The colour of petals; the dark heart of a sunflower and green sepals do not count."""
    bright = value > 0.25
    hue, saturation, value = hue[bright], saturation[bright], value[bright]
    pale = saturation < 0.22
    rosy = (hue < 20) | (hue >= 315)
    coloured = ~pale
    counted = {
        "white": pale & (value > 0.5),
        "red": coloured & ((hue < 14) | (hue >= 345)) & (saturation > 0.62),
        "pink": coloured & (rosy & (saturation <= 0.62) | (hue >= 315) & (hue < 345)),
        "orange": coloured & (hue >= 14) & (hue < 38) & ((saturation > 0.62) | (hue >= 20)),
        "yellow": coloured & (hue >= 38) & (hue < 66),
        "purple": coloured & (hue >= 255) & (hue < 315),
        "blue": coloured & (hue >= 200) & (hue < 255),
    }
    return _majority(counted, len(hue))


def _background_word(hue: Floats, saturation: Floats, value: Floats) -> str | None:
    dark = value < 0.25
    pale = ~dark & (saturation < 0.18)
    coloured = ~dark & ~pale
    counted = {
        "dark": dark,
        "white": pale & (value > 0.75),
        "grey": pale & (value <= 0.75),
        "green": coloured & (hue >= 58) & (hue < 170),
        "blue": coloured & (hue >= 170) & (hue < 260),
        "brown": coloured & (hue < 58) & (value < 0.7),
    }
    return _majority(counted, len(hue))


def _majority(counted: dict[str, Bools], total: int) -> str | None:
    if total == 0:
        return None
    word = max(counted, key=lambda name: int(counted[name].sum()))
    return word if counted[word].sum() >= CLEAR_MAJORITY * total else None


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise OptionError(
            "Finding flowers in photos needs OpenCV: pip install 'nulltext[train]'."
        ) from error
    cv2.setNumThreads(1)  # the same outline on every machine
    return cv2

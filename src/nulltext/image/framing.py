"""Which part of a photo a model sees, and at what size.

A model was made for native sides W0 x H0 and works at any multiple of its autoencoder's stride s (8
in Stable Diffusion). A box of proportions r = width / height is seen at

    W = s round(sqrt(W0 H0 r) / s),    H = s round(sqrt(W0 H0 / r) / s)

nearly as many pixels as the native ones, or, in a family that was trained at buckets of several
proportions, at the bucket whose log r is nearest. The photo is stretched by what rounding leaves.
Source: Podell et al. 2023 (SDXL), sec. 2.3 and appendix I for the buckets.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from nulltext.errors import OptionError
from nulltext.image.images import CropBox, largest_centred

Size = tuple[int, int]
"""(width, height) in pixels."""

SizeChoice = Size | Literal["photo"] | None
"""A size; "photo" for that of the whole photo (or crop) in its own proportions, at about the
model's number of pixels; None for the model's own."""

LONGEST = 4.0
"""Proportions beyond which no model has seen a picture (SDXL's buckets end there)."""

SMALLEST_PART, LARGEST_PART = 1 / 4, 8
"""Sides in parts of the model's own that still make sense."""

STRETCH = 0.02
"""Difference of proportions between crop and size that is no mistake."""

SDXL_BUCKETS = tuple(
    (long, short)
    for short, longs in (
        (8, (32, 31, 30, 29)),
        (9, (28, 27, 26)),
        (10, (25, 24)),
        (11, (23, 22, 21)),
        (12, (21, 20)),
        (13, (19, 18)),
        (14, (18, 17)),
        (15, (17, 16)),
        (16, (16,)),
    )
    for long in longs
)
"""Sides of SDXL's buckets, long and short, in sixteenths of the native side (64 of 1024 px)."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that a model works at."""

    native: Size
    """What it was made for."""
    step: int
    """Sides are multiples of this."""
    buckets: tuple[Size, ...] = ()
    """Sizes of other proportions that it was trained at."""

    def of(self, box: CropBox, choice: SizeChoice) -> tuple[int, int]:
        """(height, width) at which a box of a photo is seen.

        Raises:
            OptionError: the size is none that the model works at, or of other proportions than
                the box.
        """
        if choice is None and similar((box.width, box.height), self.native):
            width, height = self.native
        elif choice is None or choice == "photo":
            width, height = self.nearest(box)
        else:
            width, height = choice
            self._check(choice, box)
        return height, width

    def nearest(self, box: CropBox) -> Size:
        """The size of about the box's proportions and the native number of pixels."""
        ratio = box.width / box.height
        if not 1 / LONGEST <= ratio <= LONGEST:
            raise OptionError(
                f"{box.width} x {box.height} px is longer than {LONGEST:g} to 1, which no model "
                "has learnt to see; choose a part of it with --crop X,Y,WIDTH,HEIGHT."
            )
        if self.buckets:
            return min(self.buckets, key=lambda size: abs(math.log(size[0] / size[1] / ratio)))
        area = self.native[0] * self.native[1]
        sides = math.sqrt(area * ratio), math.sqrt(area / ratio)
        width, height = (max(1, round(side / self.step)) * self.step for side in sides)
        return width, height

    def _check(self, size: Size, box: CropBox) -> None:
        said = f"{size[0]}x{size[1]}"
        if any(side % self.step for side in size):
            down = [max(1, side // self.step) * self.step for side in size]
            raise OptionError(
                f"The size {said} is not made of multiples of {self.step}, as this model's are; "
                f"pass --size {down[0]}x{down[1]}."
            )
        low = math.ceil(SMALLEST_PART * min(self.native))
        high = LARGEST_PART * max(self.native)
        if min(size) < low or max(size) > high:
            raise OptionError(
                f"The size {said} is far from what this model was made for "
                f"({self.native[0]}x{self.native[1]}); choose sides from {low} to {high}."
            )
        if not similar((box.width, box.height), size):
            fitting = largest_centred(box.width, box.height, size)
            raise OptionError(
                f"The crop of {box.width} x {box.height} px has other proportions than the size "
                f"{said}; pass --crop {box.x + fitting.x},{box.y + fitting.y},"
                f"{fitting.width},{fitting.height}, or --size photo."
            )


def parse_size(text: str) -> Size | Literal["photo"]:
    """Read "WIDTHxHEIGHT" or "photo".

    Raises:
        OptionError: it is neither.
    """
    if text.strip().lower() == "photo":
        return "photo"
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*[xX×]\s*([0-9]{1,6})\s*", text)
    width, height = map(int, match.groups()) if match else (0, 0)
    if min(width, height) < 1:
        raise OptionError(
            f"The size {text!r} is not of the form WIDTHxHEIGHT: give two whole numbers of pixels, "
            "such as 768x512, or photo for the photo's own proportions."
        )
    return width, height


def box_for(photo_size: Size, choice: SizeChoice) -> CropBox:
    """The part of a photo of `photo_size` px that is seen unless another crop is asked for.

    For a size: the largest centred box of its proportions; for "photo": all of it; for None: the
    largest centred square.
    """
    if choice == "photo":
        return CropBox(0, 0, *photo_size)
    return largest_centred(*photo_size, choice or (1, 1))


def similar(a: Size, b: Size) -> bool:
    """Whether two sizes have the same proportions, but for a pixel of `a` and a small stretch."""
    return abs(a[0] * b[1] - a[1] * b[0]) <= STRETCH * a[0] * b[1] + max(b)

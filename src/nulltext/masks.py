"""Masks that a person supplies: white where the photo may change.

A mask m in [0, 1] is the file's luminance times its opacity, so a drawing on a transparent sheet
works as well. It is laid on the photo, or on the crop, whichever has its proportions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor

from nulltext.errors import ImageError
from nulltext.images import CropBox, largest_centred
from nulltext.photos import Photo, load_photo

CONTEXT = 2.0
"""Sides of an automatic crop in sides of what is masked: the model needs the surroundings, too."""


def load_mask(source: str | Path | Image.Image) -> Image.Image:
    """Read a mask as mode L: 255 where the photo may change.

    Raises:
        ImageError: it cannot be read, is black (or transparent) or white everywhere.
    """
    name = "The mask" if isinstance(source, Image.Image) else f"The mask '{source}'"
    grey = _luminance(load_photo(source))
    low, high = grey.getextrema()
    if high == 0:
        raise ImageError(f"{name} is black everywhere: paint white what may change.")
    if low == 255:
        raise ImageError(f"{name} is white everywhere and masks nothing: leave it out.")
    return grey


def _luminance(photo: Photo) -> Image.Image:
    grey = (photo.straight or photo.image).convert("L")
    return grey if photo.alpha is None else ImageChops.multiply(grey, photo.alpha)


def mask_on_crop(mask: Image.Image, photo_size: tuple[int, int], box: CropBox) -> Tensor:
    """The part of a mask that lies over a crop: [box.height, box.width], float32, in [0, 1].

    Raises:
        ImageError: its proportions are neither the photo's nor the crop's, or nothing of it is
            white inside the crop, or all of the crop is.
    """
    crop_size = (box.width, box.height)
    if _similar(mask.size, photo_size):
        edges = (box.x, box.y, box.x + box.width, box.y + box.height)
        fitted = _resized(mask, photo_size).crop(edges)
    elif _similar(mask.size, crop_size):
        fitted = _resized(mask, crop_size)
    else:
        raise ImageError(
            f"The mask is {mask.width} x {mask.height} px: give one of the photo's size, "
            f"{photo_size[0]} x {photo_size[1]}, or of the crop's, {box.width} x {box.height}."
        )
    low, high = fitted.getextrema()
    if high == 0:
        raise ImageError(
            f"The mask has no white inside the crop {box}: "
            "move the crop, or leave it out to have it put around the mask."
        )
    if low == 255:
        raise ImageError(
            f"The mask is white all over the crop {box} and holds nothing back there: give a crop "
            "that reaches beyond its white, or leave the mask out."
        )
    return torch.from_numpy(np.array(fitted)).float() / 255


def _similar(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two sizes have the same proportions, give or take a pixel of rounding."""
    return abs(a[0] * b[1] - b[0] * a[1]) <= max(*a, *b)


def _resized(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def crop_around(
    mask: Image.Image,
    photo_size: tuple[int, int],
    smallest: int,
    proportions: tuple[int, int] = (1, 1),
) -> CropBox:
    """The box of a photo that shows a mask with its surroundings.

    Args:
        mask: of the photo's proportions, else the largest centred box of the photo is returned.
        smallest: pixels that a side shall have at least, such as the model's resolution.
        proportions: (width, height) of the box, up to a factor; a square by default.

    Its sides are at least `CONTEXT` times those of the white part, within `smallest` and what the
    photo holds; the white part is as near to its middle as the photo's borders allow.
    """
    width, height = photo_size
    across, down = proportions
    largest = largest_centred(width, height, proportions)
    if not _similar(mask.size, photo_size):
        return largest
    white = _resized(mask, photo_size).getbbox()
    assert white is not None, "an empty mask is refused when it is loaded"
    left, top, right, bottom = white
    wanted = CONTEXT * max((right - left) / across, (bottom - top) / down)
    scale = max(wanted, smallest / min(proportions))
    sides = (
        min(round(scale * across), largest.width),
        min(round(scale * down), largest.height),
    )
    x, y = (left + right - sides[0]) // 2, (top + bottom - sides[1]) // 2
    return CropBox(min(max(x, 0), width - sides[0]), min(max(y, 0), height - sides[1]), *sides)

"""Read the masks that users supply: white where the photo may change.

    pixels                               m
    grey v of at most V (1, 255, 65535)  v / V: white may change, grey partly, black not at all
    two values, 0 and k                  hard: 1 where v = k, whatever k
    shades of one colour on black        the same, with that colour for white
    float                                v, in [0, 1]

Opacity is a factor, so a drawing on a transparent sheet works as well. Images of labels (few
values, spread unevenly over even areas) and of several colours are refused, since they do not say
which of them may change; a grey photo cannot be told from shades. A mask is laid on the photo or on
the crop, whichever has its proportions.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nulltext.errors import ImageError, OptionError
from nulltext.image.images import CropBox, Size, largest_centred, same_proportions
from nulltext.image.opening import (
    MAX_PIXELS,
    Array,
    ImageLike,
    decode_upright,
    mask_array,
    open_image,
    without_single_axes,
)

CONTEXT = 2.0
"""Sides of an automatic crop in sides of the masked part: the model needs the surroundings, too."""
MOST_LABELS = 64
"""Most values of an image of labels."""
LEAST_SHADE = 32
"""Smaller values beside white may be labels, with white for the pixels that have none."""
EVEN = 1.25
"""Ratio of the steps between values up to which they are a scale of shades (0, 128, 255)."""
ONE_COLOUR = 1 / 4
"""Deviation of a channel from shades of one colour that is accepted, in parts of the brightest
pixel: JPEG errs by less, other colours by more."""
DIM = 0.9
"""Part of white below which a mask's brightest value is pointed out."""


def load_mask(source: ImageLike) -> Image.Image:
    """Read a mask as mode L: 255 where the photo may change. See `read_mask`."""
    return read_mask(source)[0]


def read_mask(source: ImageLike) -> tuple[Image.Image, str | None]:
    """Read a mask as mode L, 255 where the photo may change, and a note on a doubtful reading.

    Args:
        source: a file (as of a photo, or a .npy), a PIL image, or an array or tensor [H, W] of
            bool, any integer type, or float in [0, 1].

    Raises:
        ImageError: it cannot be read, has one value everywhere, or has labels or several colours.
    """
    with open_image(source, MAX_PIXELS, mask_array) as opened:
        name = "The mask" if opened.path is None else f"The mask {opened.name}"
        pixels = decode_upright(opened, MAX_PIXELS)
        if pixels.mode not in ("1", "L", "F") and not pixels.mode.startswith("I"):
            pixels = _shades(pixels, name)
        values, note = _scaled(np.asarray(pixels), name)
        return Image.fromarray(values), note


def mask_tensor(mask: ImageLike) -> Tensor:
    """Read a mask as [H, W], float32, in [0, 1]; floats are taken as they are.

    Args: mask: see `read_mask`.

    Raises:
        OptionError: its shape or range is not a mask's, or it is zero or one everywhere.
        ImageError: see `read_mask`.
    """
    if isinstance(mask, np.ndarray) and mask.dtype.kind == "f":
        mask = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        return torch.from_numpy(np.array(load_mask(mask))).float() / 255
    values: Tensor = without_single_axes(mask)
    if values.ndim != 2 or values.numel() == 0:
        raise OptionError(f"The mask has shape {list(values.shape)}; expected [H, W].")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise OptionError(
            f"The mask goes from {low:g} to {high:g}; expected 0 to 1. Divide 255ths by 255, and "
            "of logits pass mask > 0."
        )
    if high == 0:
        raise OptionError("The mask is empty: nothing may change; paint white what may.")
    if low == 1:
        raise OptionError("The mask is white everywhere, so it masks nothing; leave it out.")
    return values.float()


def _scaled(values: Array, name: str) -> tuple[Array, str | None]:
    """Scale values to 0..255 by the module's table, with a note where that is a guess."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):
            raise ImageError(f"{name} goes from {low:g} to {high:g}: expected floats from 0 to 1.")
        values = np.rint(values * 255).astype(np.uint8)
        return _not_even(values, 255, name), _note_on_dim(high, 1, name)
    if low < 0:
        raise ImageError(f"{name} goes from {low} to {high}: expected nothing below 0.")
    full = 1 if values.dtype == bool else 255 if high <= 255 else 65535
    values = _not_even(values, 1 if high == 1 else full, name)
    if ((values == 0) | (values == high)).all():
        note = f"{name} has the values 0 and {high} alone, which are read as black and white."
        return (values != 0) * np.uint8(255), None if high in (1, full) else note
    if high > full:
        raise ImageError(f"{name} goes from {low} to {high}: expected at most 65535.")
    labels = _labels(values, full)
    if labels:
        last = max(label for label in labels if label < DIM * full)
        raise ImageError(
            f"{name} has the values {_some(labels)}, as images of labels do: make what "
            f"may change white ({full}) and all else black, in numpy by mask == {last}."
        )
    table = np.rint(np.arange(full + 1) * (255 / full)).astype(np.uint8)
    return table[values], _note_on_dim(high, full, name)


def _note_on_dim(high: float, full: int, name: str) -> str | None:
    if high >= DIM * full:
        return None
    note = f"The brightest value of {name[0].lower()}{name[1:]} is {high:g} of {full}, so no pixel "
    return note + f"may change by more than {100 * float(high) / full:.0f} %."


def _labels(values: Array, full: int) -> list[int]:
    """Return the values of an image of labels; none where they can be shades.

    Labels are few, fill areas, and form no scale. Beside white, which marks pixels without a label
    (VOC's borders, 255), labels have low numbers and are not the thin edge of the white.
    """
    levels, counts = np.unique(values, return_counts=True)
    white, rest = levels >= DIM * full, (levels > 0) & (levels < DIM * full)
    if len(levels) > MOST_LABELS or not rest.any():
        return []
    if levels[-1] >= full / 2:
        steps = np.diff(levels.astype(np.int64))
        faint = levels[rest][0] < LEAST_SHADE and 4 * counts[rest].sum() > counts[white].sum()
        if steps.max() <= EVEN * steps.min() or (white.any() and not faint):
            return []
    corner = values[:-1, :-1]
    shaded = (corner > 0) & (corner < DIM * full)
    filled = (corner == values[:-1, 1:]) & (corner == values[1:, :-1]) & shaded
    found: list[int] = levels.tolist()
    return found if 2 * filled.sum() >= shaded.sum() else []


def _not_even(values: Array, white: int, name: str) -> Array:
    low, high = int(values.min()), int(values.max())
    if low != high:
        return values
    if high == 0:
        raise ImageError(f"{name} is black everywhere: paint white what may change.")
    what = "white" if high == white else f"one shade ({high} of {white})"
    raise ImageError(f"{name} is {what} everywhere and masks nothing: leave it out.")


def _shades(image: Image.Image, name: str) -> Image.Image:
    """Convert grey, or shades of one colour on black, to mode L; the opacity is a factor."""
    if image.mode == "La":  # premultiplied; Pillow only knows the way back to LA
        image = image.convert("LA")
    transparent = image.has_transparency_data
    rgb = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    if transparent:
        opacity = rgb[..., 3:].astype(np.uint16)
        rgb = ((rgb[..., :3] * opacity + 127) // 255).astype(np.uint8)
    value = rgb.max(axis=-1)
    colour = rgb.reshape(-1, 3)[int(value.argmax())]
    most = max(int(colour.max()), 1)
    grey = most - int(colour.min()) <= ONE_COLOUR * most
    several = not grey and image.mode == "P" and len(np.unique(np.asarray(image))) > 2
    for channel, part in zip(np.moveaxis(rgb, -1, 0), colour.tolist(), strict=True):
        expected = np.rint(np.arange(256) * (part / most)).astype(np.int16)[value]
        np.subtract(channel, expected, out=expected)
        several |= max(expected.max(), -expected.min()) > ONE_COLOUR * most
    if several:
        raise ImageError(
            f"{name} has several colours ({_colours(image)}), and which of them may change is not "
            "in it: make that white and all else black."
        )
    if grey:
        return Image.fromarray(rgb).convert("L")
    return Image.fromarray(np.rint(np.arange(256) * (255 / most)).astype(np.uint8)[value])


def _colours(image: Image.Image) -> str:
    if image.mode == "P":
        palette = np.reshape(image.getpalette() or [], (-1, 3))
        labels = np.unique(np.asarray(image)).tolist()
        return _some([f"label {i}: #{palette[i].astype(np.uint8).tobytes().hex()}" for i in labels])
    few = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.NEAREST))
    found, counts = np.unique(few.reshape(-1, 3), axis=0, return_counts=True)
    return _some([f"#{found[i].tobytes().hex()}" for i in np.argsort(-counts, kind="stable")])


def _some(values: list[int] | list[str]) -> str:
    return ", ".join(map(str, values[:8])) + (", \u2026" if len(values) > 8 else "")


def mask_on_crop(mask: Image.Image, photo_size: Size, box: CropBox) -> Tensor:
    """Cut out the part of a mask over a crop: [box.height, box.width], float32, in [0, 1].

    Raises:
        ImageError: its proportions are neither the photo's nor the crop's, or nothing of it is
            white inside the crop, or all of the crop is.
    """
    crop_size = (box.width, box.height)
    if same_proportions(mask.size, photo_size):
        fitted = _resized(mask, photo_size).crop(box.edges)
    elif same_proportions(mask.size, crop_size):
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


def _resized(mask: Image.Image, size: Size) -> Image.Image:
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def crop_around(
    mask: Image.Image,
    photo_size: Size,
    smallest: int,
    proportions: Size = (1, 1),
) -> CropBox:
    """Return the box of a photo that shows a mask with its surroundings.

    Args:
        mask: of the photo's proportions, else the largest centred box of the photo is returned.
        smallest: least length of a side in pixels, such as the model's resolution.
        proportions: (width, height) of the box, up to a factor; a square by default.

    Its sides are at least `smallest` and `CONTEXT` times those of the white part, as far as the
    photo allows, and the white part is as near to its middle as the photo's borders allow.
    """
    width, height = photo_size
    across, down = proportions
    largest = largest_centred(width, height, proportions)
    if not same_proportions(mask.size, photo_size):
        return largest
    white = _resized(mask, photo_size).getbbox()
    assert white is not None, "an empty mask is refused when it is loaded"
    left, top, right, bottom = white
    wanted = CONTEXT * max((right - left) / across, (bottom - top) / down)
    scale = max(wanted, smallest / min(proportions))
    wide, high = min(round(scale * across), largest.width), min(round(scale * down), largest.height)
    x, y = (left + right - wide) // 2, (top + bottom - high) // 2
    return CropBox(min(max(x, 0), width - wide), min(max(y, 0), height - high), wide, high)

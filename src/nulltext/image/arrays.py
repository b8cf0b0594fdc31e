"""Arrays and tensors as images, by the conventions of the libraries that they come from.

    numpy   [H, W] grey, [H, W, 3] RGB, [H, W, 4] RGBA
    torch   [H, W] grey, [1, H, W] grey, [3, H, W] RGB, [4, H, W] RGBA, or one of these in a batch
            of one

Values are uint8, or floats in [0, 1], which are rounded to the nearest of 256 levels; grey may be
bool or uint16 as well. Nothing is guessed: other values and other axes are refused, by name.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from nulltext.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

ImageLike: TypeAlias = "str | Path | Image.Image | Array | Tensor"
"""A file, a PIL image, a numpy array or a torch tensor, as in this module's table."""

NPY = b"\x93NUMPY"
_LONGEST_HEADER = 10_000
"""Bytes of a .npy file's description of its array, numpy's own limit."""


def is_tensor(value: object) -> bool:
    """Whether it is a torch tensor; imports nothing, since only torch makes tensors."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def image_of(source: Array | Tensor, name: str) -> Image.Image:
    """A photo's array or tensor as mode L, I;16, RGB or RGBA.

    Raises:
        ImageError: its shape, type or values are none of the module's table.
    """
    values = _channels_last(source, name)
    if values.dtype == np.uint16 and values.ndim == 2:
        return Image.fromarray(np.ascontiguousarray(values))
    return Image.fromarray(np.ascontiguousarray(_eight_bits(values, source, name)))


def mask_of(source: Array | Tensor, name: str) -> Image.Image:
    """A mask's array or tensor, as `image_of`, but of any integer type, and floats as they are.

    Returns: mode L, I;16, I, F, RGB or RGBA.

    Raises:
        ImageError: it is several masks, or its shape, type or values are no mask's.
    """
    plain = _numpy(source, name)
    while plain.ndim > 2 and plain.shape[0] == 1:
        plain = plain[0]
    if plain.ndim == 3 and plain.shape[-1] == 1:
        plain = plain[..., 0]
    if plain.ndim == 3 and plain.dtype == bool:
        last = plain.shape[-1] < plain.shape[0]
        held, one = (plain.shape[-1], "masks[..., 0]") if last else (plain.shape[0], "masks[0]")
        raise _no_image(source, name, f"it holds {held} masks, so give one of them, such as {one}")
    if plain.ndim != 2 or plain.dtype == bool or plain.size == 0:
        return image_of(plain if plain.ndim == 2 else source, name)
    if plain.dtype.kind == "f":
        _check_floats(plain, source, name)
        return Image.fromarray(np.ascontiguousarray(plain, dtype=np.float32))
    low, high = int(plain.min()), int(plain.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        raise _no_image(source, name, "expected bool, uint8, or float from 0 to 1")
    kind = np.uint8 if high <= 0xFF else np.uint16 if high <= 0xFFFF else np.int32
    kept = plain.dtype if plain.dtype in (np.uint8, np.uint16) else kind
    return Image.fromarray(np.ascontiguousarray(plain.astype(kept)))


def read_npy(file: IO[bytes], size: int, name: str, most: int) -> Array:
    """The array of a .npy file, whose header is looked at before room is made.

    Args:
        file: at its beginning. size: bytes of it. most: pixels, at four channels each.

    Raises:
        ImageError: it holds objects, claims more than the file has, or is too large.
        ValueError: it is damaged.
    """
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file, max_header_size=_LONGEST_HEADER)
    if dtype.kind not in "buif":
        raise ImageError(f"{name} holds {dtype} where numbers are expected: save numbers alone.")
    count = math.prod(shape)
    if count > 4 * most:
        raise ImageError(f"{name} holds {count:,} numbers, more than are read: shrink it first.")
    if count * dtype.itemsize > size - file.tell():
        raise ImageError(f"{name} is cut off: it claims {count:,} numbers; fetch it again.")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _numpy(source: Array | Tensor, name: str) -> Array:
    """Numbers in this machine's byte order.

    Raises:
        ImageError: it holds something else.
    """
    if isinstance(source, np.ndarray):
        values = source
    else:
        plain = source.detach().cpu()
        values = (plain.float() if plain.is_floating_point() else plain).numpy()
    if values.dtype.kind not in "buif":
        raise ImageError(
            f"{name} holds {values.dtype} where numbers are expected: give numbers alone."
        )
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _channels_last(source: Array | Tensor, name: str) -> Array:
    """[H, W] or [H, W, C]."""
    values, expected = _numpy(source, name), "[H, W], [H, W, 3] or [H, W, 4]"
    if is_tensor(source):
        expected = "[H, W], [3, H, W] or [1, 3, H, W]"
        if values.ndim == 4 and values.shape[0] == 1:
            values = values[0]
        if values.ndim == 3 and values.shape[0] in (1, 3, 4):
            values = np.moveaxis(values, 0, -1)
        elif values.ndim == 3:
            hint = ", so permute(2, 0, 1) it" if values.shape[-1] in (1, 3, 4) else ""
            raise _no_image(source, name, f"expected {expected}{hint}")
    if values.ndim == 4:
        raise _no_image(source, name, f"expected one image, {expected}, so give a list of images")
    if values.ndim == 3 and values.shape[-1] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        raise _no_image(source, name, f"expected {expected}, so transpose(1, 2, 0) it")
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (1, 3, 4)):
        raise _no_image(source, name, f"expected {expected}")
    if values.size == 0:
        raise _no_image(source, name, "expected pixels")
    return values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values


def _eight_bits(values: Array, source: Array | Tensor, name: str) -> Array:
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool and values.ndim == 2:
        return values.astype(np.uint8) * np.uint8(255)
    _check_floats(values, source, name)
    return (values * values.dtype.type(255) + values.dtype.type(0.5)).astype(np.uint8)


def _check_floats(values: Array, source: Array | Tensor, name: str) -> None:
    """Refuse what are no floats from 0 to 1."""
    expected = "expected uint8, or float from 0 to 1"
    if values.dtype.kind != "f":
        raise _no_image(source, name, f"{expected}, so convert it with its own scale in mind")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return
    if low >= -1 and high <= 1:
        raise _no_image(source, name, f"{expected}, so map it by (x + 1) / 2")
    if low >= 0 and high <= 255:
        raise _no_image(source, name, f"{expected}, so divide it by 255")
    raise _no_image(source, name, expected)


def _no_image(source: Array | Tensor, name: str, what: str) -> ImageError:
    values = _numpy(source, name)
    kind = str(source.dtype).removeprefix("torch.")
    span = f" and values from {values.min():g} to {values.max():g}" if values.size else ""
    return ImageError(f"{name} has shape {list(values.shape)}, type {kind}{span}; {what}.")

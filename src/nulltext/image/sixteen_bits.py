"""Colours of 16 bits a channel, which Pillow decodes and encodes at 8.

Reading: Pillow's unpackers of 16-bit colours take the byte at one end of every sample, the high one
by the name of the file's byte order; by the name of the other order they take the low one. So the
file is decoded twice.

Writing: a PNG's header, profile, text and EXIF are Pillow's, its pixels are put in here. A row of
a TIFF of W pixels of 16 bits is one of 2 W pixels of 8 bits, so the TIFF is Pillow's but for what
its header says of width and depth.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from nulltext.errors import ImageError

Deep: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint16]]
"""[H, W, 3] or, with opacity, [H, W, 4]; 0 to 65535."""

LEVELS = 0xFFFF
PER_LEVEL = 257
"""Values of 16 bits to one of 8: 65535 / 255."""
ROWS = 256
"""Rows of a PNG that are compressed at a time."""
_FOREIGN = "16B" if sys.byteorder == "little" else "16L"
_OTHER_END = {"16B": "16L", "16L": "16B", "16N": _FOREIGN}
_READ = [f"{mode};{order}" for mode in ("RGB", "RGBA") for order in _OTHER_END]
"""Packings that are read at 16 bits; grey needs no help."""
_TIFF_SHORT, _TIFF_ENTRY = 3, 12
_IMAGE_WIDTH, _BITS_PER_SAMPLE = 256, 258
_PLANAR_CONFIGURATION, _PLANES = 284, 2


def packing_of(image: Image.Image) -> str:
    """Pillow's name of how pixels lie in a file that is not decoded yet; "" for none."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    given: Any = tiles[0].args if hasattr(tiles[0], "args") else tiles[0][3]
    first, *rest = given if isinstance(given, tuple) else (given,)
    if tiles[0][0].startswith("ppm") and rest and rest[0] > 255:  # (mode, greatest value)
        return f"{first};16"
    return str(first)


def in_planes(image: Image.Image) -> bool:
    """Whether a file is a TIFF of one plane for each channel (TIFF 6.0, sec. 8)."""
    return bool(getattr(image, "tag_v2", {}).get(_PLANAR_CONFIGURATION) == _PLANES)


def is_deep(packing: str) -> bool:
    """Whether a channel takes more than 8 bits."""
    return ";16" in packing or packing.startswith("I") or packing.startswith("F")


def deep_of(
    upright: Image.Image,
    packing: str,
    turned: Callable[[Image.Image], Image.Image],
    reopen: Callable[[], Image.Image] | None,
) -> Deep | None:
    """The 16 bits of a photo; None where it has 8, or cannot be decoded at 16.

    Args:
        upright: decoded, grey still of mode I or I;16*, and turned.
        packing: see `packing_of`. turned: turns a decoded image. reopen: opens the file once more;
            None for an image in memory.
    """
    if upright.mode.startswith("I"):
        grey = np.asarray(upright).astype(np.uint16)
        return np.repeat(grey[..., None], 3, axis=2)
    if packing not in _READ or reopen is None:
        return None
    with reopen() as again:
        if in_planes(again):  # whose unpackers cannot be chosen
            return None
        values = np.asarray(upright).astype(np.uint16)
        values <<= 8
        values |= np.asarray(turned(_low_bytes(again, packing)))
    return values


def opaque_but(values: Deep, colour: tuple[int, ...]) -> Image.Image:
    """The opacity, mode L, of colours [H, W, 3] one of which is transparent."""
    return Image.fromarray(np.where((values == colour).all(axis=2), 0, 255).astype(np.uint8))


def with_opacity(values: Deep | None, alpha: Image.Image | None) -> Deep | None:
    """Add the opacity at 8 bits to colours that have none of their own."""
    if values is None or alpha is None or values.shape[2] > 3:
        return values
    opacity = np.asarray(alpha).astype(np.uint16) * np.uint16(PER_LEVEL)
    return np.concatenate([values, opacity[..., None]], axis=2)


def _low_bytes(image: Any, packing: str) -> Image.Image:
    """Decode the less significant bytes of a file's samples in place of the others."""
    other = packing[:-3] + _OTHER_END[packing[-3:]]
    image.tile = [
        tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
        for tile in image.tile
    ]
    image.load()
    return image


def to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Mode I or I;16* with values 0..65535 to L, round(v / 257); LA if one value is transparent."""
    values = np.asarray(image)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 0xFFFF:
        raise ImageError(
            f"{name} has grey values from {lowest} to {highest}, expected 0 to 65535: convert it"
            " to 16-bit PNG."
        )
    grey = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def png_of(values: Deep, template: bytes) -> bytes:
    """A PNG with the chunks of another (of mode RGB or RGBA) but the pixels of this."""
    height, width, bands = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if bands == 3 else 6, 0, 0, 0)
    parts, at = [template[:8]], 8
    while at < len(template):
        (length,), kind = struct.unpack(">I", template[at : at + 4]), template[at + 4 : at + 8]
        whole = template[at : at + 12 + length]
        at += 12 + length
        if kind == b"IHDR":
            whole = _chunk(kind, header)
        elif kind == b"IDAT":
            whole = b"".join(_chunk(kind, data) for data in _compressed(values) if data)
        parts.append(whole)
    return b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _compressed(values: Deep) -> Iterator[bytes]:
    """Rows under PNG's filter 1: each byte less the one of the pixel before."""
    packer = zlib.compressobj(6, strategy=zlib.Z_RLE)
    height, width, bands = values.shape
    for first in range(0, height, ROWS):
        samples = values[first : first + ROWS].astype(">u2").view(np.uint8)
        rows = samples.reshape(-1, width, 2 * bands)
        filtered = rows.copy()
        filtered[:, 1:] -= rows[:, :-1]
        lines = filtered.reshape(len(rows), -1)
        marked = np.concatenate([np.ones((len(rows), 1), np.uint8), lines], axis=1)
        yield packer.compress(marked.tobytes())
    yield packer.flush()


def tiff_of(values: Deep, **options: Any) -> bytes:
    """An uncompressed TIFF.

    Args:
        options: Pillow's, such as `icc_profile`.
    """
    height, width, bands = values.shape
    samples = values.astype("<u2").tobytes()
    wide = Image.frombytes("RGB" if bands == 3 else "RGBA", (2 * width, height), samples)
    file = io.BytesIO()
    wide.save(file, "TIFF", **options)
    data = bytearray(file.getvalue())
    at = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, at)[0]):
        place = at + 2 + _TIFF_ENTRY * entry
        tag, kind, count, value = struct.unpack_from("<HHII", data, place)
        if tag == _IMAGE_WIDTH:
            struct.pack_into("<H" if kind == _TIFF_SHORT else "<I", data, place + 8, width)
        elif tag == _BITS_PER_SAMPLE:
            struct.pack_into(f"<{count}H", data, value, *[16] * count)
    return bytes(data)

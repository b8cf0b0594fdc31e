"""Pictures for the tests: noise, hand-made PNG files, and what reading one may answer."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms
from torch import Tensor

from nulltext.constants import Detail
from nulltext.errors import ImageError
from nulltext.image.bands import finish
from nulltext.image.compositing import Weight, composite_bands, shown_bands
from nulltext.image.images import CropBox
from nulltext.image.photos import Photo, load_photo
from nulltext.image.saving import Picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape: int, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(0, info.max, shape, dtype, endpoint=True)


def pixels(image: Image.Image | None) -> np.ndarray:
    assert image is not None
    return np.asarray(image).astype(int)


def composited(
    photo: Photo,
    box: CropBox,
    edit: Tensor,
    reconstruction: Tensor,
    weight: Tensor,
    detail: Detail = "auto",
) -> Picture:
    """As `composite`, at 16 bits as well where the photo has them."""
    height, width = weight.shape
    where = Weight([weight], CropBox(0, 0, width, height), (width, height))
    shown = finish(shown_bands(where))
    return finish(composite_bands(photo, box, edit, reconstruction, where, shown, detail))


def refuses(source: object, *words: str, error: type[Exception] = ImageError) -> str:
    """Loading fails with one sentence that names the file and holds every word."""
    with pytest.raises(error) as caught:
        load_photo(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    if not isinstance(source, Image.Image):
        assert str(source) in message
    for word in words:
        assert word in message
    return message


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), *(png_chunk(*c) for c in chunks), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def file_pixels(name):
    """The pixels of a file."""
    with Image.open(name) as picture:
        return np.asarray(picture)


STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda u: u,
    2: lambda u: u[:, ::-1],
    3: lambda u: u[::-1, ::-1],
    4: lambda u: u[::-1],
    5: lambda u: u.swapaxes(0, 1),
    6: lambda u: u.swapaxes(0, 1)[::-1],
    7: lambda u: u.swapaxes(0, 1)[::-1, ::-1],
    8: lambda u: u.swapaxes(0, 1)[:, ::-1],
}

"""Write pictures, at 8 bits a channel, or at 16 in PNG and TIFF.

Pillow writes colours at 8 bits. A PNG of 16 bits has Pillow's header, profile, text and EXIF and
its own pixels. A row of a TIFF of W pixels of 16 bits is one of 2 W pixels of 8 bits, so a TIFF of
16 bits is Pillow's with another width and depth in its header.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from nulltext.errors import OptionError
from nulltext.image.opening import large_pictures
from nulltext.image.photos import PER_LEVEL, Deep, over_white
from nulltext.storage.files import check_target, output_error, replace_file

_FORMATS = {
    **{".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"},
    **{".tif": "TIFF", ".tiff": "TIFF"},
}
_DEEP_FORMATS = ("PNG", "TIFF")
_COMPRESSED_ROWS = 256
_TIFF_SHORT, _TIFF_ENTRY = 3, 12
_IMAGE_WIDTH, _BITS_PER_SAMPLE = 256, 258


@dataclass(frozen=True)
class Picture:
    """Pixels that are to be written, or were read back."""

    image: Image.Image
    """Mode RGB or RGBA."""
    deep: Deep | None = None
    """The same at 16 bits a channel; None where there are 8."""
    alpha: Image.Image | None = None
    """Mode L: the opacity of an RGB image; None if it has none, or its own."""

    @property
    def bands(self) -> int:
        return 4 if self.alpha is not None or self.image.mode == "RGBA" else 3

    def rows(self, rows: slice, bands: int, *, deep: bool) -> np.ndarray[Any, Any]:
        """Return [rows, width, bands], uint8, or uint16 if `deep`; opaque without an alpha."""
        if deep and self.deep is not None:
            parts = [self.deep[rows]]
        else:
            images = [self.image, *([] if self.alpha is None else [self.alpha])]
            edges = (0, rows.start, self.image.width, rows.stop)
            parts = [np.atleast_3d(np.asarray(image.crop(edges))) for image in images]
            if deep:
                parts = [part * np.uint16(PER_LEVEL) for part in parts]
        if sum(part.shape[2] for part in parts) < bands:
            parts.append(np.full_like(parts[0][..., :1], np.iinfo(parts[0].dtype).max))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def check_writable(path: str | Path) -> None:
    """Raise OptionError or OutputError now if `save_image` could not write; leave no trace."""
    _format(path)
    check_target(path)


def save_image(
    image: Image.Image,
    path: str | Path,
    *,
    icc_profile: bytes | None = None,
    text: dict[str, str] | None = None,
) -> None:
    """Write a picture in the format that the file's name asks for, whole or not at all.

    PNG, TIFF and WebP (lossless) keep every pixel. JPEG has quality 95, no chroma subsampling, and
    no alpha: it is shown over white. `text` goes into PNG only.
    """
    replace_file(path, encode(Picture(image), path, icc_profile=icc_profile, text=text))


def encode(
    picture: Picture,
    path: str | Path,
    *,
    icc_profile: bytes | None = None,
    text: dict[str, str] | None = None,
    exif: bytes | None = None,
    coding: Mapping[str, Any] | None = None,
) -> bytes:
    """Build the whole file in memory: Pillow's own writing to disk misses a short write.

    Args:
        path: says the format; 16 bits a channel go into PNG and TIFF.
        text: keys and values of a PNG.
        coding: options of a JPEG, see `Photo.coding`.
    """
    kind = _format(path)
    metadata = {"icc_profile": icc_profile} | ({} if exif is None else {"exif": exif})
    try:
        return _encode(picture, kind, metadata, text or {}, coding)
    except (OSError, ValueError) as error:  # ValueError: an encoder refuses the image's size
        raise output_error(path, error) from error


def read_back(picture: Picture, path: str | Path, data: bytes) -> Picture:
    """Return the pixels of an encoded file; the picture itself if nothing was lost."""
    kind = _format(path)
    if kind == "JPEG":
        with large_pictures(), Image.open(io.BytesIO(data), formats=[kind]) as image:
            image.load()
            return Picture(image)
    if picture.deep is not None and kind not in _DEEP_FORMATS:
        return Picture(picture.image)
    return picture


def _format(path: str | Path) -> str:
    kind = _FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        raise OptionError(
            f"'{path}' does not say which format to write: end the name in one of"
            f" {', '.join(_FORMATS)}."
        )
    return kind


def _encode(
    picture: Picture,
    kind: str,
    metadata: dict[str, Any],
    text: dict[str, str],
    coding: Mapping[str, Any] | None,
) -> bytes:
    image, deep = picture.image, picture.deep if kind in _DEEP_FORMATS else None
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if kind == "TIFF":
        return encoded(image, kind, **metadata) if deep is None else _tiff(deep, metadata)
    if kind == "JPEG":
        if image.mode == "RGBA":
            image = over_white(image, image.getchannel("A"))
        how = {"quality": 95, "subsampling": 0} if coding is None else coding
        return encoded(image, kind, **how, **metadata)
    if kind == "WEBP":
        # Less effort than the default: 3 to 4 times faster, files as large.
        return encoded(image, kind, lossless=True, exact=True, method=1, quality=50, **metadata)
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)  # tEXt; Pillow takes iTXt for what is not Latin-1
    # Run lengths beside PNG's filters: 6 times faster than the default, and smaller on photos.
    options = {"pnginfo": chunks, "compress_type": zlib.Z_RLE, **metadata}
    if deep is None:
        return encoded(image, kind, **options)
    return _png(deep, encoded(image.crop((0, 0, 1, 1)), kind, **options))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _png(values: Deep, template: bytes) -> bytes:
    """Build a PNG with the chunks of another (of mode RGB or RGBA) but these pixels."""
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
    """Compress rows under PNG's filter 1: each byte less the one of the pixel before."""
    packer = zlib.compressobj(6, strategy=zlib.Z_RLE)
    height, width, bands = values.shape
    for first in range(0, height, _COMPRESSED_ROWS):
        samples = values[first : first + _COMPRESSED_ROWS].astype(">u2").view(np.uint8)
        rows = samples.reshape(-1, width, 2 * bands)
        filtered = rows.copy()
        filtered[:, 1:] -= rows[:, :-1]
        lines = filtered.reshape(len(rows), -1)
        marked = np.concatenate([np.ones((len(rows), 1), np.uint8), lines], axis=1)
        yield packer.compress(marked.tobytes())
    yield packer.flush()


def _tiff(values: Deep, metadata: dict[str, Any]) -> bytes:
    height, width, bands = values.shape
    samples = values.astype("<u2").tobytes()
    wide = Image.frombytes("RGB" if bands == 3 else "RGBA", (2 * width, height), samples)
    data = bytearray(encoded(wide, "TIFF", **metadata))
    at = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, at)[0]):
        place = at + 2 + _TIFF_ENTRY * entry
        tag, kind, count, value = struct.unpack_from("<HHII", data, place)
        if tag == _IMAGE_WIDTH:
            struct.pack_into("<H" if kind == _TIFF_SHORT else "<I", data, place + 8, width)
        elif tag == _BITS_PER_SAMPLE:
            struct.pack_into(f"<{count}H", data, value, *[16] * count)
    return bytes(data)

"""Write pictures, at 8 bits a channel, or at 16 in PNG and TIFF.

Pillow writes colours at 8 bits, and a picture in one go. A PNG has Pillow's header, profile, text
and EXIF, and pixels that are compressed here: in bands of rows, between which it can be stopped, at
8 or 16 bits. A row of a TIFF of W pixels of 16 bits is one of 2 W pixels of 8 bits, so a TIFF of
16 bits is Pillow's with another width and depth in its header.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from nulltext.errors import OptionError
from nulltext.image.bands import Bands, RowsDone, finish, row_slices
from nulltext.image.metadata import photoshop_segment
from nulltext.image.opening import large_pictures
from nulltext.image.photos import PER_LEVEL, Deep, over_white
from nulltext.storage.files import check_target, output_error, replace_file

QUALITY = 95
"""Of a JPEG, from 1 to 100, where neither a photo nor a person says another."""

FORMATS = {
    **{".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"},
    **{".tif": "TIFF", ".tiff": "TIFF"},
}
"""Formats by the ends of files' names, as Pillow calls them."""
_DEEP_FORMATS = ("PNG", "TIFF")
_PAETH = 4
"""PNG's filter 4: each byte less what the ones to the left, above, and between let expect; of the
filters, that with the smallest files on photos."""
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
"""PNG's numbers of grey, RGB and RGBA, by their channels."""
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
    xmp: bytes | None = None,
    iptc: bytes | None = None,
    coding: Mapping[str, Any] | None = None,
) -> bytes | bytearray:
    """Build the whole file in memory: Pillow's own writing to disk misses a short write.

    Args:
        path: says the format; 16 bits a channel go into PNG and TIFF.
        text: keys and values of a PNG.
        xmp: a packet. iptc: records, for JPEG and TIFF.
        coding: options of a JPEG, see `Photo.coding`.
    """
    bands = encode_bands(
        picture,
        path,
        icc_profile=icc_profile,
        text=text,
        exif=exif,
        xmp=xmp,
        iptc=iptc,
        coding=coding,
    )
    return finish(bands)


def encode_bands(
    picture: Picture,
    path: str | Path,
    *,
    icc_profile: bytes | None = None,
    text: dict[str, str] | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
    iptc: bytes | None = None,
    coding: Mapping[str, Any] | None = None,
) -> Bands[bytes | bytearray]:
    """Do the same as `encode`, a PNG in bands and other formats in one."""
    kind = _format(path)
    metadata = {"icc_profile": icc_profile, **_told(kind, exif, xmp, iptc)}
    try:
        return (yield from _encode_bands(picture, kind, metadata, text or {}, coding))
    except (OSError, ValueError) as error:  # ValueError: an encoder refuses the image's size
        raise output_error(path, error) from error


def _told(kind: str, exif: bytes | None, xmp: bytes | None, iptc: bytes | None) -> dict[str, Any]:
    """Return Pillow's options that write EXIF, XMP and IPTC."""
    if kind == "TIFF":  # where all three are tags of one directory
        tags = Image.Exif()
        if exif is not None:
            tags.load(exif)
        for tag, data in ((TiffImagePlugin.XMP, xmp), (TiffImagePlugin.IPTC_NAA_CHUNK, iptc)):
            if data is not None:
                tags[tag] = data
        return {"exif": tags}
    told: dict[str, Any] = {"exif": exif, "xmp": xmp}
    if kind == "JPEG" and iptc is not None:
        told["extra"] = photoshop_segment(iptc)
    return {name: data for name, data in told.items() if data is not None}


def coding_of(quality: int) -> dict[str, Any]:
    """Return Pillow's options of a JPEG of a quality from 1 to 100, with colours in full."""
    return {"quality": quality, "subsampling": 0}


def is_jpeg(path: str | Path) -> bool:
    """Whether a file's name asks for JPEG."""
    return _format(path) == "JPEG"


def read_back(picture: Picture, path: str | Path, data: bytes | bytearray) -> Picture:
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
    kind = FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        raise OptionError(
            f"'{path}' does not say which format to write: end the name in one of"
            f" {', '.join(FORMATS)}."
        )
    return kind


def _encode_bands(
    picture: Picture,
    kind: str,
    metadata: dict[str, Any],
    text: dict[str, str],
    coding: Mapping[str, Any] | None,
) -> Bands[bytes | bytearray]:
    image, deep = picture.image, picture.deep if kind in _DEEP_FORMATS else None
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if kind == "PNG":
        chunks, packet = PngImagePlugin.PngInfo(), metadata.pop("xmp", None)
        if packet is not None:
            chunks.add_itxt("XML:com.adobe.xmp", packet.decode())
        for key, value in text.items():
            chunks.add_text(key, value)  # tEXt; Pillow takes iTXt for what is not Latin-1
        template = encoded(image.crop((0, 0, 1, 1)), kind, pnginfo=chunks, **metadata)
        return (yield from _png_bands(Picture(image, deep), template))
    if kind == "TIFF":
        data = encoded(image, kind, **metadata) if deep is None else _tiff(deep, metadata)
    elif kind == "JPEG":
        if image.mode == "RGBA":
            image = over_white(image, image.getchannel("A"))
        how = coding_of(QUALITY) if coding is None else coding
        data = encoded(image, kind, **how, **metadata)
    else:
        # Less effort than the default: 3 to 4 times faster, files as large.
        how = {"lossless": True, "exact": True, "method": 1, "quality": 50}
        data = encoded(image, kind, **how, **metadata)
    yield RowsDone(image.height, image.height)
    return data


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _png_bands(picture: Picture, template: bytes) -> Bands[bytearray]:
    """Build a PNG with the chunks of another but these pixels."""
    image, deep = picture.image, picture.deep
    channels = len(image.getbands()) if deep is None else deep.shape[2]
    depth = 8 if deep is None else 16
    kinds = (depth, _COLOUR_TYPES[channels], 0, 0, 0)
    result, at = bytearray(template[:8]), 8
    while at < len(template):
        (length,), kind = struct.unpack(">I", template[at : at + 4]), template[at + 4 : at + 8]
        whole = template[at : at + 12 + length]
        at += 12 + length
        if kind == b"IHDR":
            result += _chunk(kind, struct.pack(">IIBBBBB", *image.size, *kinds))
        elif kind == b"IDAT":
            yield from _add_pixels(result, picture, channels, deep=deep is not None)
        else:
            result += whole
    return result


def _add_pixels(result: bytearray, picture: Picture, channels: int, *, deep: bool) -> Bands[None]:
    """Add a picture's rows, filtered and compressed."""
    # Run lengths beside the filter: 6 times faster than the default, and smaller on photos.
    packer = zlib.compressobj(6, strategy=zlib.Z_RLE)
    width, height = picture.image.size
    above = np.zeros((1, width, channels * (2 if deep else 1)), np.uint8)
    for rows in row_slices(0, height, width):
        values = picture.rows(rows, channels, deep=deep)
        samples = values.astype(">u2").view(np.uint8) if deep else values
        samples = samples.reshape(len(values), *above.shape[1:])
        data = packer.compress(_filtered(samples, above))
        result += _chunk(b"IDAT", data) if data else b""
        above = samples[-1:]
        yield RowsDone(rows.stop, height)
    result += _chunk(b"IDAT", packer.flush())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _filtered(samples: np.ndarray[Any, Any], above: np.ndarray[Any, Any]) -> bytes:
    """Apply PNG's filter 4 to [n, width, bytes of a pixel] below a row: PNG 1.2, sec. 6.6."""
    up = np.concatenate([above, samples[:-1]]).astype(np.int16)
    left, between = np.zeros_like(up), np.zeros_like(up)
    left[:, 1:], between[:, 1:] = samples[:, :-1], up[:, :-1]
    by_left, by_up = np.abs(up - between), np.abs(left - between)
    by_between = np.abs(left + up - 2 * between)
    nearest = np.where(by_up <= by_between, up, between)
    nearest = np.where((by_left <= by_up) & (by_left <= by_between), left, nearest)
    marked = np.empty((len(samples), 1 + samples[0].size), np.uint8)
    marked[:, 0] = _PAETH
    marked[:, 1:] = (samples - nearest.astype(np.uint8)).reshape(len(samples), -1)
    return marked.tobytes()


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

"""What is carried from a photo's file into what is made from it, beside pixels and ICC profile.

Of EXIF, who took it, when and with what is kept. The orientation is not, since pixels are upright;
nor are the thumbnail, which shows the old picture, and the maker's note, whose offsets and previews
hold in the old file alone. The position is kept beside, and written only where that is asked for.
XMP and IPTC are not read.

Of JPEG, its quantisation tables: where nothing was changed, a picture loses little if it is
compressed as it was before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image, JpegImagePlugin

from nulltext.version import __version__

Base, Block = ExifTags.Base, ExifTags.IFD

MOST_BYTES = 4096
"""Longest value that is carried; JPEG has room for 64 KiB in all."""
MOST_IN_ALL = 60_000

_ABOUT = (
    *(Base.ImageDescription, Base.Make, Base.Model, Base.DateTime, Base.Artist, Base.Copyright),
    *(Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject, Base.Rating),
)
"""Of the main block, whose other tags say how the old file is laid out."""
_STALE = (
    *(Base.MakerNote, Base.ExifInteroperabilityOffset),
    *(Base.ExifImageWidth, Base.ExifImageHeight),
)


def kept_exif(image: Image.Image) -> bytes | None:
    """What is worth carrying, position included; None for nothing. Damaged values are left out.

    Args:
        image: decoded (a PNG is, to find the block), and its file still open.
    """
    result = Image.Exif()
    with contextlib.suppress(Exception):  # whichever way the parser fails, the pixels are good
        found = image.getexif()
        _fill(result, {tag: found[tag] for tag in _ABOUT if tag in found})
        for block in (Block.Exif, Block.GPSInfo):
            with contextlib.suppress(Exception):
                inner = found.get_ifd(block)
                _fill(result.get_ifd(block), {t: inner[t] for t in inner if t not in _STALE})
    written = _bytes_of(result)
    anything = len(result) > 0 or any(result.get_ifd(b) for b in (Block.Exif, Block.GPSInfo))
    return written if anything and len(written) <= MOST_IN_ALL else None


def _fill(target: Any, values: Mapping[int, Any]) -> None:
    """Add those values that can be written."""
    for tag, value in values.items():
        alone = Image.Exif()
        alone[tag] = value
        if 0 < len(_bytes_of(alone)) <= MOST_BYTES:
            target[tag] = value


def _bytes_of(exif: Image.Exif) -> bytes:
    """The block as a file holds it; empty if it cannot be written."""
    try:
        return exif.tobytes()
    except Exception:  # a value of a type or range that its tag has not
        return b""


def exif_of_result(kept: bytes | None, size: tuple[int, int], *, gps: bool) -> bytes | None:
    """The block of an upright picture of `size` = (width, height).

    Args:
        kept: of `kept_exif`. gps: whether the position is written, too.
    """
    if kept is None:
        return None
    old, result = Image.Exif(), Image.Exif()
    old.load(kept)
    for tag in _ABOUT:
        if tag in old:
            result[tag] = old[tag]
    result[Base.Orientation] = 1
    result[Base.Software] = f"nulltext {__version__}"
    inner = result.get_ifd(Block.Exif)
    inner.update(old.get_ifd(Block.Exif))
    inner[Base.ExifImageWidth], inner[Base.ExifImageHeight] = size
    if gps:
        result.get_ifd(Block.GPSInfo).update(old.get_ifd(Block.GPSInfo))
    return result.tobytes()


def jpeg_coding(image: Image.Image) -> Mapping[str, Any] | None:
    """Options of Pillow's encoder that compress as a JPEG file was; None for other files.

    And for those of halved colour, which such pictures lose once more: full colour is closer then.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.mode != "RGB":
        return None
    if JpegImagePlugin.get_sampling(image) != 0 or not image.quantization:
        return None
    return {"qtables": image.quantization, "subsampling": 0}

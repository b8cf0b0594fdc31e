"""What is carried from a photo's file into what is made from it, beside pixels and ICC profile.

Of EXIF, those tags alone are kept that are listed here: when and how the picture was taken, with
which kinds of camera and lens, author and copyright. So comments, titles, serial numbers, owners
and tags of unknown meaning are not; nor is what holds of the old pixels alone (orientation,
thumbnail, maker's note, places in the picture). The position is kept beside, and written only where
that is asked for. XMP and IPTC are not read.

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

_ABOUT = (Base.Make, Base.Model, Base.DateTime, Base.Artist, Base.Copyright)
"""Of the main block."""
_TAKEN = (
    *(Base.ExifVersion, Base.ColorSpace, Base.Gamma, Base.FileSource, Base.SceneType),
    *(Base.DateTimeOriginal, Base.DateTimeDigitized),
    *(Base.OffsetTime, Base.OffsetTimeOriginal, Base.OffsetTimeDigitized),
    *(Base.SubsecTime, Base.SubsecTimeOriginal, Base.SubsecTimeDigitized),
    *(Base.ExposureTime, Base.ShutterSpeedValue, Base.FNumber, Base.ApertureValue),
    *(Base.MaxApertureValue, Base.BrightnessValue, Base.ExposureBiasValue, Base.ExposureIndex),
    *(Base.ExposureProgram, Base.ExposureMode, Base.MeteringMode, Base.SceneCaptureType),
    *(Base.ISOSpeedRatings, Base.SensitivityType, Base.StandardOutputSensitivity),
    *(Base.RecommendedExposureIndex, Base.ISOSpeed, Base.ISOSpeedLatitudeyyy),
    *(Base.ISOSpeedLatitudezzz, Base.SensingMethod, Base.GainControl),
    *(Base.FocalLength, Base.FocalLengthIn35mmFilm, Base.DigitalZoomRatio),
    *(Base.SubjectDistance, Base.SubjectDistanceRange, Base.Flash, Base.FlashEnergy),
    *(Base.LightSource, Base.WhiteBalance, Base.Contrast, Base.Saturation, Base.Sharpness),
    *(Base.CustomRendered, Base.LensSpecification, Base.LensMake, Base.LensModel),
)
"""Of the Exif block."""


def kept_exif(image: Image.Image) -> bytes | None:
    """What is worth carrying, position included; None for nothing. Damaged values are left out.

    Args:
        image: decoded (a PNG is, to find the block), and its file still open.
    """
    result = Image.Exif()
    with contextlib.suppress(Exception):  # whichever way the parser fails, the pixels are good
        found = image.getexif()
        _fill(result, {tag: found[tag] for tag in _ABOUT if tag in found})
        for block, wanted in ((Block.Exif, _TAKEN), (Block.GPSInfo, ExifTags.GPS)):
            with contextlib.suppress(Exception):
                inner = found.get_ifd(block)
                _fill(result.get_ifd(block), {tag: inner[tag] for tag in wanted if tag in inner})
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


def has_position(kept: bytes | None) -> bool:
    """Whether a block of `kept_exif` says where the photo was taken."""
    if kept is None:
        return False
    exif = Image.Exif()
    exif.load(kept)
    return ExifTags.GPS.GPSLatitude in exif.get_ifd(Block.GPSInfo)


def jpeg_coding(image: Image.Image) -> Mapping[str, Any] | None:
    """Options of Pillow's encoder that compress as a JPEG file was; None for other files.

    And for those of halved colour, which such pictures lose once more: full colour is closer then.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.mode != "RGB":
        return None
    tables = [image.quantization.get(layer[3]) for layer in image.layer]  # one for each component
    if JpegImagePlugin.get_sampling(image) != 0 or None in tables:
        return None
    return {"qtables": tables, "subsampling": 0, "keep_rgb": _is_coded_as_rgb(image)}


def _is_coded_as_rgb(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether a JPEG of three components holds red, green and blue, by libjpeg's rules."""
    if "jfif" in image.info:
        return False
    names = bytes(layer[0] for layer in image.layer)
    return bool(image.info.get("adobe_transform", 0 if names == b"RGB" else 1) == 0)

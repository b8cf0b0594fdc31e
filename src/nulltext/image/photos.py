"""A photo: upright RGB pixels, and what results keep of its file.

Values in 0..255 are left as they are, beside the ICC profile that gives them their meaning; the
model sees them in sRGB (`profiles`). Of 16
bits, grey is rounded to v / 257 and colour keeps its high byte (PPM: rounded, too): both reach from
0 to 255, and differ by less than one level; the 16 bits are kept beside them (`Photo.deep`).
Transparency is shown to the model over white and kept beside the colours. A photo's size is
(width, height) in pixels, as in Pillow.

Pillow's unpackers of 16-bit colours keep the high byte of each sample when they are chosen by the
file's byte order, and the low byte when chosen by the opposite order. So such files are decoded
twice.

Of EXIF, only the tags listed here are kept: when and how the picture was taken, the models of
camera and lens, author and copyright. Comments, titles, serial numbers, owners, tags of unknown
meaning, and what describes the old pixels alone (orientation, thumbnail, maker's note, places in
the picture) are dropped. The position is written only on request. For XMP and IPTC, see `metadata`.
Of JPEG, the quantisation tables are kept: an unchanged picture loses little if it is compressed as
before.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin

from nulltext.constants import __version__
from nulltext.errors import ImageError
from nulltext.image.metadata import Metadata, kept_metadata
from nulltext.image.opening import (
    MAX_PIXELS,
    ImageLike,
    OpenImage,
    decode_upright,
    has_planes,
    open_image,
    photo_array,
)
from nulltext.image.profiles import is_srgb, profile_of_grey
from nulltext.reprs import short_repr

Deep: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint16]]
"""Colours of 16 bits a channel: [H, W, 3] or, with opacity, [H, W, 4]; 0 to 65535."""
LEVELS = 0xFFFF
PER_LEVEL = 257
"""Values of 16 bits to one of 8: 65535 / 255."""
HASHED_ROWS = 256


@dataclass(frozen=True)
class Photo:
    """An upright photo, ready to be cropped."""

    image: Image.Image
    """Mode RGB, transparency composited over white."""
    alpha: Image.Image | None = None
    """Mode L, same size: the photo's opacity; None if it has none."""
    icc_profile: bytes | None = None
    """Meaning of the RGB numbers; written into outputs, so that they look like the photo."""
    path: Path | None = None
    """The file it came from; None for an image in memory."""
    straight: Image.Image | None = None
    """Mode RGB: colours before compositing; None without alpha."""
    bits: int = 8
    """Bits of a channel in the file: 8, 16, or what HEIC says."""
    deep: Deep | None = None
    """The colours at 16 bits, before compositing, and the opacity if there is any; None where the
    file has 8, or cannot be decoded at 16."""
    exif: bytes | None = None
    """The EXIF tags that are kept, position included."""
    metadata: Metadata = field(default_factory=Metadata, repr=False)
    """What is kept of XMP and IPTC, places included."""
    coding: Mapping[str, Any] | None = None
    """Options of Pillow's encoder that compress as the JPEG file was; None for other files, for
    halved colour resolution, which would be lost once more, and if the pixels were turned."""

    __repr__ = short_repr

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.size

    @cached_property
    def sha256(self) -> str:
        """Hex digest of "WIDTHxHEIGHT:" followed by the upright RGB bytes, row by row."""
        digest = hashlib.sha256(f"{self.image.width}x{self.image.height}:".encode())
        for top in range(0, self.image.height, HASHED_ROWS):
            rows = (0, top, self.image.width, min(top + HASHED_ROWS, self.image.height))
            digest.update(self.image.crop(rows).tobytes())
        return digest.hexdigest()

    @property
    def colours(self) -> str | None:
        """Hex digest of the profile through which the model sees the pixels; None for sRGB."""
        if self.icc_profile is None or is_srgb(self.icc_profile):
            return None
        return hashlib.sha256(self.icc_profile).hexdigest()


PhotoLike: TypeAlias = "Photo | ImageLike"
"""What `load_photo` takes."""


def load_photo(source: PhotoLike, *, max_pixels: int | None = None) -> Photo:
    """Read a photo of any common raster format, first frame, upright, as RGB.

    Args:
        source: a file (JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, AVIF; HEIC with the extra `heif`; an
            array saved as .npy), a PIL image, a numpy array ([H, W], [H, W, 3] or [H, W, 4]), a
            torch tensor ([H, W], [3, H, W] or [1, 3, H, W]), or a photo, which is returned. Arrays
            and tensors are uint8, or float in [0, 1].
        max_pixels: the most that are decoded; `MAX_PIXELS` by default.

    RGB and grey values are left as they are, beside their ICC profile. CMYK goes to sRGB through
    its profile where that is usable; 16-bit grey is divided by 257 and rounded.

    Raises:
        ImageError: the file cannot be read, or has more than `max_pixels` by its header.
    """
    if isinstance(source, Photo):
        return source
    most = MAX_PIXELS if max_pixels is None else max_pixels
    with open_image(source, most, photo_array) as opened:
        return _to_photo(opened, most)


def _to_photo(source: OpenImage, max_pixels: int) -> Photo:
    packing = _packing(source.image)
    upright = decode_upright(source, max_pixels)
    profile = source.image.info.get("icc_profile") or b""
    metadata = kept_metadata(source.image)
    exif = _kept_exif(source.image)
    if upright.mode == "CMYK":  # which becomes sRGB
        exif = exif_of_srgb(exif)
    deep = _sixteen_bits(source, upright, packing)
    colours, alpha = _to_rgb(upright, profile, source.name, deep)
    colours.info.clear()  # stale EXIF or transparency must not reach an output
    if deep is not None and alpha is not None and deep.shape[2] == 3:
        opacity = np.asarray(alpha).astype(np.uint16) * np.uint16(PER_LEVEL)
        deep = np.concatenate([deep, opacity[..., None]], axis=2)
    return Photo(
        colours if alpha is None else over_white(colours, alpha),
        alpha,
        _rgb_profile(profile),
        source.path,
        straight=None if alpha is None else colours,
        bits=_bits(source.image, packing),
        deep=deep,
        exif=exif,
        metadata=metadata,
        coding=_jpeg_coding(source.image) if upright is source.image else None,
    )


def _rgb_profile(profile: bytes) -> bytes | None:
    """Return the profile of RGB that a photo's own becomes; None where there is none."""
    space = profile[16:20]  # of the device
    if space == b"GRAY":
        return profile_of_grey(profile)
    return profile if space == b"RGB " else None


def over_white(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """Composite RGB or RGBA colours of opacity `alpha` (mode L, same size) over white, to RGB."""
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, mask=alpha)
    return white


def _to_rgb(
    image: Image.Image, profile: bytes, name: str, deep: Deep | None
) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours (RGB) and the opacity (L or None) of an image of any mode."""
    if image.mode == "F":
        raise ImageError(
            f"{name} has floating-point pixels (mode F), whose white level is unknown: convert it"
            " to 8-bit or 16-bit PNG."
        )
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image, profile), None
    if image.mode.startswith("I"):
        image = _grey_to_eight_bits(image, name)
    if image.mode == "La":  # premultiplied; Pillow only knows the way back to LA
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB"), None
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple):
        image = image.copy()
        if deep is not None:
            return image, _opaque_unless((deep == key).all(axis=2))
        if max(key) > 255:  # of 16 bits, whose low bytes are gone
            image.info["transparency"] = tuple(value >> 8 for value in key)
    rgba = image.convert("RGBA")
    return rgba.convert("RGB"), rgba.getchannel("A")


def _opaque_unless(transparent: np.ndarray[Any, Any]) -> Image.Image:
    return Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8))


def _cmyk_to_rgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert to sRGB through the embedded profile if it is usable, else by subtraction."""
    if profile[16:20] == b"CMYK":
        srgb = ImageCms.createProfile("sRGB")
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")


# --- 16 bits a channel ----------------------------------------------------------------------------

_OTHER_ORDER = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
_DEEP_PACKINGS = [f"{mode};{order}" for mode in ("RGB", "RGBA") for order in _OTHER_ORDER]
"""Packings that are decoded twice; grey is decoded at 16 bits by Pillow."""


def _packing(image: Image.Image) -> str:
    """Return Pillow's name of how pixels lie in a file that is not decoded yet; "" for none."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    given: Any = tiles[0].args if hasattr(tiles[0], "args") else tiles[0][3]
    first, *rest = given if isinstance(given, tuple) else (given,)
    if tiles[0][0].startswith("ppm") and rest and rest[0] > 255:  # (mode, greatest value)
        return f"{first};16"
    return str(first)


def _bits(image: Image.Image, packing: str) -> int:
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    kind = packing or image.mode
    return 16 if ";16" in kind or kind.startswith(("I", "F")) else 8


def _sixteen_bits(source: OpenImage, upright: Image.Image, packing: str) -> Deep | None:
    """Return a decoded photo's 16 bits; None where it has 8, or cannot be decoded at 16."""
    if upright.mode.startswith("I"):
        return np.repeat(np.asarray(upright).astype(np.uint16)[..., None], 3, axis=2)
    if packing not in _DEEP_PACKINGS or source.reopen is None:
        return None
    with source.reopen() as again:
        if has_planes(again):  # whose unpackers cannot be chosen
            return None
        values = np.asarray(upright).astype(np.uint16)
        values <<= 8
        values |= np.asarray(source.turned(_low_bytes(again, packing)))
    return values


def _low_bytes(image: Any, packing: str) -> Image.Image:
    """Decode the less significant bytes of a file's samples in place of the others."""
    other = packing[:-3] + _OTHER_ORDER[packing[-3:]]
    image.tile = [
        tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
        for tile in image.tile
    ]
    image.load()
    return image


def _grey_to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Round mode I or I;16* to L by v / 257; to LA if one value is transparent."""
    values = np.asarray(image)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > LEVELS:
        raise ImageError(
            f"{name} has grey values from {lowest} to {highest}, expected 0 to 65535: convert it"
            " to 16-bit PNG."
        )
    half = PER_LEVEL // 2
    grey = Image.fromarray(((values.astype(np.uint32) + half) // PER_LEVEL).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(_opaque_unless(values == transparent))
    return grey


# --- EXIF and JPEG coding -------------------------------------------------------------------------

_Tag, _Block = ExifTags.Base, ExifTags.IFD
_SRGB = 1
"""A value of ColorSpace (EXIF 3.0, 4.6.6.2)."""
_MAX_VALUE_BYTES = 4096
"""Longest value that is kept; JPEG has room for 64 KiB in all."""
_MAX_EXIF_BYTES = 60_000

_MAIN_TAGS = [_Tag.Make, _Tag.Model, _Tag.DateTime, _Tag.Artist, _Tag.Copyright]
_EXIF_NAMES = """
ExifVersion ColorSpace Gamma FileSource SceneType DateTimeOriginal DateTimeDigitized OffsetTime
OffsetTimeOriginal OffsetTimeDigitized SubsecTime SubsecTimeOriginal SubsecTimeDigitized
ExposureTime ShutterSpeedValue FNumber ApertureValue MaxApertureValue BrightnessValue
ExposureBiasValue ExposureIndex ExposureProgram ExposureMode MeteringMode SceneCaptureType
ISOSpeedRatings SensitivityType StandardOutputSensitivity RecommendedExposureIndex ISOSpeed
ISOSpeedLatitudeyyy ISOSpeedLatitudezzz SensingMethod GainControl FocalLength LensModel
FocalLengthIn35mmFilm DigitalZoomRatio SubjectDistance SubjectDistanceRange Flash FlashEnergy
LightSource WhiteBalance Contrast Saturation Sharpness CustomRendered LensSpecification LensMake
"""
_EXIF_TAGS = [_Tag[name] for name in _EXIF_NAMES.split()]


def _kept_exif(image: Image.Image) -> bytes | None:
    """Return the tags that are kept, without damaged values; None for none.

    Args:
        image: decoded (a PNG's block comes last), and its file still open.
    """
    result = Image.Exif()
    with contextlib.suppress(Exception):  # whichever way the parser fails, the pixels are good
        found = image.getexif()
        _copy_writable(found, result, _MAIN_TAGS)
        for block, tags in ((_Block.Exif, _EXIF_TAGS), (_Block.GPSInfo, [*ExifTags.GPS])):
            with contextlib.suppress(Exception):
                _copy_writable(found.get_ifd(block), result.get_ifd(block), tags)
    written = _exif_bytes(result)
    anything = len(result) > 0 or any(result.get_ifd(b) for b in (_Block.Exif, _Block.GPSInfo))
    return written if anything and len(written) <= _MAX_EXIF_BYTES else None


def _copy_writable(source: Any, target: Any, tags: list[Any]) -> None:
    for tag in tags:
        if tag in source:
            alone = Image.Exif()
            alone[tag] = source[tag]
            if 0 < len(_exif_bytes(alone)) <= _MAX_VALUE_BYTES:
                target[tag] = source[tag]


def _exif_bytes(exif: Image.Exif) -> bytes:
    try:
        return exif.tobytes()
    except Exception:  # a value of a type or range that its tag does not take
        return b""


def exif_of_result(kept: bytes | None, size: tuple[int, int], *, gps: bool) -> bytes | None:
    """Build the EXIF block of an upright result.

    Args:
        kept: the photo's `exif`. size: (width, height). gps: whether the position is written.
    """
    if kept is None:
        return None
    old, result = Image.Exif(), Image.Exif()
    old.load(kept)
    for tag in _MAIN_TAGS:
        if tag in old:
            result[tag] = old[tag]
    result[_Tag.Orientation] = 1
    result[_Tag.Software] = f"nulltext {__version__}"
    inner = result.get_ifd(_Block.Exif)
    inner.update(old.get_ifd(_Block.Exif))
    inner[_Tag.ExifImageWidth], inner[_Tag.ExifImageHeight] = size
    if gps:
        result.get_ifd(_Block.GPSInfo).update(old.get_ifd(_Block.GPSInfo))
    return result.tobytes()


def exif_of_srgb(kept: bytes | None) -> bytes | None:
    """Return a photo's `exif` for pixels that were converted to sRGB: no other is named in it."""
    if kept is None:
        return None
    exif = Image.Exif()
    exif.load(kept)
    inner = exif.get_ifd(_Block.Exif)
    if _Tag.ColorSpace in inner:
        inner[_Tag.ColorSpace] = _SRGB
    return exif.tobytes()


def has_position(kept: bytes | None) -> bool:
    if kept is None:
        return False
    exif = Image.Exif()
    exif.load(kept)
    return ExifTags.GPS.GPSLatitude in exif.get_ifd(_Block.GPSInfo)


def _jpeg_coding(image: Image.Image) -> Mapping[str, Any] | None:
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.mode != "RGB":
        return None
    tables = [image.quantization.get(layer[3]) for layer in image.layer]  # one for each component
    if JpegImagePlugin.get_sampling(image) != 0 or None in tables:
        return None
    # By libjpeg's rules, three components are RGB in a file without a JFIF marker whose Adobe
    # marker says so, or that has none and names them R, G and B.
    names = bytes(layer[0] for layer in image.layer)
    transform = image.info.get("adobe_transform", 0 if names == b"RGB" else 1)
    is_rgb = "jfif" not in image.info and transform == 0
    return {"qtables": tables, "subsampling": 0, "keep_rgb": is_rgb}

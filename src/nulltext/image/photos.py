"""A photo is upright RGB pixels, read from a file of any common raster format, or from an array.

Values in 0..255 are left as they are, beside the ICC profile that gives them their meaning. Of 16
bits, grey is rounded to v / 257 and colour keeps its high byte (PPM: rounded, too): both reach from
0 to 255, and differ by less than one level; the 16 bits are kept beside them (`Photo.deep`).
Transparency is shown to the model over white and kept beside the colours. A photo's size is
(width, height) in pixels, as in Pillow.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image, ImageCms

from nulltext.errors import ImageError
from nulltext.image.arrays import ImageLike
from nulltext.image.carried import jpeg_coding, kept_exif
from nulltext.image.open_images import MAX_PIXELS, OpenImage, decoded, opened
from nulltext.image.sixteen_bits import (
    Deep,
    deep_of,
    is_deep,
    opaque_but,
    packing_of,
    to_eight_bits,
    with_opacity,
)
from nulltext.reprs import short_repr

_STRIP = 256
"""Rows that are hashed at a time."""


PhotoLike: TypeAlias = "Photo | ImageLike"
"""What is taken for a photo; see `load_photo`."""


@dataclass(frozen=True)
class Photo:
    """An upright photo, ready to be cropped."""

    image: Image.Image
    """Mode RGB, upright, transparency composited over white."""
    alpha: Image.Image | None = None
    """Mode L, same size: the photo's opacity; None if it has none."""
    icc_profile: bytes | None = None
    """What the RGB numbers mean; written into the outputs so that they look like the photo."""
    path: Path | None = None
    """The file it came from; None for an image in memory."""
    straight: Image.Image | None = None
    """Mode RGB: colours before compositing, so that an edit keeps them; None without alpha."""
    bits: int = 8
    """Of a channel of the file: 8, 16, or what HEIC says."""
    deep: Deep | None = None
    """The colours at 16 bits, before compositing, and the opacity if there is any; None where the
    file has 8, or cannot be decoded at 16."""
    exif: bytes | None = None
    """What EXIF says of the photo, as `carried.kept_exif` returns it."""
    coding: Mapping[str, Any] | None = None
    """How a JPEG was compressed, see `carried.jpeg_coding`; None if its pixels were turned."""

    __repr__ = short_repr

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.size

    @cached_property
    def sha256(self) -> str:
        """Hex digest of "WIDTHxHEIGHT:" followed by the upright RGB bytes, row by row."""
        digest = hashlib.sha256(f"{self.image.width}x{self.image.height}:".encode())
        for top in range(0, self.image.height, _STRIP):
            rows = (0, top, self.image.width, min(top + _STRIP, self.image.height))
            digest.update(self.image.crop(rows).tobytes())
        return digest.hexdigest()


def load_photo(source: PhotoLike, *, max_pixels: int | None = None) -> Photo:
    """Read a photo of any common raster format, first frame, upright, as RGB.

    Args:
        source: a file (JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, AVIF; HEIC with the extra `heif`; an
            array saved as .npy), a PIL image, a numpy array ([H, W], [H, W, 3] or [H, W, 4]), a
            torch tensor ([H, W], [3, H, W] or [1, 3, H, W]), or a photo, which is returned. Arrays
            and tensors are uint8, or float in [0, 1].
        max_pixels: the most that are decoded; `MAX_PIXELS` by default.

    RGB values are left as they are, beside their ICC profile. CMYK goes to sRGB through its profile
    where that is usable, 16-bit grey is divided by 257 and rounded.

    Raises:
        ImageError: one sentence that names the file, for whatever cannot be read, or has more than
            `max_pixels`, which is seen before any of them is decoded.
    """
    if isinstance(source, Photo):
        return source
    most = MAX_PIXELS if max_pixels is None else max_pixels
    with opened(source, most) as found:
        return _to_photo(found, most)


def _to_photo(source: OpenImage, max_pixels: int) -> Photo:
    """Decode, split off the alpha, and keep what results carry on."""
    packing = packing_of(source.image)
    upright = decoded(source, max_pixels)
    profile = source.image.info.get("icc_profile") or b""
    deep = deep_of(upright, packing, source.turned, source.reopen)
    colours, alpha = _to_rgb(upright, profile, source.name, deep)
    colours.info.clear()  # stale EXIF or transparency must not reach an output
    return Photo(
        colours if alpha is None else over_white(colours, alpha),
        alpha,
        # Bytes 16..20 of an ICC profile name its colour space; the pixels are RGB from here on.
        profile if profile[16:20] == b"RGB " else None,
        source.path,
        straight=None if alpha is None else colours,
        bits=_bits_of(source.image, packing),
        deep=with_opacity(deep, alpha),
        exif=kept_exif(source.image),
        coding=jpeg_coding(source.image) if upright is source.image else None,
    )


def _bits_of(image: Image.Image, packing: str) -> int:
    """Of a channel of an image's file."""
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    return 16 if is_deep(packing or image.mode) else 8


def over_white(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """Composite RGB or RGBA colours of opacity `alpha` (mode L, same size) over white, to RGB."""
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, mask=alpha)
    return white


def _to_rgb(
    image: Image.Image, profile: bytes, name: str, deep: Deep | None
) -> tuple[Image.Image, Image.Image | None]:
    """(RGB, L or None): the colours and the opacity of an image of any mode.

    Args:
        deep: its colours at 16 bits, if they could be decoded.
    """
    if image.mode == "F":
        raise ImageError(
            f"{name} has floating-point pixels (mode F), whose white level is unknown: convert it"
            " to 8-bit or 16-bit PNG."
        )
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image, profile), None
    if image.mode.startswith("I"):
        image = to_eight_bits(image, name)
    if image.mode == "La":  # premultiplied; Pillow only knows the way back to LA
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB"), None
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple):
        image = image.copy()
        if deep is not None:
            return image, opaque_but(deep, key)
        if max(key) > 255:  # of 16 bits, whose low bytes are gone
            image.info["transparency"] = tuple(value >> 8 for value in key)
    rgba = image.convert("RGBA")
    return rgba.convert("RGB"), rgba.getchannel("A")


def _cmyk_to_rgb(image: Image.Image, profile: bytes) -> Image.Image:
    """To sRGB through the embedded profile where it is a usable CMYK one, else by subtraction."""
    if profile[16:20] == b"CMYK":
        srgb = ImageCms.createProfile("sRGB")
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")

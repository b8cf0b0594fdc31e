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
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from nulltext.arrays import NPY, Array, ImageLike, image_of, is_tensor, read_npy
from nulltext.carried import jpeg_coding, kept_exif
from nulltext.errors import ImageError, reason_of
from nulltext.picture_files import HEIC, check_regular_file, refuse_foreign, refuse_raw_tags
from nulltext.sixteen_bits import Deep, deep_of, is_deep, packing_of, to_eight_bits

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 200_000_000
"""Largest photo that is decoded, in pixels: the largest sensors of telephones. It takes 0.8 GB, and
twice that while it is read.
"""
MAX_TRANSPARENT = 48_000_000
"""The same with transparency, which takes up to three times the memory."""
BOMB_PIXELS, BOMB_RATIO, BOMB_GREY = 32_000_000, 2000, 120_000_000
"""A larger picture of more pixels per byte of its file than the second number is no photo, and not
even an empty sheet: what is left is a file made to fill memory. For greyscale, as in masks, the
third number takes the place of the first.
"""
MIN_SIDE = 8
"""Smallest side of a photo in pixels: one latent cell of Stable Diffusion's autoencoder."""

# Raster decoders only: EPS and PDF would start an interpreter. MPO is opened by the JPEG plugin.
_READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")
_TO_UPRIGHT = {  # EXIF 2.32, tag 0x0112: the value says how the stored pixels lie
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_STRIP = 256
"""Rows that are hashed at a time."""
_LIMIT = threading.Lock()


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
    """Of a channel of the file: 8 or 16."""
    deep: Deep | None = None
    """The colours at 16 bits, before compositing, and the opacity if there is any; None where the
    file has 8, or cannot be decoded at 16."""
    exif: bytes | None = None
    """What EXIF says of the photo, as `exif.kept_exif` returns it."""
    coding: Mapping[str, Any] | None = None
    """How a JPEG was compressed, see `carried.jpeg_coding`; None if its pixels were turned."""

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


@dataclass(frozen=True)
class OpenImage:
    """An image that may not be decoded yet."""

    image: Image.Image
    name: str
    """What messages call it."""
    path: Path | None = None
    """Its file, if it has one."""
    reopen: Callable[[], Image.Image] | None = None
    """Opens the file once more; None for what is not in an image's file."""

    def turned(self, stored: Image.Image) -> Image.Image:
        """Pixels as they are stored, turned upright."""
        method = _TO_UPRIGHT.get(_orientation(self.image))
        return stored if method is None else stored.transpose(method)


@contextlib.contextmanager
def opened(
    source: ImageLike,
    max_pixels: int,
    of_array: Callable[[Array | Tensor, str], Image.Image] = image_of,
) -> Iterator[OpenImage]:
    """An image as it is given, before any pixel is decoded.

    Args:
        of_array: what makes an image of an array.

    Raises:
        ImageError: what is given is no image, or the block meets damaged bytes.
    """
    if isinstance(source, Image.Image):
        with _decoder_errors("The given image"):
            yield OpenImage(source, "The given image")
        return
    if isinstance(source, np.ndarray) or is_tensor(source):
        name = "The given array" if isinstance(source, np.ndarray) else "The given tensor"
        yield OpenImage(of_array(source, name), name)  # type: ignore[arg-type]
        return
    if not isinstance(source, str | Path):
        raise ImageError(
            f"A {type(source).__name__} is no image: give a path, a PIL image, a numpy array or a"
            " tensor."
        )
    path, name = Path(source), f"'{source}'"
    with _decoder_errors(name):
        check_regular_file(path, name)
        with _Sized(path.open("rb", buffering=0)) as file:
            head = file.read(64)
            refuse_foreign(head, path.suffix, name)
            file.seek(0)
            if head.startswith(NPY):
                array = read_npy(file, path.stat().st_size, name, max_pixels)
                yield OpenImage(of_array(array, name), name, path)
                return

            def reopen() -> Image.Image:
                file.seek(0)
                return _open_heic(file, name) if HEIC.match(head) else _open(file)

            with reopen() as image:
                refuse_raw_tags(getattr(image, "tag_v2", None), name)
                yield OpenImage(image, name, path, reopen)


def _open(file: IO[bytes]) -> Image.Image:
    Image.init()  # registers the optional decoders, so that the list holds what there is
    with large_pictures():
        return Image.open(file, formats=[key for key in _READABLE if key in Image.OPEN])


def _open_heic(file: IO[bytes], name: str) -> Image.Image:
    """By its decoder, an extra."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ImageError(
            f"{name} is HEIC, whose decoder is not installed: pip install 'nulltext[heif]', or"
            " convert it to JPEG or PNG."
        ) from error
    image: Image.Image = HeifImageFile(file)
    return image


@contextlib.contextmanager
def large_pictures() -> Iterator[None]:
    """Let Pillow open or crop up to `MAX_PIXELS`, above its own limit, while the block runs."""
    with _LIMIT:
        usual = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


class _Sized(io.BufferedReader):
    """A file that is never asked for more bytes than are left, since room is made for all of them:
    decoders believe the lengths that damaged files claim."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


@contextlib.contextmanager
def _decoder_errors(name: str) -> Iterator[None]:
    """Turn whatever opening and decoding raises into an ImageError about `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MAX_PIXELS decides, not Pillow's bomb warning
            yield
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"{name} does not exist: check the path.") from error
    except PermissionError as error:
        raise ImageError(f"{name} may not be read: permission denied, so ask its owner.") from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, MAX_PIXELS) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image, or it is truncated or damaged: give a complete file of"
            f" {', '.join(_READABLE)} or HEIC."
        ) from error
    except Exception as error:  # decoders meet bad bytes with a dozen exception types
        raise ImageError(
            f"{name} cannot be read as an image: {reason_of(error)}; it may be truncated or"
            " damaged, so fetch or export it again."
        ) from error


def _too_large(name: str, most: int, what: str = "") -> ImageError:
    return ImageError(
        f"{name} claims more than {most:,} pixels{what}, the most that is read: shrink it first."
    )


def _check_size(image: Image.Image, name: str, path: Path | None, max_pixels: int) -> None:
    """Refuse by its header what would take too much memory, or would be too small."""
    width, height = image.size
    pixels = width * height
    if pixels > max_pixels:
        raise _too_large(name, max_pixels)
    if pixels > MAX_TRANSPARENT and image.has_transparency_data:
        raise _too_large(name, MAX_TRANSPARENT, " with transparency")
    size = pixels if path is None else path.stat().st_size
    most = BOMB_GREY if image.mode in ("1", "L") else BOMB_PIXELS
    if pixels > max(most, BOMB_RATIO * size):
        raise ImageError(
            f"{name} claims {pixels:,} pixels in {size:,} bytes, as no photo does: it may be "
            "damaged, or made to fill memory; a mask is read in greyscale."
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name} is {width} x {height} px: give a photo of at least {MIN_SIDE} px a side."
        )


def decoded(source: OpenImage, max_pixels: int) -> Image.Image:
    """Check the header's size, decode every pixel and turn them upright."""
    _check_size(source.image, source.name, source.path, max_pixels)
    source.image.load()
    return source.turned(source.image)


def _to_photo(source: OpenImage, max_pixels: int) -> Photo:
    """Decode, split off the alpha, and keep what results carry on."""
    packing = packing_of(source.image)
    upright = decoded(source, max_pixels)
    profile = source.image.info.get("icc_profile") or b""
    colours, alpha = _to_rgb(upright, profile, source.name)
    colours.info.clear()  # stale EXIF or transparency must not reach an output
    photo = Photo(
        colours if alpha is None else over_white(colours, alpha),
        alpha,
        # Bytes 16..20 of an ICC profile name its colour space; the pixels are RGB from here on.
        profile if profile[16:20] == b"RGB " else None,
        source.path,
        straight=None if alpha is None else colours,
        exif=kept_exif(source.image),
        coding=jpeg_coding(source.image) if upright is source.image else None,
    )
    if not is_deep(packing or source.image.mode):
        return photo
    deep = deep_of(upright, alpha, packing, source.turned, source.reopen)
    return replace(photo, bits=16, deep=deep)


def over_white(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """Composite RGB or RGBA colours of opacity `alpha` (mode L, same size) over white, to RGB."""
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, mask=alpha)
    return white


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or the block is damaged."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # whichever way the parser fails, the pixels are good
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(
    image: Image.Image, profile: bytes, name: str
) -> tuple[Image.Image, Image.Image | None]:
    """(RGB, L or None): the colours and the opacity of an image of any mode."""
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

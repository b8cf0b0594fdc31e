"""Open an image of any common raster format, an array or a tensor, and decode it upright.

Sizes are looked at before a pixel is decoded, and whatever a decoder raises becomes an
`ImageError`.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from nulltext.errors import ImageError, reason_of
from nulltext.image.arrays import NPY, Array, ImageLike, image_of, is_tensor, read_npy
from nulltext.image.picture_files import HEIC, check_regular_file, refuse_foreign, refuse_tiff

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
_LIMIT = threading.Lock()


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
    """Open an image without decoding its pixels.

    Args:
        of_array: what makes an image of an array.

    Raises:
        ImageError: what is given is no image, or the block meets damaged bytes.
    """
    if isinstance(source, Image.Image):
        with _decoder_errors("The given image"):
            refuse_tiff(source, "The given image")
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
                refuse_tiff(image, name)
                yield OpenImage(image, name, path, reopen)


def _open(file: IO[bytes]) -> Image.Image:
    Image.init()  # registers the optional decoders, so that the list holds what there is
    with large_pictures():
        return Image.open(file, formats=[key for key in _READABLE if key in Image.OPEN])


def _open_heic(file: IO[bytes], name: str) -> Image.Image:
    """Open a HEIC file with pillow-heif, an extra."""
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


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or the block is damaged."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # whichever way the parser fails, the pixels are good
        return 1
    return value if isinstance(value, int) else 1

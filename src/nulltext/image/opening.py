"""Open an image file, an array or a tensor, and decode it upright.

    numpy   [H, W] grey, [H, W, 3] RGB, [H, W, 4] RGBA
    torch   [H, W] grey, [1, H, W] grey, [3, H, W] RGB, [4, H, W] RGBA, or one of these in a batch
            of one

Values are uint8, or floats in [0, 1], which are rounded to the nearest of 256 levels; grey may be
bool or uint16 as well. Other values and other axes are refused, by name. Sizes are checked before a
pixel is decoded, and any exception of a decoder becomes an `ImageError`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import re
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from nulltext.errors import ImageError, reason_of, shorten
from nulltext.storage.untrusted import refuse_address

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
ImageLike: TypeAlias = "str | Path | Image.Image | Array | Tensor"
"""A file, a PIL image, a numpy array or a torch tensor, as in this module's table."""

MAX_PIXELS = 200_000_000
"""Largest photo that is decoded, in pixels: the largest sensors of telephones. It takes 0.8 GB, and
twice that while it is read."""
MAX_TRANSPARENT = 48_000_000
"""The same with transparency, which takes up to three times the memory."""
BOMB_PIXELS, BOMB_RATIO, BOMB_GREY = 32_000_000, 2000, 120_000_000
"""Pixels, and pixels per byte of the file, above both of which a picture is refused as a file made
to fill memory; the third number replaces the first for greyscale, as in masks."""
MIN_SIDE = 8
"""Smallest side of a photo in pixels: one latent cell of Stable Diffusion's autoencoder."""
CHANNELS = (1, 3, 4)

# Raster decoders only: EPS and PDF would start an interpreter. MPO is opened by the JPEG plugin.
_READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")
_NPY = b"\x93NUMPY"
_MAX_NPY_HEADER = 10_000
"""Bytes of a .npy file's description of its array, numpy's own limit."""
_HEIC = re.compile(rb"....ftyp(?:he[iv][cmsx]|(?:mif1|msf1)(?!.*avif))", re.DOTALL)
"""First bytes of a HEIC file; AVIF has the same container."""
_UPRIGHT = {  # EXIF 2.32, tag 0x0112: how the stored pixels lie
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PILLOW_LIMIT = threading.Lock()


@dataclass(frozen=True)
class OpenImage:
    """An image whose pixels may not be decoded yet."""

    image: Image.Image
    name: str
    """How messages call it."""
    path: Path | None = None
    reopen: Callable[[], Image.Image] | None = None
    """Opens the file once more; None for arrays and images in memory."""

    def turned(self, stored: Image.Image) -> Image.Image:
        try:
            method = _UPRIGHT.get(self.image.getexif().get(ExifTags.Base.Orientation, 1))
        except Exception:  # whichever way the parser fails, the pixels are good
            method = None
        return stored if method is None else stored.transpose(method)


@contextlib.contextmanager
def open_image(
    source: ImageLike,
    max_pixels: int,
    convert_array: Callable[[Array | Tensor, str], Image.Image],
) -> Iterator[OpenImage]:
    """Open an image without decoding its pixels.

    Args:
        convert_array: makes an image of an array or tensor: `photo_array` or `mask_array`.

    Raises:
        ImageError: the source is not an image, or the block meets damaged bytes.
    """
    if isinstance(source, Image.Image):
        with decoder_errors("The given image"):
            _refuse_tiff(source, "The given image")
            yield OpenImage(source, "The given image")
    elif isinstance(source, np.ndarray) or _is_tensor(source):
        name = "The given array" if isinstance(source, np.ndarray) else "The given tensor"
        yield OpenImage(convert_array(source, name), name)  # type: ignore[arg-type]
    elif not isinstance(source, str | Path):
        raise ImageError(
            f"A {type(source).__name__} is not an image: give a path, a PIL image, a numpy array"
            " or a tensor."
        )
    else:
        path, name = Path(source), f"'{source}'"
        with decoder_errors(name):
            _check_regular_file(path, name)
            with _BoundedReader(path.open("rb", buffering=0)) as file:
                head = file.read(64)
                _refuse_foreign(head, path.suffix.lower(), name)
                if head.startswith(_NPY):
                    array = _read_npy(file, name, max_pixels)
                    yield OpenImage(convert_array(array, name), name, path)
                    return

                def reopen() -> Image.Image:
                    file.seek(0)
                    return _open_heic(file, name) if _HEIC.match(head) else _open(file)

                with reopen() as image:
                    _refuse_tiff(image, name)
                    yield OpenImage(image, name, path, reopen)


def decode_upright(source: OpenImage, max_pixels: int) -> Image.Image:
    """Check the size that the header claims, decode every pixel and turn them upright."""
    _check_size(source, max_pixels)
    source.image.load()
    return source.turned(source.image)


@contextlib.contextmanager
def large_pictures() -> Iterator[None]:
    """Let Pillow open or crop up to `MAX_PIXELS`, above its own limit, while the block runs."""
    with _PILLOW_LIMIT:
        usual = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def _open(file: IO[bytes]) -> Image.Image:
    Image.init()  # registers the optional decoders, so that the list holds what there is
    with large_pictures():
        return Image.open(file, formats=[key for key in _READABLE if key in Image.OPEN])


def _open_heic(file: IO[bytes], name: str) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ImageError(
            f"{name} is HEIC, whose decoder is not installed: pip install 'nulltext[heif]', or"
            " convert it to JPEG or PNG."
        ) from error
    image: Image.Image = HeifImageFile(file)
    return image


class _BoundedReader(io.BufferedReader):
    """A file that is never asked for more bytes than are left.

    Decoders believe the lengths that damaged files claim, and Python makes room for all of them.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


@contextlib.contextmanager
def decoder_errors(name: str) -> Iterator[None]:
    """Turn any exception of a decoder into an ImageError of one sentence that names the file."""
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


def _check_size(source: OpenImage, max_pixels: int) -> None:
    image, name, path = source.image, source.name, source.path
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
            f"{name} claims {pixels:,} pixels in {size:,} bytes, more than a photo has: it may be "
            "damaged, or made to fill memory; a mask is read in greyscale."
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name} is {width} x {height} px: give a photo of at least {MIN_SIDE} px a side."
        )


# --- files that are not read ----------------------------------------------------------------------

_CONVERT = "convert it to JPEG or PNG"
_RAW = "export it from your camera's or RAW software as JPEG, PNG or TIFF"
_FOREIGN = {
    "PDF": (rb"%PDF", _CONVERT),
    "EPS": (rb"%!PS|\xc5\xd0\xd3\xc6", _CONVERT),
    "PSD": (rb"8BPS", _CONVERT),
    "a web page": (rb"(?i)\s*<(?:!doctype html|html)", "save the image that it shows"),
    "SVG": (rb"<svg|<\?xml", _CONVERT),
    "JPEG XL": (rb"\xff\x0a|\0\0\0\x0cJXL ", _CONVERT),
    "JPEG 2000": (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", _CONVERT),
    "OpenEXR": (rb"\x76\x2f\x31\x01", _CONVERT),
    "Radiance HDR": (rb"#\?R", _CONVERT),
    "a Git LFS pointer": (rb"version https://git-lfs", "fetch the file itself: git lfs pull"),
    "an archive": (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf", "unpack it and give one image of it"),
    "Canon RAW (CR2)": (rb"II\*\0....CR", _RAW),
    "Canon RAW (CR3)": (rb"....ftypcrx ", _RAW),
    "Fujifilm RAW (RAF)": (rb"FUJIFILMCCD-RAW", _RAW),
    "Olympus RAW (ORF)": (rb"IIR[OS]|MMOR", _RAW),
    "Panasonic RAW (RW2)": (rb"IIU\0", _RAW),
    "Minolta RAW (MRW)": (rb"\0MRM", _RAW),
    "Sigma RAW (X3F)": (rb"FOVb", _RAW),
    "a video": (
        rb"....ftyp(?:isom|iso[2-9]|mp4|M4V|qt  |3g[p2]|avc1|dash|MSNV)|....(?:moov|wide|mdat)"
        rb"|\x1a\x45\xdf\xa3|RIFF....AVI ",
        "save one of its frames as PNG",
    ),
}
_RAW_SUFFIXES = {
    "Nikon": ".nef .nrw",
    "Sony": ".arw .srf .sr2",
    "Canon": ".cr2",
    "a camera's": ".dng",
    "Pentax": ".pef",
    "Samsung": ".srw",
    "Hasselblad": ".3fr .fff",
    "Phase One": ".iiq",
    "Leica": ".rwl",
    "Epson": ".erf",
    "Kodak": ".kdc .dcr",
    "Mamiya": ".mef",
    "Leaf": ".mos",
}
"""RAW files that look like TIFF: Pillow would take the small preview for the photo."""
_TIFF = (b"II*\0", b"MM\0*")
_DNG_VERSION = 50706
"""The tag that every DNG has (DNG 1.7, ch. 4), whatever the file is called."""
_PLANAR_CONFIGURATION, _PLANES = 284, 2


def _check_regular_file(path: Path, name: str) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        refuse_address(path, ImageError)
        raise
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ImageError(f"{shorten(name)} is too long a name: check the path.") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name} is a folder: give the path of one image file.")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name} is not a regular file: save the image to disk first.")
    if status.st_size == 0:
        raise ImageError(f"{name} is empty (0 bytes): fetch or export it again.")


def _refuse_foreign(head: bytes, suffix: str, name: str) -> None:
    for kind, (magic, advice) in _FOREIGN.items():
        if re.match(magic, head, re.DOTALL):
            raise _not_read(name, kind, advice)
    for maker, suffixes in _RAW_SUFFIXES.items():
        if suffix in suffixes.split() and head.startswith(_TIFF):
            raise _not_read(name, f"{maker} RAW ({suffix[1:].upper()})", _RAW)


def _refuse_tiff(image: Image.Image, name: str) -> None:
    """Refuse a TIFF that Pillow decodes wrongly, by its tags: DNG, and planes of 16 bits."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    if _DNG_VERSION in tags:
        raise _not_read(name, "a camera's RAW (DNG)", _RAW)
    deepest = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    packed = tags.get(TiffImagePlugin.COMPRESSION, 1) != 1
    if has_planes(image) and deepest > 8 and not packed:
        kind = f"a TIFF of uncompressed planes of {deepest} bits"
        raise _not_read(name, kind, "save it with interleaved channels, or compressed")


def has_planes(image: Image.Image) -> bool:
    """Whether a file is a TIFF of one plane for each channel (TIFF 6.0, sec. 8)."""
    return bool(getattr(image, "tag_v2", {}).get(_PLANAR_CONFIGURATION) == _PLANES)


def _not_read(name: str, kind: str, advice: str) -> ImageError:
    return ImageError(f"{name} is {kind}, which is not read: {advice}.")


# --- arrays and tensors ---------------------------------------------------------------------------


def photo_array(source: Array | Tensor, name: str) -> Image.Image:
    """Make an image of mode L, I;16, RGB or RGBA from a photo's array or tensor."""
    values = _channels_last(source, name)
    if values.dtype == bool and values.ndim == 2:
        values = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype != np.uint8 and not (values.dtype == np.uint16 and values.ndim == 2):
        _check_floats(values, source, name)
        values = (values * values.dtype.type(255) + values.dtype.type(0.5)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))


def mask_array(source: Array | Tensor, name: str) -> Image.Image:
    """Make an image of mode L, I;16, I, F, RGB or RGBA from a mask's array or tensor.

    Takes any integer type beside the module's table, and keeps floats as they are.
    """
    plain = without_single_axes(_numpy(source, name))
    if plain.ndim == 3 and plain.dtype == bool:
        last = plain.shape[-1] < plain.shape[0]
        count, one = (plain.shape[-1], "masks[..., 0]") if last else (plain.shape[0], "masks[0]")
        raise _not_an_image(
            source, name, f"it holds {count} masks, so give one of them, such as {one}"
        )
    if plain.ndim != 2 or plain.dtype == bool or plain.size == 0:
        return photo_array(plain if plain.ndim == 2 else source, name)
    if plain.dtype.kind == "f":
        _check_floats(plain, source, name)
        return Image.fromarray(np.ascontiguousarray(plain, dtype=np.float32))
    low, high = int(plain.min()), int(plain.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        raise _not_an_image(source, name, "expected bool, uint8, or float from 0 to 1")
    kind = np.uint8 if high <= 0xFF else np.uint16 if high <= 0xFFFF else np.int32
    kept = plain.dtype if plain.dtype in (np.uint8, np.uint16) else kind
    return Image.fromarray(np.ascontiguousarray(plain.astype(kept)))


def without_single_axes(values: Any) -> Any:
    """Drop leading axes of length 1, and a single channel at the end, of an array or tensor."""
    while values.ndim > 2 and values.shape[0] == 1:
        values = values[0]
    return values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values


def _read_npy(file: IO[bytes], name: str, max_pixels: int) -> Array:
    """Read a .npy file, whose header is checked before room is made, at four channels a pixel."""
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(file, max_header_size=_MAX_NPY_HEADER)
    if dtype.kind not in "buif":
        raise ImageError(f"{name} holds {dtype} where numbers are expected: save numbers alone.")
    count = math.prod(shape)
    if count > 4 * max_pixels:
        raise ImageError(f"{name} holds {count:,} numbers, more than are read: shrink it first.")
    if count * dtype.itemsize > os.fstat(file.fileno()).st_size - file.tell():
        raise ImageError(f"{name} is cut off: it claims {count:,} numbers; fetch it again.")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")  # only torch makes tensors, so it needs no import
    return torch is not None and isinstance(value, torch.Tensor)


def _numpy(source: Array | Tensor, name: str) -> Array:
    """Return numbers in this machine's byte order."""
    if isinstance(source, np.ndarray):
        values = source
    else:
        plain = source.detach().cpu()
        values = (plain.float() if plain.is_floating_point() else plain).numpy()
    if values.dtype.kind not in "buif":
        raise ImageError(
            f"{name} holds {values.dtype} where numbers are expected: give numbers alone."
        )
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _channels_last(source: Array | Tensor, name: str) -> Array:
    """Return [H, W], [H, W, 3] or [H, W, 4]."""
    values, expected, hint = _numpy(source, name), "[H, W], [H, W, 3] or [H, W, 4]", ""
    if _is_tensor(source):
        expected = "[H, W], [3, H, W] or [1, 3, H, W]"
        if values.ndim == 4 and values.shape[0] == 1:
            values = values[0]
        if values.ndim == 3:
            hint = ", so permute(2, 0, 1) it" if values.shape[-1] in CHANNELS else ""
            values = np.moveaxis(values, 0, -1)
    elif values.ndim == 3 and values.shape[0] in CHANNELS:
        hint = ", so transpose(1, 2, 0) it"
    if values.ndim == 4:
        raise _not_an_image(
            source, name, f"expected one image, {expected}, so give a list of images"
        )
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in CHANNELS):
        raise _not_an_image(source, name, f"expected {expected}{hint}")
    if values.size == 0:
        raise _not_an_image(source, name, "expected pixels")
    return values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values


def _check_floats(values: Array, source: Array | Tensor, name: str) -> None:
    expected = "expected uint8, or float from 0 to 1"
    if values.dtype.kind != "f":
        raise _not_an_image(source, name, f"{expected}, so convert it with its own scale in mind")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return
    if low >= -1 and high <= 1:
        expected += ", so map it by (x + 1) / 2"
    elif low >= 0 and high <= 255:
        expected += ", so divide it by 255"
    raise _not_an_image(source, name, expected)


def _not_an_image(source: Array | Tensor, name: str, what: str) -> ImageError:
    values = _numpy(source, name)
    kind = str(source.dtype).removeprefix("torch.")
    span = f" and values from {values.min():g} to {values.max():g}" if values.size else ""
    return ImageError(f"{name} has shape {list(values.shape)}, type {kind}{span}; {what}.")

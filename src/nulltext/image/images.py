"""The model sees one crop of a photo as a tensor, and an edit goes back into the photo.

Pixels p in 0..255 and tensors x in [-1, 1] are tied by x = p / 127.5 - 1, which is exact both ways
for all 256 levels. Resizing is Lanczos, the only lossy step; everything outside the crop box comes
back byte for byte, and so does transparency. A photo's size is (width, height) in pixels, as in
Pillow; a tensor's is (height, width), as in torch.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin

from nulltext.errors import ImageError, OptionError
from nulltext.image.open_images import large_pictures
from nulltext.image.photos import Photo, over_white
from nulltext.image.sixteen_bits import PER_LEVEL, Deep, png_of, tiff_of
from nulltext.storage.files import check_target, replace_file, unwritable

if TYPE_CHECKING:
    from torch import Tensor

_WRITABLE = {
    **{".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"},
    **{".tif": "TIFF", ".tiff": "TIFF"},
}
_DEEP = ("PNG", "TIFF")
"""Formats with 16 bits a channel."""


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
        """4 with opacity, else 3."""
        return 4 if self.alpha is not None or self.image.mode == "RGBA" else 3

    def rows(self, rows: slice, bands: int, *, deep: bool) -> np.ndarray[Any, Any]:
        """Some rows, [rows, width, bands], uint8, or uint16 if `deep`; opaque without an alpha."""
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


@dataclass(frozen=True)
class CropBox:
    """A rectangle of the upright photo, in pixels; (x, y) is its top left corner."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> CropBox:
        """Read "x,y,size", a square, or "x,y,width,height"; raise OptionError for anything else."""
        parts = [part.strip() for part in text.split(",")]
        numbers = [int(part) for part in parts if re.fullmatch(r"[0-9]{1,9}", part)]
        if len(numbers) != len(parts) or len(parts) not in (3, 4) or min(numbers[2:]) < 1:
            raise OptionError(
                f"The crop box {text!r} is not of the form x,y,size or x,y,width,height: give whole"
                " numbers of pixels, with x and y at least 0 and sides at least 1, such as 0,0,512."
            )
        return cls(numbers[0], numbers[1], numbers[2], numbers[-1])

    @classmethod
    def from_list(cls, values: Sequence[int]) -> CropBox:
        """Undo `as_list`; raise OptionError unless `values` are four integers."""
        if len(values) != 4 or any(type(value) is not int for value in values):
            raise OptionError(
                f"The crop box {values!r} is no list of four integers: give [x, y, width, height]."
            )
        return cls(*values)

    def as_list(self) -> list[int]:
        """[x, y, width, height], for JSON."""
        return [self.x, self.y, self.width, self.height]

    def __str__(self) -> str:
        """As `parse` reads it."""
        sides = [self.width] if self.width == self.height else [self.width, self.height]
        return ",".join(map(str, (self.x, self.y, *sides)))

    def check_inside(self, photo_size: tuple[int, int]) -> None:
        """Raise ImageError unless the box holds a pixel and lies within (width, height)."""
        width, height = photo_size
        fits = self.x >= 0 and self.x + self.width <= width
        fits = fits and self.y >= 0 and self.y + self.height <= height
        if not (fits and self.width >= 1 and self.height >= 1):
            square = largest_centred_square(width, height)
            raise ImageError(
                f"The crop box of {self.width} x {self.height} px at {self.x},{self.y} does not lie"
                f" within the photo of {width} x {height} px: the largest square that fits is"
                f" {square}."
            )


def largest_centred(width: int, height: int, proportions: tuple[int, int]) -> CropBox:
    """The largest box of a photo of width x height px, centred, rounded to the top left.

    Args:
        proportions: (width, height) of the box, up to a factor.
    """
    across, down = proportions
    scale = min(width / across, height / down)
    sides = (min(width, max(1, round(scale * across))), min(height, max(1, round(scale * down))))
    return CropBox((width - sides[0]) // 2, (height - sides[1]) // 2, *sides)


def largest_centred_square(width: int, height: int) -> CropBox:
    """The largest square of a photo of width x height px, centred, rounded to the top left."""
    return largest_centred(width, height, (1, 1))


def to_tensor(photo: Photo, box: CropBox, size: tuple[int, int]) -> Tensor:
    """Crop, then resize (Lanczos) to `size` = (height, width), the order of the tensor.

    Returns: [1, 3, height, width], float32 in [-1, 1], on the CPU.
    """
    import torch

    box.check_inside(photo.size)
    edges = (box.x, box.y, box.x + box.width, box.y + box.height)
    height, width = size
    with large_pictures():  # not resize(box=...): its filter reaches for pixels outside the box
        crop = photo.image if edges == (0, 0, *photo.size) else photo.image.crop(edges)
    resized = crop.resize((width, height), Image.Resampling.LANCZOS)
    return from_uint8(torch.from_numpy(np.array(resized)).permute(2, 0, 1))


def from_uint8(pixels: Tensor) -> Tensor:
    """[3, H, W] or [1, 3, H, W], uint8, to [1, 3, H, W], float32 in [-1, 1]: x = p / 127.5 - 1."""
    return _single(pixels).float().div(127.5).sub(1.0).unsqueeze(0)


def to_uint8(image: Tensor) -> Tensor:
    """[3, H, W] or [1, 3, H, W], any float dtype, to [3, H, W], uint8.

    p = round(127.5 * (x + 1)), x clamped to [-1, 1] first.
    """
    import torch

    return _single(image).detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """[3, H, W] or [1, 3, H, W] in [-1, 1] to an RGB image: clamped, rounded to the nearest."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())


def _single(image: Tensor) -> Tensor:
    """Drop the batch axis of one RGB image."""
    got = tuple(image.shape)
    assert got[-3:-2] == (3,), f"got a tensor of shape {got}; expected [3, H, W] or [1, 3, H, W]"
    assert got[:-3] in ((), (1,)), f"got a tensor of shape {got}; expected one image, not a batch"
    return image.reshape(image.shape[-3:])


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels over the [0, 1] RGB: 10 log10(1 / MSE).

    MSE = mean(((a - b) / 2)^2), float64, a and b clamped to [-1, 1] first; inf when it is 0.
    Args: a, b: same shape, any float dtype, in [-1, 1].
    """
    if a.shape != b.shape:
        raise ImageError(
            f"PSNR needs two images of one shape, got {tuple(a.shape)} and {tuple(b.shape)}:"
            " resize one of them."
        )
    difference = (a.detach().double().clamp(-1, 1) - b.detach().double().clamp(-1, 1)) / 2
    mse = float(difference.square().mean())
    return math.inf if mse == 0 else -10 * math.log10(mse)


def check_writable(path: str | Path) -> None:
    """Raise OptionError or OutputError now if `save_image` could not write; leave no trace."""
    _format_of(path)
    check_target(path)


def save_image(
    image: Image.Image,
    path: str | Path,
    *,
    icc_profile: bytes | None = None,
    text: dict[str, str] | None = None,
) -> None:
    """Write a picture in the format that its file's name asks for, whole or not at all.

    PNG, TIFF and WebP (lossless) keep every pixel. JPEG has quality 95, no chroma subsampling, and
    no alpha: it is shown over white. `text` goes into PNG only.
    """
    replace_file(path, encoded(Picture(image), path, icc_profile=icc_profile, text=text))


def encoded(
    picture: Picture,
    path: str | Path,
    *,
    icc_profile: bytes | None = None,
    text: dict[str, str] | None = None,
    exif: bytes | None = None,
    coding: Mapping[str, Any] | None = None,
) -> bytes:
    """The whole file, in memory: Pillow's own writing to disk misses a short write.

    Args:
        path: says the format; 16 bits a channel go into PNG and TIFF. coding: see `Photo.coding`.
    """
    kind = _format_of(path)
    told = {"icc_profile": icc_profile} | ({} if exif is None else {"exif": exif})
    try:
        return _encode(picture, kind, told, text or {}, coding)
    except (OSError, ValueError) as error:  # ValueError: an encoder refuses the image's size
        raise unwritable(path, error) from error


def read_back(picture: Picture, path: str | Path, data: bytes) -> Picture:
    """What a file that was `encoded` holds; the picture itself where nothing was lost."""
    kind = _format_of(path)
    if kind == "JPEG":
        with large_pictures(), Image.open(io.BytesIO(data), formats=[kind]) as image:
            image.load()
            return Picture(image)
    if picture.deep is not None and kind not in _DEEP:
        return Picture(picture.image)
    return picture


def _format_of(path: str | Path) -> str:
    """Pillow's name of the format that the file's name asks for."""
    kind = _WRITABLE.get(Path(path).suffix.lower())
    if kind is None:
        raise OptionError(
            f"'{path}' does not say which format to write: end the name in one of"
            f" {', '.join(_WRITABLE)}."
        )
    return kind


def _encode(
    picture: Picture,
    kind: str,
    told: dict[str, Any],
    text: dict[str, str],
    coding: Mapping[str, Any] | None,
) -> bytes:
    file, image = io.BytesIO(), picture.image
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if picture.deep is not None and kind in _DEEP:
        if kind == "TIFF":
            return tiff_of(picture.deep, **told)
        image = image.crop((0, 0, 1, 1))  # its file gets the pixels of 16 bits
    if kind == "JPEG":
        if image.mode == "RGBA":
            image = over_white(image, image.getchannel("A"))
        how = {"quality": 95, "subsampling": 0} if coding is None else coding
        image.save(file, kind, **how, **told)
    elif kind == "WEBP":
        # Less effort than the default: 3 to 4 times faster, files as large.
        image.save(file, kind, lossless=True, exact=True, method=1, quality=50, **told)
    elif kind == "TIFF":
        image.save(file, kind, **told)
    else:
        chunks = PngImagePlugin.PngInfo()
        for key, value in text.items():
            chunks.add_text(key, value)  # tEXt; Pillow takes iTXt for what is not Latin-1
        # Run lengths beside PNG's filters: 6 times faster than the default, and smaller on photos.
        image.save(file, kind, pnginfo=chunks, compress_type=zlib.Z_RLE, **told)
    if picture.deep is not None and kind == "PNG":
        return png_of(picture.deep, file.getvalue())
    return file.getvalue()

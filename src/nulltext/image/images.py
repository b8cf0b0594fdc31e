"""Crops of photos, the sizes at which a model sees them, and their tensors.

A model was made for native sides W0 x H0 and works at any multiple of its autoencoder's stride s (8
in Stable Diffusion). A box of proportions r = width / height is seen at

    W = s round(sqrt(W0 H0 r) / s),    H = s round(sqrt(W0 H0 / r) / s)

nearly as many pixels as the native ones, or, in a family that was trained at buckets of several
proportions, at the bucket whose log r is nearest. The photo is stretched by what rounding leaves.
Source: Podell et al. 2023 (SDXL), sec. 2.3 and appendix I for the buckets.

Pixels p in 0..255 and tensors x in [-1, 1] are tied by x = p / 127.5 - 1, which is exact both ways
for all 256 levels. Resizing is Lanczos. A photo's size is (width, height) in pixels, as in Pillow;
a tensor's is (height, width), as in torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from nulltext.errors import ImageError, OptionError
from nulltext.image.opening import large_pictures
from nulltext.image.photos import Photo
from nulltext.image.profiles import as_srgb

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]
"""(width, height) in pixels."""
SizeChoice = Size | Literal["photo"] | None
"""A size; "photo" for that of the whole photo (or crop) in its own proportions, at about the
model's number of pixels; None for the model's own."""

MAX_PROPORTIONS = 4.0
"""Longest side by shortest, beyond which no model was trained (SDXL's buckets end there)."""
SMALLEST_PART, LARGEST_PART = 1 / 4, 8
"""Sides that are accepted, in parts of the model's own."""
STRETCH = 0.02
"""Difference of proportions between crop and size that is accepted."""
SDXL_BUCKETS = tuple(
    (long, short)
    for short in range(8, 17)
    for long in range(4 * short, short - 1, -1)
    if 0.9 * 16**2 <= long * short <= 16**2
)
"""Sides of SDXL's buckets, long and short, in sixteenths of the native side (64 of 1024 px): all
with 90 to 100 % of the native pixels."""


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
                f"The crop box {values!r} is not a list of four integers: give [x, y, width,"
                " height]."
            )
        return cls(*values)

    def as_list(self) -> list[int]:
        """Return [x, y, width, height], for JSON."""
        return [self.x, self.y, self.width, self.height]

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), as Pillow crops."""
        return self.x, self.y, self.x + self.width, self.y + self.height

    def __str__(self) -> str:
        """Write the box as `parse` reads it."""
        sides = [self.width] if self.width == self.height else [self.width, self.height]
        return ",".join(map(str, (self.x, self.y, *sides)))

    def check_inside(self, photo_size: Size) -> None:
        """Raise ImageError unless the box holds a pixel and lies within (width, height)."""
        width, height = photo_size
        left, top, right, bottom = self.edges
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ImageError(
                f"The crop box of {self.width} x {self.height} px at {self.x},{self.y} does not lie"
                f" within the photo of {width} x {height} px: the largest square that fits is"
                f" {largest_centred(width, height)}."
            )


def largest_centred(width: int, height: int, proportions: Size = (1, 1)) -> CropBox:
    """Return the largest box of a photo of width x height px, centred, rounded to the top left.

    Args:
        proportions: (width, height) of the box, up to a factor; a square by default.
    """
    across, down = proportions
    scale = min(width / across, height / down)
    sides = (min(width, max(1, round(scale * across))), min(height, max(1, round(scale * down))))
    return CropBox((width - sides[0]) // 2, (height - sides[1]) // 2, *sides)


def default_crop(photo_size: Size, choice: SizeChoice) -> CropBox:
    """Return the part of a photo that is seen unless another crop is asked for.

    For a size: the largest centred box of its proportions; for "photo": all of it; for None: the
    largest centred square.
    """
    if choice == "photo":
        return CropBox(0, 0, *photo_size)
    return largest_centred(*photo_size, choice or (1, 1))


def same_proportions(a: Size, b: Size) -> bool:
    """Whether two sizes have the same proportions, within a pixel of rounding."""
    return abs(a[0] * b[1] - b[0] * a[1]) <= max(*a, *b)


def _fits(box: CropBox, size: Size) -> bool:
    """Whether a size has a box's proportions, within STRETCH and a pixel of the box."""
    across, down = box.width * size[1], box.height * size[0]
    return abs(across - down) <= STRETCH * across + max(size)


@dataclass(frozen=True)
class Sizes:
    """The sizes that a model works at."""

    native: Size
    """What it was made for."""
    step: int
    """Sides are multiples of this."""
    buckets: tuple[Size, ...] = ()
    """Sizes of other proportions that it was trained at."""
    most: int | None = None
    """The longest side that it can work at, where there is one."""

    def of(self, box: CropBox, choice: SizeChoice) -> tuple[int, int]:
        """Return the (height, width) at which a box of a photo is seen.

        Raises:
            OptionError: the model does not work at the size, or the box has other proportions.
        """
        if choice is None and _fits(box, self.native):
            width, height = self.native
        elif choice is None or choice == "photo":
            width, height = self._nearest(box)
        else:
            width, height = choice
            self._check(choice, box)
        if self.most is not None and max(width, height) > self.most:
            raise OptionError(
                f"This model works at sides of at most {self.most} px, and {width}x{height} is "
                "longer; choose a smaller --size, or a part of the photo with --crop."
            )
        return height, width

    def _nearest(self, box: CropBox) -> Size:
        ratio = box.width / box.height
        if not 1 / MAX_PROPORTIONS <= ratio <= MAX_PROPORTIONS:
            raise OptionError(
                f"{box.width} x {box.height} px is longer than {MAX_PROPORTIONS:g} to 1, which no "
                "model was trained on; choose a part of it with --crop X,Y,WIDTH,HEIGHT."
            )
        if self.buckets:
            return min(self.buckets, key=lambda size: abs(math.log(size[0] / size[1] / ratio)))
        area = self.native[0] * self.native[1]
        sides = math.sqrt(area * ratio), math.sqrt(area / ratio)
        width, height = (max(1, round(side / self.step)) * self.step for side in sides)
        return width, height

    def _check(self, size: Size, box: CropBox) -> None:
        text = f"{size[0]}x{size[1]}"
        if any(side % self.step for side in size):
            down = [max(1, side // self.step) * self.step for side in size]
            raise OptionError(
                f"The size {text} is not made of multiples of {self.step}, as this model's are; "
                f"pass --size {down[0]}x{down[1]}."
            )
        low = math.ceil(SMALLEST_PART * min(self.native))
        high = LARGEST_PART * max(self.native)
        if min(size) < low or max(size) > high:
            raise OptionError(
                f"The size {text} is far from what this model was made for "
                f"({self.native[0]}x{self.native[1]}); choose sides from {low} to {high}."
            )
        if not _fits(box, size):
            inner = largest_centred(box.width, box.height, size)
            crop = CropBox(box.x + inner.x, box.y + inner.y, inner.width, inner.height)
            raise OptionError(
                f"The crop of {box.width} x {box.height} px has other proportions than the size "
                f"{text}; pass --crop {','.join(map(str, crop.as_list()))}, or --size photo."
            )


def parse_size(text: str) -> Size | Literal["photo"]:
    """Read "WIDTHxHEIGHT" or "photo"; raise OptionError for anything else."""
    if text.strip().lower() == "photo":
        return "photo"
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*[xX×]\s*([0-9]{1,6})\s*", text)
    width, height = map(int, match.groups()) if match else (0, 0)
    if min(width, height) < 1:
        raise OptionError(
            f"The size {text!r} is not of the form WIDTHxHEIGHT: give two whole numbers of pixels, "
            "such as 768x512, or photo for the photo's own proportions."
        )
    return width, height


def to_tensor(photo: Photo, box: CropBox, size: tuple[int, int]) -> Tensor:
    """Crop, resize (Lanczos) to `size` = (height, width), the order of the tensor, and convert.

    Returns: [1, 3, height, width], float32 in [-1, 1], sRGB, on the CPU.
    """
    import torch

    box.check_inside(photo.size)
    height, width = size
    with large_pictures():  # not resize(box=...): its filter reaches for pixels outside the box
        whole = box.edges == (0, 0, *photo.size)
        crop = photo.image if whole else photo.image.crop(box.edges)
    resized = crop.resize((width, height), Image.Resampling.LANCZOS)
    shown = as_srgb(resized, photo.icc_profile)
    return from_uint8(torch.from_numpy(np.array(shown)).permute(2, 0, 1))


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
    got = tuple(image.shape)
    assert got[-3:-2] == (3,), f"got a tensor of shape {got}; expected [3, H, W] or [1, 3, H, W]"
    assert got[:-3] in ((), (1,)), f"got a tensor of shape {got}; expected one image, not a batch"
    return image.reshape(image.shape[-3:])


def psnr(a: Tensor, b: Tensor) -> float:
    """Compute the peak signal-to-noise ratio in decibels over the [0, 1] RGB: 10 log10(1 / MSE).

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

"""An edit goes back into its photo, and nothing else moves.

With p the photo's crop at its own size, U a smooth enlargement to that size, e and r the edit and
the reconstruction beside it at the model's resolution, the photo's pixels become

    p + a (U e + s (p - U r) - p)

a, in [0, 1], says where: 0 keeps the photo's own bytes. It comes from a person's mask, faded inside
its borders so that no pixel beyond them moves; from a local blend; or, without either, from what
the edit did, d = G |e - r| (G a Gaussian, the mean over RGB), cut by Otsu's threshold, dilated and
faded outwards.

s, in [0, 1], says how much of the fine detail p - U r that the model never saw is carried over:
nothing (`model`: the model's own pixels), everything (`photo`), or, pixel by pixel, the structure
term of SSIM between e and r (`auto`): detail stays where the shapes did. For changes of colour,
`luminance` carries everywhere the luma of p - U r alone: light and shade, and no old colour.

Photos are large: both are worked out some rows at a time, within the bounds of what a leaves, and a
photo of 16 bits a channel keeps them.

Source: Couairon et al. 2023 (DiffEdit), sec. 3.2 (masks from differences); Otsu 1979; Wang et al.
2004 (SSIM), eq. 10. Carrying the residual is the Laplacian pyramid's step: Burt & Adelson 1983.
Luma: ITU-R BT.601, as in JPEG.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

from nulltext.image.enlarging import Enlarged, strips
from nulltext.image.images import CropBox, Picture
from nulltext.image.photos import Photo
from nulltext.image.sixteen_bits import LEVELS, PER_LEVEL

Detail = Literal["auto", "photo", "luminance", "model"]

SMOOTHING = 1 / 64
"""Standard deviation of G in parts of the side: single pixels that flicker are no region."""
GROWTH = 1 / 32
"""By how much of the side a derived region is dilated, and again faded."""
FADE = 1 / 48
"""Width, in parts of the crop's side, over which a person's mask fades inside its borders."""
EDGE = 1 / 16
"""Width, in parts of the crop's side, over which a region fades towards the crop's border."""
WINDOW = 1 / 64
"""Standard deviation of the SSIM window in parts of the side."""
STRUCTURE = (0.03 * 2) ** 2 / 2
"""C3 of SSIM for values that span 2: structure below it is noise."""
BINS = 256
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue."""


def region_of_change(edit: Tensor, reconstruction: Tensor) -> Tensor:
    """Where an edit changed the picture: a, [H, W] in [0, 1], at the model's resolution.

    Args:
        edit, reconstruction: [3, H, W] in about [-1, 1], sampled side by side.
    """
    difference = (edit.clamp(-1, 1) - reconstruction.clamp(-1, 1)).abs().mean(dim=0)
    smooth = _blurred(difference, SMOOTHING * min(difference.shape))
    if float(smooth.max() - smooth.min()) == 0.0:
        return torch.zeros_like(smooth)
    return grown((smooth > _otsu(smooth)).float())


def grown(mask: Tensor) -> Tensor:
    """Dilate a mask [H, W], then fade it outwards: 1 on the mask, 0 some pixels beyond."""
    reach = max(1, round(GROWTH * min(mask.shape)))
    dilated = max_pool2d(mask[None], 2 * reach + 1, stride=1, padding=reach)[0]
    padded = pad(dilated[None, None], [reach] * 4, mode="replicate")
    return torch.maximum(avg_pool2d(padded, 2 * reach + 1, stride=1)[0, 0], mask)


def faded_inside(mask: Tensor) -> Tensor:
    """Fade a person's mask [H, W] within its borders: 0 wherever the mask is, 1 well inside.

    Where the fade would erase all of it, thin strokes say, it gets narrower.
    """
    radius = max(1, round(FADE * min(mask.shape)))
    rows, columns = _bounds(mask, margin=radius)  # beyond, mask and fade are 0
    result = torch.zeros_like(mask)
    inner = mask[rows, columns]
    while radius > 1:
        ramp = _box(inner > 0, radius).mul_(2).sub_(1).clamp_(0, 1).mul_(inner)
        if float(ramp.max()) >= 0.99 * float(inner.max()):
            result[rows, columns] = ramp
            return result
        radius //= 2
    return mask


def _bounds(weight: Tensor, margin: int = 0) -> tuple[slice, slice]:
    """The rows and columns of [H, W] that hold all that is above 0, and some more."""
    found = []
    for axis in (1, 0):
        used = weight.amax(dim=axis).gt(0).nonzero()[:, 0].tolist() or [0, -1]
        found.append(slice(max(used[0] - margin, 0), used[-1] + 1 + margin))
    return found[0], found[1]


def fitted(weight: Tensor, box: CropBox, photo_size: tuple[int, int]) -> Tensor:
    """Lay a weight [H, W] on the crop at its own size, fading towards the crop's inner borders."""
    size = (box.height, box.width)
    large = None if tuple(weight.shape) == size else Enlarged(weight[None], size, "bilinear")
    columns = _border(box.width, box.x > 0, box.x + box.width < photo_size[0])
    borders = _border(box.height, box.y > 0, box.y + box.height < photo_size[1])
    result = torch.empty(size)
    for rows in strips(0, *size):
        part = weight[rows] if large is None else large.rows(rows)[0].clamp_(0, 1)
        result[rows] = part * torch.minimum(borders[rows, None], columns)
    return result


def composite(
    photo: Photo,
    box: CropBox,
    edit: Tensor,
    reconstruction: Tensor,
    weight: Tensor,
    detail: Detail = "auto",
) -> Image.Image:
    """Change a photo where `weight` says, by the module's formula.

    Args:
        edit, reconstruction: [3, H, W] in about [-1, 1]. weight: [box.height, box.width].

    Returns: RGB, or RGBA with the photo's alpha, of the photo's size; every pixel whose weight is 0
    has the photo's own bytes.
    """
    return composite_picture(photo, box, edit, reconstruction, weight, detail).image


def composite_picture(
    photo: Photo,
    box: CropBox,
    edit: Tensor,
    reconstruction: Tensor,
    weight: Tensor,
    detail: Detail = "auto",
) -> Picture:
    """See `composite`; of a photo of 16 bits, at 16 bits as well."""
    box.check_inside(photo.size)
    result = original(photo)
    image, deep = result.image.copy(), None if result.deep is None else result.deep.copy()
    down, across = _bounds(weight)
    layers = _Layers(edit, reconstruction, detail, (box.height, box.width), across)
    for rows in strips(down.start, down.stop, across.stop - across.start):
        part = weight[rows, across]
        kept = (part == 0).numpy()[..., None]
        left, top = box.x + across.start, box.y + rows.start
        edges = (left, top, left + part.shape[1], top + part.shape[0])
        before = np.asarray(image.crop(edges))
        if deep is None:
            mixed = layers.mixed(rows, part, before, 255)
        else:
            there = deep[edges[1] : edges[3], edges[0] : edges[2], :3]
            mixed = layers.mixed(rows, part, there, LEVELS)
            np.copyto(there, _rounded(mixed, LEVELS).astype(np.uint16), where=~kept)
        after = np.where(kept, before, _rounded(mixed, 255).astype(np.uint8))
        image.paste(Image.fromarray(after), (left, top))
    if photo.alpha is not None:
        image.putalpha(photo.alpha)
    return Picture(image, deep)


def original(photo: Photo) -> Picture:
    """A photo's own pixels: its colours before they were put over white."""
    return Picture(photo.straight or photo.image, photo.deep, photo.alpha)


class _Layers:
    """An edit and its reconstruction at the size of a crop, some rows at a time."""

    def __init__(
        self,
        edit: Tensor,
        reconstruction: Tensor,
        detail: Detail,
        size: tuple[int, int],
        columns: slice,
    ) -> None:
        share = carried(edit, reconstruction, detail)
        self.detail = detail
        self.edit, self.reconstruction, self.share = (
            Enlarged(x.float(), size, "bicubic", columns)
            for x in (edit.clamp(-1, 1), reconstruction.clamp(-1, 1), share[None])
        )

    def mixed(
        self, rows: slice, weight: Tensor, values: np.ndarray[Any, Any], levels: int
    ) -> Tensor:
        """p + a (U e + s (p - U r) - p), [3, rows, columns] in about [-1, 1].

        Args:
            values: [rows, columns, 3] in 0..levels, the photo's.
        """
        numbers = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1).contiguous()
        pixels = numbers.div_(levels / 2).sub_(1)
        lost = pixels - self.reconstruction.rows(rows)
        if self.detail == "luminance":
            red, green, blue = (part * by for part, by in zip(lost, LUMA, strict=True))
            lost = (red + green + blue).expand_as(lost)
        wanted = self.edit.rows(rows) + self.share.rows(rows).clamp(0, 1) * lost
        return pixels + weight * (wanted.clamp(-1, 1) - pixels)


def _rounded(mixed: Tensor, levels: int) -> np.ndarray[Any, Any]:
    """[3, H, W] in [-1, 1] to whole numbers in 0..levels, [H, W, 3], as float32."""
    numbers = ((mixed + 1) * (levels / 2)).round_().clamp_(0, levels)
    rounded: np.ndarray[Any, Any] = numbers.permute(1, 2, 0).numpy()
    return rounded


def carried(edit: Tensor, reconstruction: Tensor, detail: Detail) -> Tensor:
    """s: the share of the photo's fine detail that an edit keeps, [H, W] in [0, 1]."""
    if detail != "auto":
        return torch.full_like(edit[0], 0.0 if detail == "model" else 1.0)
    a, b = (x.clamp(-1, 1).mean(dim=0) for x in (edit, reconstruction))
    deviation = WINDOW * min(a.shape)
    mean_a, mean_b = _blurred(a, deviation), _blurred(b, deviation)
    covariance = _blurred(a * b, deviation) - mean_a * mean_b
    variance_a = (_blurred(a * a, deviation) - mean_a**2).clamp(min=0)
    variance_b = (_blurred(b * b, deviation) - mean_b**2).clamp(min=0)
    structure = (covariance + STRUCTURE) / ((variance_a * variance_b).sqrt() + STRUCTURE)
    return _blurred(structure.clamp(0, 1), deviation)


@dataclass(frozen=True)
class Difference:
    """How two pictures differ."""

    changed_fraction: float
    """Share of the pixels that differ in any value, opacity included."""
    psnr_outside: float
    """Decibels where nothing was to change; infinite if nothing did."""
    largest_outside: float
    """The largest difference of a value there, in levels of 8 bits."""


def difference(before: Picture, after: Picture, kept: Tensor, box: CropBox) -> Difference:
    """Compare two pictures of one size, at 16 bits if one of them has them.

    Args:
        kept: [box.height, box.width], bool: what was not to change; nothing was outside the box.
    """
    width, height = before.image.size
    deep = before.deep is not None or after.deep is not None
    bands = max(before.bands, after.bands)
    changed, squares, count, largest = 0, 0.0, 0, 0
    for rows in strips(0, height, width):
        a, b = (picture.rows(rows, bands, deep=deep) for picture in (before, after))
        differs = (a != b).any(axis=-1)
        changed += int(differs.sum())
        outside = np.ones(differs.shape, dtype=bool)
        first, last = max(rows.start, box.y), min(rows.stop, box.y + box.height)
        if first < last:
            inside = kept[first - box.y : last - box.y].numpy()
            outside[first - rows.start : last - rows.start, box.x : box.x + box.width] = inside
        count += bands * int(outside.sum())
        error = a[outside & differs].astype(np.int64) - b[outside & differs]
        if error.size:
            squares += float(np.square(error).sum())
            largest = max(largest, int(np.abs(error).max()))
    levels = LEVELS if deep else 255
    mean = squares / max(count, 1) / levels**2
    decibels = math.inf if mean == 0 else -10 * math.log10(mean)
    return Difference(changed / (width * height), decibels, largest / (PER_LEVEL if deep else 1))


def _border(length: int, first: bool, last: bool) -> Tensor:
    """[length]: 0 at the ends that are no border of the photo, 1 from `EDGE` of the length on."""
    centres = torch.arange(length, dtype=torch.float32)
    reach = max(EDGE * length, 1.0)
    weight = torch.ones(length)
    if first:
        weight = torch.minimum(weight, centres / reach)
    if last:
        weight = torch.minimum(weight, centres.flip(0) / reach)
    return weight


def _blurred(x: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of [H, W]; the border is repeated."""
    radius = max(1, math.ceil(3 * deviation))
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / max(deviation, 1e-6)) ** 2)
    kernel = kernel / kernel.sum()
    padded = pad(x[None, None], [radius] * 4, mode="replicate")
    return conv2d(conv2d(padded, kernel[None, None, None, :]), kernel[None, None, :, None])[0, 0]


def _box(x: Tensor, radius: int) -> Tensor:
    """Mean of [H, W] over squares of 2 radius + 1, by running sums; the border is repeated."""
    result = x.float() if x.dtype != torch.float32 else x.clone()
    for axis in (1, 0):
        turned = result if axis else result.T
        for lines in strips(0, *turned.shape):
            padded = pad(turned[None, lines], [radius] * 2, mode="replicate")[0].double()
            sums = pad(padded.cumsum(dim=1), [1, 0])
            width = 2 * radius + 1
            turned[lines] = ((sums[:, width:] - sums[:, :-width]) / width).to(result.dtype)
    return result


def _otsu(values: Tensor) -> float:
    """The threshold that parts values into two classes of least variance within (Otsu 1979)."""
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values.flatten(), BINS, low, high).double()
    centres = low + (torch.arange(BINS).double() + 0.5) * (high - low) / BINS
    below, total = counts.cumsum(0), counts.sum()
    first = (counts * centres).cumsum(0)
    mean_below = first / below.clamp(min=1)
    mean_above = (first[-1] - first) / (total - below).clamp(min=1)
    between = below * (total - below) * (mean_below - mean_above) ** 2
    best = int(between.argmax())
    return low + (best + 1) * (high - low) / BINS

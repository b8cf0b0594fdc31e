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

Source: Couairon et al. 2023 (DiffEdit), sec. 3.2 (masks from differences); Otsu 1979; Wang et al.
2004 (SSIM), eq. 10. Carrying the residual is the Laplacian pyramid's step: Burt & Adelson 1983.
Luma: ITU-R BT.601, as in JPEG.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, max_pool2d, pad

from nulltext.images import CropBox
from nulltext.photos import Photo

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
    support = (mask > 0).float()
    radius = max(1, round(FADE * min(mask.shape)))
    while radius > 1:
        ramp = (2 * _box(support, radius) - 1).clamp(0, 1)
        if float((mask * ramp).max()) >= 0.99 * float(mask.max()):
            return mask * ramp
        radius //= 2
    return mask


def fitted(weight: Tensor, box: CropBox, photo_size: tuple[int, int]) -> Tensor:
    """Lay a weight [H, W] on the crop at its own size, fading towards the crop's inner borders."""
    size = (box.height, box.width)
    if tuple(weight.shape) != size:
        weight = interpolate(
            weight[None, None], size=size, mode="bilinear", align_corners=False, antialias=True
        )[0, 0].clamp(0, 1)
    columns = _border(box.width, box.x > 0, box.x + box.width < photo_size[0])
    rows = _border(box.height, box.y > 0, box.y + box.height < photo_size[1])
    return weight * torch.minimum(rows[:, None], columns[None, :])


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
    box.check_inside(photo.size)
    result = (photo.straight or photo.image).copy()
    edges = (box.x, box.y, box.x + box.width, box.y + box.height)
    before = np.asarray(result.crop(edges))
    pixels = torch.from_numpy(before.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    size = (box.height, box.width)
    share = carried(edit, reconstruction, detail)
    large_edit, large_reconstruction = (
        _enlarged(x.clamp(-1, 1), size) for x in (edit, reconstruction)
    )
    lost = pixels - large_reconstruction
    if detail == "luminance":
        lost = torch.einsum("c, chw -> hw", lost.new_tensor(LUMA), lost).expand_as(lost)
    wanted = large_edit + _enlarged(share[None], size).clamp(0, 1) * lost
    mixed = pixels + weight * (wanted.clamp(-1, 1) - pixels)
    after = ((mixed + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    kept = (weight == 0).numpy()[..., None]
    result.paste(Image.fromarray(np.where(kept, before, after)), (box.x, box.y))
    if photo.alpha is not None:
        result.putalpha(photo.alpha)
    return result


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


def changed_fraction(before: Image.Image, after: Image.Image) -> float:
    """The share of pixels that differ in any byte; two images of one size."""
    difference = _pixels(before) != _pixels(after)
    return float(difference.any(axis=-1).mean())


def psnr_outside(before: Image.Image, after: Image.Image, weight: Tensor, box: CropBox) -> float:
    """Decibels over the pixels whose weight is 0; infinite if they are equal, or there are none.

    Args:
        weight: [box.height, box.width]; pixels outside the box count as weight 0.
    """
    outside = np.ones((before.height, before.width), dtype=bool)
    rows, columns = slice(box.y, box.y + box.height), slice(box.x, box.x + box.width)
    outside[rows, columns] = (weight == 0).numpy()
    error = (_pixels(before)[outside] - _pixels(after)[outside]) / 255.0
    mean_square = float(np.square(error).mean()) if error.size else 0.0
    return math.inf if mean_square == 0 else -10 * math.log10(mean_square)


def _pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return np.asarray(image.convert("RGB")).astype(np.int16)


def _enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[C, H, W] to [C, *size], bicubic."""
    resized: Tensor = interpolate(
        x[None].float(), size=size, mode="bicubic", align_corners=False, antialias=True
    )[0]
    return resized


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
    padded = pad(x[None, None], [radius] * 4, mode="replicate")[0, 0].double()
    for axis in (0, 1):
        sums = torch.cumsum(padded, dim=axis)
        width = 2 * radius + 1
        leading = sums.narrow(axis, width - 1, sums.shape[axis] - width + 1)
        trailing = torch.zeros_like(leading)
        length = leading.shape[axis] - 1
        trailing.narrow(axis, 1, length).copy_(sums.narrow(axis, 0, length))
        padded = (leading - trailing) / width
    return padded.to(x.dtype)


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

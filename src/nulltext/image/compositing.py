"""Put an edit back into its photo and leave the other pixels unchanged.

With p the photo's crop at its own size, U a smooth enlargement to that size, e and r the edit and
the reconstruction beside it at the model's resolution, the photo's pixels become

    p + a (U e' + (U S) (p - U r) - p)

a, in [0, 1], says where: 0 keeps the photo's own bytes. It is a mask that the user supplies, faded
inside its borders so that no pixel beyond them changes; or a local blend; or the region that was
found for the words; or all of the crop.

S, a matrix over RGB at every pixel, says what becomes of the fine detail p - U r, which the model
does not reproduce: nothing is added back (`model`, S = 0), all of it (`photo`, S = 1), its luma
alone (`luminance`); or what became there of the detail that the model does reproduce (`auto`). For
that, the edit is fitted as a linear function of the reconstruction, by `guided_filter`:

    e - r ~ A r + b        S = 1 + A

So an edge has the new colours on both sides and the photo's own sharpness, and the outline of what
is gone goes with it. What the fit leaves over, q = e - r - A r - b, is new where there is much of
it, and elsewhere a blurred edge that would glow around the sharp one (M: mean over a window):

    e' = e - (1 - k) q        k = M min(1, M q^2 / (M e^2 - (M e)^2 + c))

Otherwise e' = e. Where nothing was edited, e = r, S = 1 and e' = r: the photo.

e and r are drawn in sRGB, and so S and e' are found there; r, S and e' are then brought into the
photo's own colours (`profiles`), in which the first formula holds.

Photos are large, so everything is computed some rows at a time, within the bounds of a. A photo of
16 bits a channel keeps them.

Source: He & Sun 2015 (fast guided filter: the fit's coefficients enlarged). Fitting the difference,
so that S tends to 1, and k are ours. Carrying the residual is the Laplacian pyramid's step: Burt &
Adelson 1983. Luma: ITU-R BT.601, as in JPEG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import (
    adaptive_avg_pool2d,
    avg_pool2d,
    conv2d,
    interpolate,
    max_pool2d,
    pad,
)

from nulltext.constants import Detail
from nulltext.image.bands import Bands, RowsDone, finish, row_slices
from nulltext.image.guided_filter import fit, means
from nulltext.image.images import CropBox
from nulltext.image.photos import LEVELS, PER_LEVEL, Photo
from nulltext.image.profiles import from_srgb, shares_from_srgb
from nulltext.image.saving import Picture

GROWTH = 1 / 32
"""By how much of the side a blend's region is dilated, and again faded."""
FADE = 1 / 48
"""Width, in parts of the crop's side, over which a user's mask fades inside its borders."""
EDGE = 1 / 16
"""Width, in parts of the crop's side, over which a region fades towards the crop's border."""
CUT = 1 / 32
"""Share of a border of the crop, beyond which a weight that ends there is cut off."""
WINDOW = 1 / 42
"""Radius of the windows of the fit in parts of the side: 3 pixels of 128."""
RIDGE = 0.02
"""lambda of the fit: the variance, for values that span 2, below which S stays near 1."""
NOISE = (0.03 * 2) ** 2 / 2
"""c: the variance below which nothing is new; C3 of SSIM."""
BINS = 256
"""Bins of the histogram for Otsu's threshold."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue."""
CONSTANT = {
    "model": torch.zeros(3, 3),
    "photo": torch.eye(3),
    "luminance": torch.tensor([LUMA] * 3),
}
"""S by --detail, where it is the same everywhere."""


def dilate(mask: Tensor) -> Tensor:
    """Dilate a mask [H, W], then fade it outwards: 1 on the mask, 0 some pixels beyond."""
    reach = max(1, round(GROWTH * min(mask.shape)))
    dilated = max_pool2d(mask[None], 2 * reach + 1, stride=1, padding=reach)[0]
    padded = pad(dilated[None, None], [reach] * 4, mode="replicate")
    return torch.maximum(avg_pool2d(padded, 2 * reach + 1, stride=1)[0, 0], mask)


def fade_bands(mask: Tensor) -> Bands[Tensor]:
    """Fade a mask [H, W] within its borders, in bands: 0 wherever the mask is, 1 well inside.

    The fade is narrower where it would erase all of the mask, such as thin strokes.
    """
    radius = max(1, round(FADE * min(mask.shape)))
    rows, columns = _bounds(mask, margin=radius)  # beyond, mask and fade are 0
    inner = mask[rows, columns]
    while radius > 1:
        ramp = yield from box_bands(inner > 0, radius)
        ramp.mul_(2).sub_(1).clamp_(0, 1).mul_(inner)
        if float(ramp.max()) >= 0.99 * float(inner.max()):
            result = torch.zeros_like(mask)
            result[rows, columns] = ramp
            return result
        radius //= 2
    return mask


class Weight:
    """Where an edit shows, [box.height, box.width] in [0, 1]; computed where it is asked for.

    The least of one or several weights, each resized to the crop and faded towards the crop's inner
    borders.
    """

    def __init__(self, parts: Sequence[Tensor], box: CropBox, photo_size: tuple[int, int]) -> None:
        """Take weights [H, W] in [0, 1] of any size."""
        left, top, right, bottom = box.edges
        self.shape = (box.height, box.width)
        self._parts = parts
        self._enlarged = [self._enlargement(part) for part in parts]
        self._columns = _border(box.width, left > 0, right < photo_size[0])
        self._rows = _border(box.height, top > 0, bottom < photo_size[1])

    def rows(self, rows: slice) -> Tensor:
        """Return [number of rows, box.width]."""
        border = torch.minimum(self._rows[rows, None], self._columns)
        pairs = zip(self._parts, self._enlarged, strict=True)
        found = [
            part[rows] if large is None else large.rows(rows)[0].clamp_(0, 1)
            for part, large in pairs
        ]
        return reduce(torch.minimum, [part * border for part in found])

    def column(self, x: int) -> Tensor:
        """Return [box.height]."""
        border = torch.minimum(self._rows, self._columns[x])
        one, every = slice(x, x + 1), slice(0, self.shape[0])
        found = []
        for part in self._parts:
            large = self._enlargement(part, one)
            line = part[:, x] if large is None else large.rows(every)[0, :, 0].clamp_(0, 1)
            found.append(line * border)
        return reduce(torch.minimum, found)

    def _enlargement(self, part: Tensor, columns: slice = slice(None)) -> _Enlargement | None:
        if tuple(part.shape) == self.shape:
            return None
        return _Enlargement(part[None], self.shape, "bilinear", columns)


@dataclass(frozen=True)
class Shown:
    """Where an edit shows, in whole levels."""

    levels: Tensor
    """[box.height, box.width], uint8: ceil(255 a), so 0 where a is 0 alone."""
    largest: float
    """The largest a."""

    @cached_property
    def bounds(self) -> tuple[slice, slice]:
        """The rows and columns that hold all that is above 0."""
        return _bounds(self.levels)


def shown_bands(weight: Weight) -> Bands[Shown]:
    """Compute where an edit shows, in bands."""
    levels, largest = torch.empty(weight.shape, dtype=torch.uint8), 0.0
    for rows in row_slices(0, *weight.shape):
        part = weight.rows(rows)
        largest = max(largest, float(part.max()))
        levels[rows] = (255 * part).ceil_().byte()
        yield RowsDone(rows.stop, weight.shape[0])
    return Shown(levels, largest)


def reduced_bands(weight: Weight, size: tuple[int, int]) -> Bands[Tensor]:
    """Reduce a weight to `size` = (H, W) by its means over areas, in bands: [H, W]."""
    height, wanted = weight.shape[0], size[0]
    result = torch.empty(size)
    for row in range(wanted):
        part = weight.rows(slice(row * height // wanted, -(-(row + 1) * height // wanted)))
        result[row] = adaptive_avg_pool2d(part[None], (1, size[1]))[0, 0]
        yield RowsDone(row + 1, wanted)
    return result


def cut_sides(weight: Weight, box: CropBox, photo_size: tuple[int, int]) -> list[str]:
    """Name the crop's inner borders that cut a weight off, which it was faded towards."""
    height, width = weight.shape
    left, top, right, bottom = box.edges
    x, y = (math.ceil(EDGE * length) for length in (width, height))
    lines = {
        "left": weight.column(x) if left > 0 else None,
        "right": weight.column(width - 1 - x) if right < photo_size[0] else None,
        "top": weight.rows(slice(y, y + 1)) if top > 0 else None,
        "bottom": weight.rows(slice(height - 1 - y, height - y))
        if bottom < photo_size[1]
        else None,
    }
    return [
        side
        for side, line in lines.items()
        if line is not None and float((line > 0.5).float().mean()) > CUT
    ]


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
        edit, reconstruction: [3, H, W] in about [-1, 1], sRGB. weight: [box.height, box.width].

    Returns: RGB, or RGBA with the photo's alpha, of the photo's size; every pixel whose weight is 0
    has the photo's own bytes.
    """
    height, width = weight.shape
    where = Weight([weight], CropBox(0, 0, width, height), (width, height))
    shown = finish(shown_bands(where))
    return finish(composite_bands(photo, box, edit, reconstruction, where, shown, detail)).image


def composite_bands(
    photo: Photo,
    box: CropBox,
    edit: Tensor,
    reconstruction: Tensor,
    weight: Weight,
    shown: Shown,
    detail: Detail = "auto",
) -> Bands[Picture]:
    """Do the same as `composite`, in bands, at 16 bits as well where the photo has them.

    Args:
        shown: what `shown_bands` found for the weight.
    """
    box.check_inside(photo.size)
    result = original_picture(photo)
    image, deep = result.image.copy(), None if result.deep is None else result.deep.copy()
    down, across = shown.bounds

    def enlarged(x: Tensor) -> _Enlargement:
        return _Enlargement(x.float(), (box.height, box.width), "bicubic", across)

    fitted, shares = fit_detail(edit, reconstruction, detail)
    shares = shares_from_srgb(shares, fitted, reconstruction, photo.icc_profile)
    fitted, drawn = (from_srgb(x, photo.icc_profile) for x in (fitted, reconstruction))
    e, r = enlarged(fitted), enlarged(drawn.clamp(-1, 1))
    size = (box.height, box.width)
    s = _Enlargement(shares.flatten(0, 1), size, "bilinear", across)
    for rows in row_slices(down.start, down.stop, across.stop - across.start):
        part = weight.rows(rows)[:, across]
        changed = (part != 0).numpy()[..., None]
        left, top = box.x + across.start, box.y + rows.start
        right, bottom = left + part.shape[1], top + part.shape[0]
        before = np.asarray(image.crop((left, top, right, bottom)))
        values, levels = before, 255
        if deep is not None:
            values, levels = deep[top:bottom, left:right, :3], LEVELS
        numbers = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1).contiguous()
        p = numbers.div_(levels / 2).sub_(1)
        lost = p - r.rows(rows)
        share = s.rows(rows).unflatten(0, (3, 3))
        wanted = e.rows(rows)
        for channel in range(3):
            wanted += share[:, channel] * lost[channel]
        mixed = p + part * (wanted.clamp(-1, 1) - p)
        if deep is not None:
            np.copyto(values, _rounded(mixed, LEVELS).astype(np.uint16), where=changed)
        after = np.where(changed, _rounded(mixed, 255).astype(np.uint8), before)
        image.paste(Image.fromarray(after), (left, top))
        yield RowsDone(rows.stop - down.start, down.stop - down.start)
    if photo.alpha is not None:
        image.putalpha(photo.alpha)
    return Picture(image, deep)


def original_picture(photo: Photo) -> Picture:
    """Return a photo's own pixels: its colours before compositing over white."""
    return Picture(photo.straight or photo.image, photo.deep, photo.alpha)


def blend_bands(before: Picture, after: Picture, opacity: float) -> Bands[Picture]:
    """Put one picture over another, in bands: round(b + opacity (a - b)).

    At 16 bits where both have them.

    Args:
        before, after: of one size; the opacity of the photo itself is that of `before`.
        opacity: 0 gives `before`, 1 gives `after`; equal pixels stay what they are at any.
    """
    if opacity == 1:
        return after
    width, height = before.image.size
    kind = before.bands
    image = Image.new("RGBA" if kind == 4 else "RGB", (width, height))
    deep = None
    if before.deep is not None and after.deep is not None:
        deep = before.deep.copy()
    for rows in row_slices(0, height, width):
        old, new = (one.rows(rows, kind, deep=False) for one in (before, after))
        image.paste(Image.fromarray(_blended(old, new, opacity)), (0, rows.start))
        if deep is not None and after.deep is not None:
            deep[rows] = _blended(deep[rows], after.deep[rows], opacity)
        yield RowsDone(rows.stop, height)
    return Picture(image, deep)


def _blended(
    before: np.ndarray[Any, Any], after: np.ndarray[Any, Any], opacity: float
) -> np.ndarray[Any, Any]:
    mixed = before + opacity * (after.astype(np.float64) - before)
    result = np.rint(mixed).astype(before.dtype)
    result[..., 3:] = before[..., 3:]
    return result


def _rounded(mixed: Tensor, levels: int) -> np.ndarray[Any, Any]:
    """Turn [3, H, W] in [-1, 1] into whole numbers in 0..levels, [H, W, 3], as float32."""
    numbers = ((mixed + 1) * (levels / 2)).round_().clamp_(0, levels)
    rounded: np.ndarray[Any, Any] = numbers.permute(1, 2, 0).numpy()
    return rounded


def fit_detail(edit: Tensor, reconstruction: Tensor, detail: Detail) -> tuple[Tensor, Tensor]:
    """Compute e' and S of the module's formula: [3, H, W], and [3, 3, H, W] or [3, 3, 1, 1].

    S[i, j] is how much of the photo's channel j goes into the result's channel i.
    """
    e, r = edit.float().clamp(-1, 1), reconstruction.float().clamp(-1, 1)
    if detail != "auto":
        return e, CONSTANT[detail][..., None, None]
    radius = max(1, round(WINDOW * min(e.shape[-2:])))
    d = e - r  # 0 where nothing was edited, so that S is exactly 1 there
    fitted = fit(d, r, radius, RIDGE)
    q = d - fitted.of(r)
    variance = (means(e * e, radius) - means(e, radius) ** 2).clamp(min=0).sum(dim=0)
    k = (means(q * q, radius).sum(dim=0) / (variance + NOISE)).clamp(0, 1)
    slope = torch.eye(3)[..., None, None] + fitted.slope
    return e - (1 - means(k[None], radius)) * q, slope


@dataclass(frozen=True)
class Difference:
    """How two pictures differ."""

    changed_fraction: float
    """Share of the pixels that differ in any value, opacity included."""
    psnr_outside: float
    """Decibels over the pixels that were to stay; infinite if all did."""
    largest_outside: float
    """The largest difference of a value there, in levels of 8 bits."""


def compare_bands(
    before: Picture,
    after: Picture,
    kept: Tensor,
    box: CropBox,
    within: slice | None = None,
) -> Bands[Difference]:
    """Compare two pictures of one size, in bands, at 16 bits if one of them has them.

    Args:
        kept: [box.height, box.width], bool: the pixels that were to stay, as all outside the box.
        within: the rows of the pictures that can differ; all others have the same bytes.
    """
    width, height = before.image.size
    deep = before.deep is not None or after.deep is not None
    bands = max(before.bands, after.bands)
    changed, squares, count, largest = 0, 0.0, 0, 0
    within = slice(0, height) if within is None else within
    for rows in row_slices(within.start, within.stop, width):
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
        yield RowsDone(rows.stop - within.start, within.stop - within.start)
    count += bands * width * (height - (within.stop - within.start))
    levels = LEVELS if deep else 255
    mean = squares / max(count, 1) / levels**2
    decibels = math.inf if mean == 0 else -10 * math.log10(mean)
    return Difference(changed / (width * height), decibels, largest / (PER_LEVEL if deep else 1))


# --- resampling and filters -----------------------------------------------------------------------


class _Enlargement:
    """A small picture [C, h, w], resized to `size` = (H, W) as `interpolate` does with antialias.

    Every pixel is a weighted sum over few rows and few columns of the small picture, so rows are
    computed independently, and are the same however many are asked for at once.
    """

    def __init__(
        self,
        x: Tensor,
        size: tuple[int, int],
        mode: Literal["bicubic", "bilinear"],
        columns: slice = slice(None),
    ) -> None:
        height, width = size
        indices, weights = _taps(x.shape[-1], width, mode)
        at, by = indices[:, columns], weights[:, columns]
        turned = x.transpose(1, 2).contiguous()  # whole rows are faster to fetch than columns
        wide = _weighted([turned[:, i] for i in at], [weight[:, None] for weight in by])
        self._wide = wide.transpose(1, 2).contiguous()
        self._indices, self._weights = _taps(x.shape[-2], height, mode)

    def rows(self, rows: slice) -> Tensor:
        """Return [C, number of rows, number of columns]."""
        at, by = self._indices[:, rows], self._weights[:, rows]
        return _weighted([self._wide[:, i] for i in at], [weight[:, None] for weight in by])


def _weighted(terms: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Sum up one term after the other, so that the result does not depend on shapes."""
    total = terms[0] * weights[0]
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total += term * weight
    return total


def _taps(length: int, wanted: int, mode: str) -> tuple[Tensor, Tensor]:
    """Return (indices, weights), both [taps, wanted], of the sum at each place of a resized axis.

    They are read off the resized unit vectors.
    """
    matrix = interpolate(
        torch.eye(length)[None, None],
        size=(wanted, length),
        mode=mode,
        align_corners=False,
        antialias=True,
    )[0, 0]
    used = matrix != 0
    first = used.int().argmax(dim=1)
    last = length - 1 - used.flip(1).int().argmax(dim=1)
    indices = first + torch.arange(int((last - first).max()) + 1)[:, None]
    inside = indices.clamp(max=length - 1)
    weights = matrix.gather(1, inside.T).T * (indices < length)
    return inside, weights.contiguous()


def _bounds(weight: Tensor, margin: int = 0) -> tuple[slice, slice]:
    """Return the rows and columns of [H, W] that hold all values above 0, and a margin."""
    found = []
    for axis in (1, 0):
        used = weight.amax(dim=axis).gt(0).nonzero()[:, 0].tolist() or [0, -1]
        found.append(slice(max(used[0] - margin, 0), used[-1] + 1 + margin))
    return found[0], found[1]


def _border(length: int, first: bool, last: bool) -> Tensor:
    """Return [length]: 0 at ends inside the photo, 1 from `EDGE` of the length on."""
    centres = torch.arange(length, dtype=torch.float32)
    reach = max(EDGE * length, 1.0)
    weight = torch.ones(length)
    if first:
        weight = torch.minimum(weight, centres / reach)
    if last:
        weight = torch.minimum(weight, centres.flip(0) / reach)
    return weight


def _blurred(x: Tensor, deviation: float) -> Tensor:
    """Blur [H, W] by a Gaussian; the border is repeated."""
    radius = max(1, math.ceil(3 * deviation))
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / max(deviation, 1e-6)) ** 2)
    kernel = kernel / kernel.sum()
    padded = pad(x[None, None], [radius] * 4, mode="replicate")
    return conv2d(conv2d(padded, kernel[None, None, None, :]), kernel[None, None, :, None])[0, 0]


def box_bands(x: Tensor, radius: int) -> Bands[Tensor]:
    """Average [H, W] over squares of 2 radius + 1, by running sums; the border is repeated."""
    result = x.float() if x.dtype != torch.float32 else x.clone()
    for axis in (1, 0):
        turned = result if axis else result.T
        for lines in row_slices(0, *turned.shape):
            padded = pad(turned[None, lines], [radius] * 2, mode="replicate")[0].double()
            sums = pad(padded.cumsum(dim=1), [1, 0])
            width = 2 * radius + 1
            turned[lines] = ((sums[:, width:] - sums[:, :-width]) / width).to(result.dtype)
            yield RowsDone(lines.stop, turned.shape[0])
    return result


def otsu(values: Tensor) -> float:
    """Find the threshold with the least variance within the classes it makes (Otsu 1979)."""
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

"""Outlines: from a rough score of where something is to its outline in a picture.

A score in [0, 1] is cut by Otsu's threshold t, and seeds a graph cut of the picture:

    score > t + (1 - t) SURE       surely inside        score < t UNSURE     surely outside
    between, above t               probably inside      else                 probably outside

It is done at a small size, where textures do not lead astray, and again along the outline alone at
a larger one. The mask is closed and opened. `feather` gives it a border that follows the picture.
Source: Rother et al. 2004 (GrabCut), by OpenCV; Otsu 1979; He et al. 2013, sec. 4 (guided
feathering). The seeds are ours.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nulltext.image.compositing import otsu
from nulltext.image.guided_filter import fit

SURE, UNSURE = 0.8, 0.22
"""Part of the way from the threshold to 1 above which a place is surely inside, and from 0 to the
threshold below which it is surely outside."""
ROUNDS, MORE_ROUNDS = 4, 1
"""Rounds of the graph cut at the small size, and along the outline."""
COARSE_SIDE: Final = 192
"""Longest side of the picture that is cut first."""
CUT_SIDE: Final = 512
"""Longest side of the picture that is cut along the outline."""
BAND: Final = 2
"""Pixels of the small size by which the outline may move at the larger one."""
SMOOTH: Final = 3
"""Side in pixels of the disc by which a cut is closed and opened."""
LEAST: Final = 0.002
"""Share of the picture below which a cut has found nothing."""
REACH: Final = 0.03
"""Radius of the guided filter's windows in parts of the longer side."""
RIDGE: Final = 0.005
"""Its lambda: the variance, for values that span 2, below which a picture is smooth."""
SETTLED: Final = 0.05
"""How near to 0 or 1 a feathered weight becomes so."""

Levels = np.ndarray[Any, Any]


def outline(picture: Tensor, score: Tensor) -> Tensor:
    """Find the outline of what a score marks: [h, w], 0 or 1, float32.

    Args:
        picture: [3, H, W] in about [-1, 1].
        score: [h', w'] in [0, 1], of the same proportions and any size.

    Sets the seed of OpenCV's generator.

    Returns: of the picture's size, at most `CUT_SIDE` on the longer side. Where the cut finds
    nothing, what is surely inside.
    """
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the same outline on every machine
    cv2.setRNGSeed(0)  # GrabCut's mixtures are seeded by k-means
    try:
        found = _outline(cv2, picture, score)
    finally:
        cv2.setNumThreads(threads)
    return torch.from_numpy(found.astype(np.float32))


def _outline(cv2: Any, picture: Tensor, score: Tensor) -> Levels:
    small, large = _levels(picture, COARSE_SIDE), _levels(picture, CUT_SIDE)
    size = (small.shape[0], small.shape[1])
    marked = interpolate(score[None, None].float(), size=size, mode="bilinear")[0, 0]
    labels = _seeds(cv2, marked.numpy())
    sure = (labels == cv2.GC_FGD).astype(np.uint8)
    found = _cut(cv2, small, labels, ROUNDS)
    if large.shape != small.shape:
        found = _cut(cv2, large, _along(cv2, found, large.shape), MORE_ROUNDS)
    if found.mean() >= LEAST:
        return found
    shape = (large.shape[1], large.shape[0])
    nothing: Levels = cv2.resize(sure, shape, interpolation=cv2.INTER_NEAREST)
    return nothing


def _levels(picture: Tensor, side: int) -> Levels:
    """Reduce a picture to a longest side: [h, w, 3], uint8, BGR."""
    height, width = picture.shape[-2:]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    reduced = interpolate(picture[None].float(), size=size, mode="area")[0].clamp(-1, 1)
    levels: Levels = ((reduced + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(levels[..., ::-1])


def _seeds(cv2: Any, score: Levels) -> Levels:
    threshold = otsu(torch.from_numpy(score))
    labels = np.full(score.shape, cv2.GC_PR_BGD, np.uint8)
    labels[score > threshold] = cv2.GC_PR_FGD
    labels[score > threshold + (1 - threshold) * SURE] = cv2.GC_FGD
    labels[score < threshold * UNSURE] = cv2.GC_BGD
    return labels


def _along(cv2: Any, found: Levels, shape: tuple[int, ...]) -> Levels:
    """Seed a larger picture by a mask of a smaller one, open along its outline."""
    larger = cv2.resize(found, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
    reach = max(1, round(BAND * max(shape[:2]) / max(found.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    labels = np.where(larger, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[cv2.erode(larger, disc) > 0] = cv2.GC_FGD
    labels[cv2.dilate(larger, disc) == 0] = cv2.GC_BGD
    return labels


def _cut(cv2: Any, picture: Levels, labels: Levels, rounds: int) -> Levels:
    """Cut [h, w, 3] by seeds [h, w], which need some inside and some outside: 0 or 1."""
    inside = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if inside.all() or not inside.any():
        return inside.astype(np.uint8)
    models = [np.zeros((1, 65)) for _ in range(2)]
    cv2.grabCut(picture, labels, None, *models, rounds, cv2.GC_INIT_WITH_MASK)
    found = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (SMOOTH, SMOOTH))
    for operation in (cv2.MORPH_CLOSE, cv2.MORPH_OPEN):
        found = cv2.morphologyEx(found, operation, disc)
    result: Levels = found
    return result


def feather(mask: Tensor, picture: Tensor, grow: float) -> Tensor:
    """Make a mask's border follow a picture: as sharp as its edges, and soft where it is smooth.

    The mask is dilated and filtered, guided by the picture.

    Args:
        mask: [H, W], 0 or 1.
        picture: [3, any, any] in about [-1, 1], of the same proportions.
        grow: radius of the dilation in pixels, rounded.

    Returns: [H, W] in [0, 1]; 0 farther from the mask than the filter reaches.
    """
    import cv2

    radius = round(grow)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    grown = torch.from_numpy(cv2.dilate(mask.numpy(), disc))[None]
    size = (mask.shape[0], mask.shape[1])
    guide = interpolate(picture[None].float(), size=size, mode="area")[0].clamp(-1, 1)
    window = max(1, round(REACH * max(size)))
    weight = fit(grown, guide, window, RIDGE).of(guide)[0]
    return ((weight - SETTLED) / (1 - 2 * SETTLED)).clamp(0, 1)

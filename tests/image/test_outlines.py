"""Outlines: a rough score and a picture give the shape in the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from nulltext.image.outlines import COARSE_SIDE, CUT_SIDE, feather, outline


def scene(size: tuple[int, int], *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A textured star on a textured ground, [3, H, W], and where it is, [H, W]."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    v, u = (y + 0.5) / height - 0.5, (x + 0.5) / width - 0.45
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    star = radius < 0.22 + 0.06 * np.cos(5 * angle)
    colours = np.where(star[..., None], (0.7, -0.4, -0.5), (-0.4, 0.1, -0.3))
    picture = colours + 0.12 * rng.standard_normal((height, width, 3))
    return torch.from_numpy(picture).float().permute(2, 0, 1), torch.from_numpy(star)


def rough(shape: torch.Tensor, cells: int = 16) -> torch.Tensor:
    """What attention knows of it: blurred, on a small grid."""
    small = interpolate(shape[None, None].float(), size=(cells, cells), mode="area")
    return avg_pool2d(small, 5, stride=1, padding=2)[0, 0].div(0.8).clamp(0, 1)


def overlap(found: torch.Tensor, shape: torch.Tensor) -> float:
    a, b = found > 0.5, shape > 0.5
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("size", [(128, 128), (300, 400), (900, 700)])
def test_the_outline_is_the_pictures_not_the_scores(size):
    picture, shape = scene(size)
    score = rough(shape)
    found = outline(picture, score)
    assert max(found.shape) == min(max(size), CUT_SIDE)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    true = interpolate(shape[None, None].float(), size=found.shape, mode="area")[0, 0]
    by_score = interpolate(score[None, None], size=found.shape, mode="bilinear")[0, 0]
    assert overlap(found, true) > 0.95
    assert overlap(by_score, true) < 0.85
    assert torch.equal(found, outline(picture, score))  # the same each time


def test_a_second_round_follows_the_outline_at_the_larger_size():
    picture, shape = scene((512, 512))
    score = rough(shape)
    fine = outline(picture, score)
    small = interpolate(picture[None], size=(COARSE_SIDE, COARSE_SIDE), mode="area")[0]
    coarse = interpolate(outline(small, score)[None, None], size=(512, 512), mode="nearest")[0, 0]
    assert overlap(fine, shape) > overlap(coarse, shape)


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_a_score_that_says_nothing_does_not_fail(value):
    picture, _ = scene((64, 48))
    found = outline(picture, torch.full((8, 8), value))
    assert found.shape == (64, 48)
    assert found.isfinite().all()


def test_a_flat_picture_keeps_to_the_score():
    score = rough(scene((64, 64))[1])
    found = outline(torch.zeros(3, 64, 64), score)
    assert 0.02 < found.mean() < 0.6


def test_the_fallback_is_what_is_surely_inside():
    """A few cells that the cut, at the larger size, would give up."""
    picture = torch.zeros(3, 400, 400)
    score = torch.zeros(100, 100)
    score[40:44, 40:44] = 1
    assert outline(picture, score)[165:170, 165:170].all()


def test_a_border_is_sharp_at_edges_and_soft_elsewhere():
    picture, shape = scene((200, 200))
    weight = feather(shape.float(), picture, grow=1)
    assert 0 <= weight.min() <= weight.max() <= 1
    assert ((weight > 0.05) & (weight < 0.95)).float().mean() < 0.08
    flat = feather(shape.float(), torch.zeros_like(picture), grow=1)
    assert ((flat > 0.05) & (flat < 0.95)).float().mean() > 0.12

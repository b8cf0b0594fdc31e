"""Small pictures enlarged to the size of a photo, any rows of it at a time.

Every pixel is a weighted sum over few rows and few columns of the small picture, so rows can be had
one by one, and are the same however many are asked for at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

TILE = 1 << 16
"""Pixels that are worked on at a time: they stay in the processor's cache."""


def strips(top: int, bottom: int, width: int) -> Iterator[slice]:
    """The rows from `top` up to `bottom`, in slices of about `TILE` pixels."""
    rows = max(1, TILE // max(width, 1))
    for first in range(top, bottom, rows):
        yield slice(first, min(first + rows, bottom))


class Enlarged:
    """[C, h, w], resized to `size` = (H, W) as `interpolate` does with antialias."""

    def __init__(
        self,
        x: Tensor,
        size: tuple[int, int],
        mode: Literal["bicubic", "bilinear"],
        columns: slice = slice(None),
    ) -> None:
        """Args: columns: the only ones that are wanted."""
        height, width = size
        indices, weights = _taps(x.shape[-1], width, mode)
        at, by = indices[:, columns], weights[:, columns]
        turned = x.transpose(1, 2).contiguous()  # whole rows are faster to fetch than columns
        wide = _weighted([turned[:, i] for i in at], [weight[:, None] for weight in by])
        self._wide = wide.transpose(1, 2).contiguous()
        self._indices, self._weights = _taps(x.shape[-2], height, mode)

    def rows(self, rows: slice) -> Tensor:
        """[C, number of rows, number of columns]."""
        at, by = self._indices[:, rows], self._weights[:, rows]
        return _weighted([self._wide[:, i] for i in at], [weight[:, None] for weight in by])


def _weighted(terms: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Their sum; one operation after the other, so that it does not depend on shapes."""
    total = terms[0] * weights[0]
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total += term * weight
    return total


def _taps(length: int, wanted: int, mode: str) -> tuple[Tensor, Tensor]:
    """(indices, weights), both [taps, wanted]: what each place of the resized axis is the sum of.

    Read off from what becomes of the unit vectors.
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

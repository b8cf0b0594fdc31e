"""Work on large pictures, some rows at a time: generators that say how far they are.

Between two bands the work can be stopped, and what it needs beside the pictures is a band's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

TILE = 1 << 16
"""Pixels that are processed at a time: they stay in the processor's cache."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class RowsDone:
    """How far work on a picture is."""

    done: int
    total: int


Bands: TypeAlias = Generator[RowsDone, None, Result]
"""Work in bands of rows."""


def row_slices(top: int, bottom: int, width: int) -> Iterator[slice]:
    """Cut the rows from `top` up to `bottom` into slices of about `TILE` pixels."""
    rows = max(1, TILE // max(width, 1))
    for first in range(top, bottom, rows):
        yield slice(first, min(first + rows, bottom))


def finish(bands: Bands[Result]) -> Result:
    """Do all of the work at once and return its result."""
    while True:
        try:
            next(bands)
        except StopIteration as stop:
            result: Result = stop.value
            return result

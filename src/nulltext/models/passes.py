"""Count UNet evaluations: every stated cost is read from here.

A UNet evaluation is one image once through the UNet, under one embedding, in either direction:

    forward         1
    backward        1    with frozen weights it takes about as long as a forward (docs/speed.md)
    forward mode    2    the values, and their derivatives along one direction

They are counted where the UNet is called, whatever calls it; a guided step is therefore 2. A pass
that is repeated, since it left float16's range, counts again. What is inside a pass does not count:
a tile, or a block that a backward pass computes again to save memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.autograd import forward_ad


@dataclass
class Passes:
    """UNet evaluations of one run, photo by photo."""

    photos: int = 1
    """Photos side by side: row i of a pass belongs to photo i mod `photos`, if nothing is said."""
    counts: Counter[int] = field(default_factory=Counter)
    """By photo."""

    def note(self, output: Tensor, rows: Iterable[int] | None = None) -> None:
        """Count the pass that led to an output, and each backward pass that will go through it.

        Args: output: [b, ...]. rows: [b], the photos whose rows these are.
        """
        own = [row % self.photos for row in range(len(output))] if rows is None else list(rows)
        self.counts.update(own)
        if forward_ad.unpack_dual(output).tangent is not None:
            self.counts.update(own)
        if output.requires_grad:
            output.register_hook(lambda _: self.counts.update(own))

    def resume(self, spent: Mapping[int, int]) -> None:
        """Add what an earlier part of the same run took."""
        self.counts.update(spent)

    @property
    def each(self) -> list[int]:
        """Evaluations of every photo."""
        return [self.counts[photo] for photo in range(self.photos)]

    @property
    def total(self) -> int:
        """Evaluations of all photos."""
        return self.counts.total()

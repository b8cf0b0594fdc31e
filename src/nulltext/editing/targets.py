"""The target rows of an edit on their way through the grid.

All targets of a generation take a step as a batch, under the inversion's null embeddings, their own
guidance and what their plans take from their parents; see `editing` for the formulae.
Source: Hertz et al. 2022, alg. 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nulltext.attention.controller import AttentionController
from nulltext.attention.lending import Loan, Turn
from nulltext.attention.maps import RunningMean, StepMaps, Watched
from nulltext.attention.processor import attach
from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.guidance import guided_output, is_guided
from nulltext.editing.lineage import Row, passes_of
from nulltext.inversion.replay import Replaying

OnMaps = Callable[[Tensor, Tensor], None]
"""Shown one step's token maps of the source [1, L, h, w] and of the targets [K, L, h, w]."""


class Eyes:
    """Looks at the attention of source and targets, if anybody wants to know."""

    def __init__(
        self, largest_pixels: int, on_maps: OnMaps | None, order: Tensor, *, needed: bool
    ) -> None:
        """`order`: [K], the rows that `on_maps` is shown."""
        self.largest_pixels, self.on_maps, self.order = largest_pixels, on_maps, order
        self.wanted = needed or on_maps is not None
        self.source: StepMaps | None = None
        self.targets: StepMaps | None = None
        self.means = (RunningMean(), RunningMean())

    def open(self) -> None:
        """Begin a step."""
        if self.wanted:
            self.source, self.targets = (StepMaps(self.largest_pixels) for _ in range(2))

    def close(self) -> None:
        """Take what the step has shown."""
        if self.source is None or self.targets is None:
            return
        maps = self.source.token_maps(), self.targets.token_maps()
        for mean, value in zip(self.means, maps, strict=True):
            mean.add(value)
        if self.on_maps is not None:
            self.on_maps(maps[0], maps[1][self.order])

    def of(self, row: int, parent: int | None) -> tuple[Tensor, Tensor] | None:
        """Mean token maps [L, h, w] of a row's parent and of itself; None if nobody looked yet."""
        source, targets = self.means
        if not self.wanted or targets.count == 0:
            return None
        of_parent = source.value[0] if parent is None else targets.value[parent]
        return of_parent, targets.value[row]


@dataclass
class Targets:
    """Latents of all targets, at one place of the grid."""

    latents: Tensor
    """[K, C, h, w]."""
    prompt_embeds: Tensor
    """[K, L, D]."""
    rows: Sequence[Row]
    """K of them, parents first."""
    guidance_scales: Sequence[float]
    """K of them."""
    replaying: Replaying
    """What they are sampled beside."""
    shares: Tensor = field(init=False)
    """[K, h, w] in [0, 1]: where each was free of its parent at the last step."""
    passes: list[range] = field(init=False)
    """Rows that pass the UNet together, in order."""

    def __post_init__(self) -> None:
        self.shares = torch.ones_like(self.latents[:, 0])
        self.passes = passes_of(self.rows, self.replaying.model.memory.targets)

    @classmethod
    def start(cls, replaying: Replaying, rows: Sequence[Row]) -> Targets:
        """All targets at z*_T."""
        common = replaying.inversion.header.guidance_scale
        own = [row.spec.guidance_scale for row in rows]
        return cls(
            latents=replaying.start.repeat(len(rows), 1, 1, 1),
            prompt_embeds=replaying.model.embed([row.spec.target for row in rows]),
            rows=rows,
            guidance_scales=[common if scale is None else scale for scale in own],
            replaying=replaying,
        )

    def loan_of(self, row: int | None, index: int) -> Loan:
        """What the source (None) or a row will lend at a step; nothing is in it yet."""
        return Loan([child.plan for child in self.rows if child.parent == row], index)

    def step(self, index: int, lent: Loan, eyes: Eyes) -> Tensor:
        """Take one step with all rows; returns their estimates of x0, [K, C, h, w].

        Args: lent: by the source.
        """
        model, step = self.replaying.model, self.replaying.grid[index]
        null_embeds = self.replaying.conditions.at(index).null_embeds
        moved, estimates = [], []
        loans = [self.loan_of(row, index) for row in range(len(self.rows))]
        for rows in self.passes:
            latents = self.latents[rows.start : rows.stop]
            scales = [self.guidance_scales[row] for row in rows]
            turns = [self._turn(row, lent, loans, eyes) for row in rows]
            plan = type(turns[0].plan)
            controller = plan.controller(turns, index, guided=is_guided(scales))
            with attach(model.unet, watched(controller, eyes.targets)):
                output = guided_output(
                    model,
                    latents,
                    step.noisier,
                    null_embeds=null_embeds,
                    prompt_embeds=self.prompt_embeds[rows.start : rows.stop],
                    guidance_scale=scales,
                )
            moved.append(step.denoise(latents, output))
            estimates.append(step.clean_estimate(latents, output))
        self.latents = torch.cat(moved)
        check_finite(self.latents, "The edit", step.noisier)
        return torch.cat(estimates)

    def _turn(self, index: int, lent: Loan, loans: Sequence[Loan], eyes: Eyes) -> Turn[Any]:
        row = self.rows[index]
        parent = lent if row.parent is None else loans[row.parent]
        return Turn(row.plan, parent, loans[index], eyes.of(index, row.parent))

    def follow(self, source: Tensor, index: int, eyes: Eyes) -> None:
        """Lead the targets back to their parents where they may not depart from them.

        Args:
            source: [1, C, h, w], the parent of the first generation.
        """
        led: list[Tensor] = []
        for number, row in enumerate(self.rows):
            target = self.latents[number : number + 1]
            if not row.region.free:
                parent = source if row.parent is None else led[row.parent]
                maps = eyes.of(number, row.parent)
                self.shares[number] = row.region.share(index, maps, target)
                # lerp: the ends 0 and 1 give parent and target bit for bit
                target = torch.lerp(parent, target, self.shares[number] * row.region.rate)
            led.append(target)
        self.latents = torch.cat(led)

    def masks(self) -> Tensor:
        """[K, h, w] in [0, 1]: where each is free of the photo: its own share or an ancestor's."""
        masks: list[Tensor] = []
        for row, share in zip(self.rows, self.shares, strict=True):
            masks.append(share if row.parent is None else torch.maximum(share, masks[row.parent]))
        return torch.stack(masks)


def watched(controller: AttentionController, watch: StepMaps | None) -> AttentionController:
    """A controller, with an eye on its maps if one is wanted."""
    return controller if watch is None else Watched(controller, watch)

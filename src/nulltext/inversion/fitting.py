"""What a fit of one embedding per timestep keeps: the best embeddings, and how far it came.

Records only; the algorithm is in `null_text`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nulltext.constants import PivotName
from nulltext.diffusion.finite import ADVICE, at
from nulltext.diffusion.levels import Step
from nulltext.diffusion.loops import StepInfo
from nulltext.errors import NumericalError, OptionError
from nulltext.inversion.base import SideBySide, Solution
from nulltext.inversion.pivots import check_pivot

FITTED = "fitted."
"""Prefix of tensor names in a partial file, one per timestep."""

Branch = Literal["null_embeds", "prompt_embeds"]
"""The branch of guidance that is fitted, by the field of a `Solution` that it becomes."""


def check_null_branch(what: str, guidance_scale: float) -> None:
    """Refuse scales at which the null embedding does not act.

    Raises:
        OptionError: the scale is 1 or below.
    """
    if guidance_scale <= 1:
        raise OptionError(
            f"{what} cannot do anything at guidance {guidance_scale:g}: at 1 and "
            "below, the null embedding that it optimises does not guide the image; "
            "pass a higher --guidance or none, or leave --method out."
        )


def check_prompt_branch(what: str, guidance_scale: float) -> None:
    """Refuse the scale at which the prompt's embedding does not act.

    Raises:
        OptionError: the scale is 0.
    """
    if guidance_scale == 0:
        raise OptionError(
            f"{what} cannot do anything at guidance 0: the prompt that it optimises does not guide "
            "the image there; pass another --guidance, or none."
        )


def check_effort(inner_steps: int, learning_rate: float) -> None:
    """Refuse a number of steps or a learning rate without meaning.

    Raises:
        OptionError: fewer than 0 steps, or a learning rate that is not above 0.
    """
    if inner_steps < 0 or not learning_rate > 0:
        raise OptionError(
            f"inner_steps is {inner_steps} and learning_rate {learning_rate:g}; choose 0 or more, "
            "and more than 0."
        )


class FittingMethod(SideBySide):
    """A method that fits embeddings to a pivot: its options are checked."""

    mixes: ClassVar[bool] = True
    """Whether it computes both branches of guidance itself."""
    inner_steps: int
    learning_rate: float
    pivot: PivotName

    def __post_init__(self) -> None:
        check_effort(self.inner_steps, self.learning_rate)
        check_pivot(self.pivot)


class Best:
    """The best embedding that was tested at one timestep, photo by photo."""

    def __init__(self, start: Tensor, latents: Tensor, step: Step) -> None:
        """Args: start: [B, R, D]. latents: zbar_t, [B, C, h, w]."""
        self.step, self.latents = step, latents
        self.embeds = start.detach().clone()
        self.output = torch.empty_like(latents)
        self.losses = latents.new_full((len(start),), math.inf)

    def offer(
        self, embeds: Tensor, output: Tensor, losses: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keep what is better than before.

        Args: embeds [b, R, D], guided output [b, C, h, w] and losses [b] of the photos `rows` [b].
        Returns: losses [b], whether each was better [b].

        Raises:
            NumericalError: a loss is infinite or NaN; names the timestep.
        """
        losses = losses.detach()
        if not bool(torch.isfinite(losses).all()):
            worst = losses[~torch.isfinite(losses)][0].item()
            raise NumericalError(
                f"The loss around the pivot is {worst}{at(self.step.noisier)}; {ADVICE}."
            )
        better = losses < self.losses[rows]
        kept = rows[better]
        self.losses[kept] = losses[better]
        self.embeds[kept] = embeds.detach()[better]
        self.output[kept] = output.detach()[better]
        return losses, better

    @property
    def cleaner(self) -> Tensor:
        """zbar_{t-1}: where the step lands under the best embeddings, [B, C, h, w]."""
        return self.step.denoise(self.latents, self.output)


@dataclass(frozen=True)
class State:
    """How far a fit has come: all that the timesteps still to do depend on.

    Its tensors are those of the run itself, so going on from it is going on, to the bit.
    """

    pivot: Tensor
    """[T + 1, B, C, h, w]."""
    latents: Tensor
    """zbar after the last timestep that is done, [B, C, h, w]."""
    fitted: tuple[Tensor, ...]
    """E_T …, one [B, R, D] per timestep that is done."""
    gradients: Tensor
    """[B], int64, taken so far."""

    @classmethod
    def start(cls, pivot: Tensor) -> State:
        """Begin at z*_T of a pivot [T + 1, B, C, h, w]."""
        nothing = torch.zeros(pivot.shape[1], dtype=torch.int64)
        return cls(pivot, pivot[-1], (), nothing)

    @property
    def done(self) -> int:
        """Timesteps that are done."""
        return len(self.fitted)

    @property
    def rows(self) -> Tensor:
        """[B], the index of every photo."""
        return torch.arange(len(self.latents), device=self.latents.device)

    def target(self, index: int) -> Tensor:
        """z*_{t-1} of the step with this index (0 is the noisiest): [B, C, h, w]."""
        return self.pivot[len(self.pivot) - index - 2]

    def after(
        self,
        best: Best,
        gradients: Tensor,
    ) -> State:
        """Return the state one timestep later.

        Args: gradients: [B], int64, taken at this timestep.
        """
        return replace(
            self,
            latents=best.cleaner,
            fitted=(*self.fitted, best.embeds),
            gradients=self.gradients + gradients.cpu(),
        )

    def info(self, best: Best, inner_steps: int) -> StepInfo:
        """Report the timestep that was fitted last."""
        return StepInfo(
            "optimise",
            self.done,
            len(self.pivot) - 1,
            best.step.noisier,
            clean_estimate=best.step.clean_estimate(best.latents, best.output),
            loss=best.losses.mean().item(),
            inner_steps=inner_steps,
            kept=self.tensors(),
        )

    def solutions(self, branch: Branch) -> list[Solution]:
        """Return one solution per photo, once all timesteps are done."""
        embeds = torch.stack(self.fitted)
        fields: list[dict[str, Any]] = [{branch: own} for own in embeds.unbind(1)]
        return [
            Solution(
                trajectory=self.pivot[:, row],
                iterations=int(self.gradients[row]),
                replayed=self.latents[row : row + 1],
                **fitted,
            )
            for row, fitted in enumerate(fields)
        ]

    def tensors(self) -> dict[str, Tensor]:
        """By name, as `of` reads them; nothing is copied."""
        own = {"pivots": self.pivot, "latents": self.latents, "gradients": self.gradients}
        fitted = {f"{FITTED}{index}": embeds for index, embeds in enumerate(self.fitted)}
        return own | fitted

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> State:
        """Undo `tensors`."""
        count = sum(name.startswith(FITTED) for name in tensors)
        fitted = tuple(tensors[f"{FITTED}{index}"] for index in range(count))
        gradients = tensors["gradients"].cpu()
        return cls(tensors["pivots"], tensors["latents"], fitted, gradients)

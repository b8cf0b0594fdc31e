"""Textual inversion around the pivot: the prompt's embedding moves, one per timestep.

    ∅ = the empty prompt's embedding, fixed;   C_t = argmin L_t, started at C_{t+1}, first at C

with L_t and the pivot of null-text inversion: the same fit with the branches' roles exchanged. It
reconstructs about as well, but the words of C_t no longer look where the prompt's own words did.
Source: Mokady et al. 2023, sec. 4.1 ("textual inversion with a pivot").
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from nulltext.errors import OptionError
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.per_step import (
    Batch,
    PerStepOptions,
    fit_steps,
    pivot_of_steps,
    prompt_moves,
)
from nulltext.inversion.record import StepInfo
from nulltext.models.latent_diffusion import LatentDiffusion


def check_prompt_branch(what: str, guidance_scale: float) -> None:
    """Refuse the scale at which the prompt's embedding has no say.

    Raises:
        OptionError: the scale is 0.
    """
    if guidance_scale == 0:
        raise OptionError(
            f"{what} cannot do anything at guidance 0: the prompt that it optimises does not guide "
            "the image there; pass another --guidance, or none."
        )


@dataclass(frozen=True)
class TextualPivot(PerStepOptions):
    """Options of the fit; those of null-text inversion."""

    name: ClassVar[str] = "textual-pivot"
    differentiates: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    step_cost: ClassVar[int] = 3
    gradient_cost: ClassVar[int] = 2

    def check(self, guidance_scale: float) -> None:
        """It needs the prompt's branch; see `check_prompt_branch`."""
        check_prompt_branch("Textual inversion around the pivot", guidance_scale)

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Pivot, then fit; costs what null-text inversion does."""
        (solution,) = yield from self.batch_steps(model, [problem])
        return solution

    def batch_steps(
        self, model: LatentDiffusion, problems: Sequence[Problem]
    ) -> Generator[StepInfo, None, list[Solution]]:
        """`steps` for several photos at once."""
        batch = Batch.of(problems)
        pivots = yield from pivot_of_steps(model, batch)
        fits = yield from fit_steps(model, batch, pivots, prompt_moves(model, batch), self)
        return fits.solutions(pivots)

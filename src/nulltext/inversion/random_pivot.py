"""Null-text inversion around a random trajectory: what a pivot is worth.

    eps ~ N(0, I) once per photo,   z*_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps  for all t

The rest is null-text inversion. Such a trajectory is as noisy as a pivot and as near to z_0, but
the model would not have walked it.
Source: Mokady et al. 2023, sec. 4.1 ("random pivot").
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.null_text import check_null_branch
from nulltext.inversion.per_step import Batch, PerStepOptions, fit_steps, null_moves
from nulltext.inversion.record import StepInfo
from nulltext.models.latent_diffusion import LatentDiffusion


def random_trajectory(model: LatentDiffusion, problem: Problem) -> Tensor:
    """z*_0 … z*_T of the module's formula, [T + 1, C, h, w]; one draw from the generator."""
    latents = problem.latents
    noise = torch.randn(latents.shape, generator=problem.generator).to(latents)
    grid = reversed(model.schedule.timesteps(problem.num_steps))
    return torch.cat([latents, *(model.schedule.add_noise(latents, noise, t) for t in grid)])


@dataclass(frozen=True)
class RandomPivot(PerStepOptions):
    """Options of the fit; those of null-text inversion."""

    name: ClassVar[str] = "random-pivot"
    differentiates: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    step_cost: ClassVar[int] = 2
    gradient_cost: ClassVar[int] = 2

    def check(self, guidance_scale: float) -> None:
        """It needs a null branch; see `check_null_branch`."""
        check_null_branch("Null-text inversion around a random pivot", guidance_scale)

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Draw, then fit; costs what null-text inversion does, less the pivot's T evaluations."""
        (solution,) = yield from self.batch_steps(model, [problem])
        return solution

    def batch_steps(
        self, model: LatentDiffusion, problems: Sequence[Problem]
    ) -> Generator[StepInfo, None, list[Solution]]:
        """`steps` for several photos at once."""
        batch = Batch.of(problems)
        pivots = torch.stack([random_trajectory(model, problem) for problem in problems], dim=1)
        fits = yield from fit_steps(model, batch, pivots, null_moves(model, batch), self)
        return fits.solutions(pivots)

"""RF-Inversion: the flow's ODE towards noise, drawn to one sample of noise by a controller.

    z <- z + h [u + gamma ((y_1 - z) / (1 - s) - u)],    u = v(z, s, ""),  y_1 ~ N(0, I)

from level s to s + h. (y_1 - z) / (1 - s) is the velocity that would lead straight to y_1: gamma
0 is the flow's own ODE, 1 the straight line to y_1. The prompt is empty, as in the paper.

`grid` says which times that is on. "model": the noise levels of the model's run, at which z is what
the network takes it for. "published": the code of the paper feeds, and controls at, t = i / (T + 1)
while its steps are those of the shifted levels, counted from the noisy end. Then z is at no level
of the run but the first and the last: the points between are put on the line from z_0 to z_T.

The ODE back, which is drawn to z_0 by a controller of its own, is the editor `rf-inversion`. A
replay has no such controller; in its place the differences that it misses the trajectory by are
stored, as by direct inversion, so that a reconstruction says nothing about the method.
Source: Rout et al. 2025 (RF-Inversion), eq. 8, alg. 1.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.levels import Level
from nulltext.diffusion.loops import StepInfo
from nulltext.diffusion.solvers import levels_of
from nulltext.errors import OptionError
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.direct import correction_steps
from nulltext.models.latent_diffusion import LatentDiffusion

Times = Literal["model", "published"]


@dataclass(frozen=True)
class RFInversion:
    """Options of RF-Inversion."""

    name: ClassVar[str] = "rf-inversion"
    differentiates: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    flow_only: ClassVar[bool] = True
    steered: ClassVar[bool] = True
    """Whether its reconstruction is exact by construction alone."""
    published_steps: ClassVar[int] = 28

    gamma: float = 0.5
    """Share of the controller: 0 ends in the photo's own noise, 1 in noise that knows nothing of
    it."""
    grid: Times = "model"
    """Times of the walk: the model's noise levels, or those of the published code."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise OptionError(f"gamma is {self.gamma:g}; it is a share, from 0 to 1.")
        if self.grid not in get_args(Times):
            choices = " or ".join(map(repr, get_args(Times)))
            raise OptionError(f"grid is {self.grid!r}; choose {choices}.")

    def check(self, guidance_scale: float) -> None:
        """Accept any scale."""

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Walk, then measure what a replay misses; costs 3 T evaluations (2 T at w = 1)."""
        latents, empty = problem.latents, model.embed([""])
        noise = torch.randn(latents.shape, generator=problem.generator).to(latents)
        walked, total = [latents], len(problem.grid)
        for index, (level, length) in enumerate(self._times(problem)):
            with torch.no_grad():
                u = model.predict(walked[-1], level, empty)
            straight = (noise - walked[-1]) / (1.0 - level.sigma)
            walked.append(walked[-1] + length * (u + self.gamma * (straight - u)))
            check_finite(walked[-1], "RF-Inversion", level)
            yield StepInfo("pivot", index + 1, total, level)
        trajectory = torch.cat(walked)
        if self.grid == "published":
            trajectory = _straight(trajectory, levels_of(problem.grid))
        corrections = yield from correction_steps(model, problem, trajectory)
        return Solution(trajectory, corrections=corrections, replayed=latents)

    def _times(self, problem: Problem) -> list[tuple[Level, float]]:
        """The level that each step is taken at, and its length h."""
        levels = levels_of(problem.grid)
        if self.grid == "model":
            return [(start, end.sigma - start.sigma) for start, end in pairwise(levels)]
        lengths = [step.noisier.sigma - step.cleaner.sigma for step in problem.grid]
        fed = levels[-1].fed / levels[-1].sigma  # of a level 1
        times = [i / (len(lengths) + 1) for i in range(len(lengths))]
        return [
            (Level(1.0 - t, t, t * fed), length) for t, length in zip(times, lengths, strict=True)
        ]


def _straight(trajectory: Tensor, levels: list[Level]) -> Tensor:
    """The ends of a trajectory [T + 1, C, h, w], and between them the line at the levels."""
    ends, noisiest = (trajectory[0], trajectory[-1]), levels[-1].sigma
    return torch.stack([torch.lerp(*ends, level.sigma / noisiest) for level in levels])

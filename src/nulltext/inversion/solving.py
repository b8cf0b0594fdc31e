"""Inversion by a solver of the flow's ODE, and what of it a replay keeps.

    z*_0 = z_0,   z*_t = solver(z*_{t-1}, s_{t-1} -> s_t)         at w = 1, under the source prompt

A replay takes Euler steps on the same levels, whatever the method. So a solver of higher order
stores, as direct inversion does, what those miss its trajectory by (`corrections`): the source
lands on z*_t at every step, and its reconstruction is the autoencoder's own round trip *by
construction*. Of the solver itself an edit keeps the noise z*_T, from which targets start.

How well the solver inverts is another figure, the round trip by the solver alone:

    z_0 -> z*_T -> z'_0,   both by the solver, at w = 1, without corrections      `round_trip`
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from nulltext.diffusion.loops import StepInfo
from nulltext.diffusion.solvers import Solver
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.direct import correction_steps
from nulltext.inversion.pivots import walk_by
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class SolverMethod:
    """Base of the methods that invert by a solver, and steer the replay onto its trajectory."""

    name: ClassVar[str]
    differentiates: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    flow_only: ClassVar[bool] = True
    """Whether it is for rectified-flow models alone."""
    steered: ClassVar[bool] = True
    """Whether its reconstruction is exact by construction alone."""
    there: ClassVar[Solver]
    """The solver towards noise."""
    back: ClassVar[Solver]
    """The solver towards the image, of the method's own round trip."""

    def check(self, guidance_scale: float) -> None:
        """Accept any scale."""

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Walk, then measure what Euler steps miss; the latter costs 2 T evaluations (T at w = 1).

        The walk costs as many per step as the solver, see `diffusion.solvers`.
        """
        walked = yield from walk_by(type(self).there, model, problem)
        trajectory = walked[:, 0]
        corrections = yield from correction_steps(model, problem, trajectory)
        return Solution(trajectory, corrections=corrections, replayed=problem.latents)

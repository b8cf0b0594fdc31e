"""Uni-Inv: each step towards noise takes the velocity where the step back will take it.

    z*_t = z + h v_t,   v_t = v(z + h v_{t-1}, s_t),   z = z*_{t-1},  h = s_t - s_{t-1}

v_{t-1} of the step before predicts where the step ends. The step back is Euler's, the one that
every replay takes, so nothing of the method is lost and there are no corrections: what a replay at
w = 1 reaches is what the method reaches. At higher scales it drifts off, as DDIM inversion does.
Source: Jiao et al. 2025 (UniEdit-Flow), alg. 1; its first v is taken at z_0, as in its code.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from nulltext.diffusion.loops import StepInfo
from nulltext.diffusion.solvers import predicted
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.pivots import walk_by
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class UniInv:
    """The inversion of UniEdit-Flow: one evaluation per step."""

    name: ClassVar[str] = "uni-inv"
    differentiates: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    flow_only: ClassVar[bool] = True
    published_steps: ClassVar[int] = 15
    published_guidance: ClassVar[float] = 1.0
    """w of the replay where none is given: at more it drifts off, and nothing corrects it."""

    def check(self, guidance_scale: float) -> None:
        """Accept any scale."""

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Walk; costs T + 1 evaluations."""
        walked = yield from walk_by(predicted, model, problem)
        return Solution(trajectory=walked[:, 0])

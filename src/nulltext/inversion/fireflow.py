"""FireFlow inversion: the midpoint rule at the price of Euler's.

    z*_t = z + h v_m,   v_m = v(z + h/2 v_m', (s_{t-1} + s_t) / 2),   v_m' of before

v_m' is the v_m of the step before, so second order takes one evaluation per step, and one more at
the first. Kept are its trajectory and its noise; replays and targets take Euler steps (`solving`).
The values of attention that the paper hands over in its first step are no part of an inversion.
Source: Deng et al. 2025 (FireFlow), sec. 4, alg. 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nulltext.diffusion.solvers import Solver, reused
from nulltext.inversion.solving import SolverMethod


@dataclass(frozen=True)
class FireFlow(SolverMethod):
    """Inversion by the midpoint rule that reuses velocities: one evaluation per step."""

    name: ClassVar[str] = "fireflow"
    published_steps: ClassVar[int] = 8
    there: ClassVar[Solver] = staticmethod(reused)
    back: ClassVar[Solver] = staticmethod(reused)

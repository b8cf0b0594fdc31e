"""RF-Solver inversion: the explicit midpoint rule, towards noise and back.

    z*_t = z + h v(z + h/2 v(z, s_{t-1}), (s_{t-1} + s_t) / 2),   z = z*_{t-1},  h = s_t - s_{t-1}

The published step is z + h v + h^2/2 dv/ds with dv/ds = (v_m - v) / (h/2), which is the same. Kept
are its trajectory and its noise; replays and targets take Euler steps (`solving`). The values of
attention that the paper hands from the inversion to the edit are no part of an inversion here.
Source: Wang et al. 2025 (Taming Rectified Flow for Inversion and Editing), eq. 9, alg. 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nulltext.diffusion.solvers import Solver, midpoint
from nulltext.inversion.solving import SolverMethod


@dataclass(frozen=True)
class RFSolver(SolverMethod):
    """Inversion by the midpoint rule: two evaluations per step."""

    name: ClassVar[str] = "rf-solver"
    step_cost: ClassVar[int] = 4
    published_steps: ClassVar[int] = 25
    there: ClassVar[Solver] = staticmethod(midpoint)
    back: ClassVar[Solver] = staticmethod(midpoint)

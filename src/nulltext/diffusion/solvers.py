"""Explicit solvers of a flow's ODE, from one noise level to the next, in either direction.

    dz / ds = v(z, s),    v the network's own output,    h = s_b - s_a    from level a to level b

    midpoint    v_m = v(z + h/2 v(z, s_a), (s_a + s_b) / 2)    z_b = z + h v_m    2 evaluations
    reused      v_m = v(z + h/2 v_m',      (s_a + s_b) / 2)    z_b = z + h v_m    1, v_m' of before
    predicted   v_b = v(z + h v_b',        s_b)                z_b = z + h v_b    1, v_b' of before

The first step of the latter two has no v' of before: it takes v(z, s_a), one evaluation more.
midpoint and reused are of second order. predicted is of first order, but its step is nearly that of
which the Euler step from b to a is the inverse: v_b is taken (nearly) where that one takes it.

Sources: Wang et al. 2025 (RF-Solver), eq. 9 with the derivative by a finite difference over half a
step, which makes it the midpoint rule; Deng et al. 2025 (FireFlow), alg. 1 (reused); Jiao et al.
2025 (UniEdit-Flow), alg. 1 (predicted).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.levels import Grid, Level
from nulltext.diffusion.loops import StepInfo

Velocity: TypeAlias = Callable[[Tensor, Level], Tensor]
"""v of latents [B, C, h, w] at a level; the model under a prompt, or a formula in a test."""


@dataclass(frozen=True)
class Solved:
    """Where a step arrives, and what the next one reuses."""

    latents: Tensor
    """z_b, [B, C, h, w]."""
    velocity: Tensor
    """v_m or v_b, [B, C, h, w]."""


Solver: TypeAlias = Callable[[Velocity, Tensor, Level, Level, Tensor | None], Solved]
"""Takes v, z [B, C, h, w], the levels a and b, and the step before's velocity if there was one."""


def midpoint(
    velocity: Velocity,
    latents: Tensor,
    start: Level,
    end: Level,
    before: Tensor | None = None,  # noqa: ARG001
) -> Solved:
    """Take a step of the explicit midpoint rule; see the module's formulae."""
    return reused(velocity, latents, start, end, None)


def reused(
    velocity: Velocity, latents: Tensor, start: Level, end: Level, before: Tensor | None
) -> Solved:
    """Take a midpoint step that begins with the velocity of the step before."""
    h = end.sigma - start.sigma
    first = velocity(latents, start) if before is None else before
    at_middle = velocity(latents + 0.5 * h * first, between(start, end))
    return Solved(latents + h * at_middle, at_middle)


def predicted(
    velocity: Velocity, latents: Tensor, start: Level, end: Level, before: Tensor | None
) -> Solved:
    """Take a step with the velocity at its end, whose place the velocity before predicts."""
    h = end.sigma - start.sigma
    first = velocity(latents, start) if before is None else before
    at_end = velocity(latents + h * first, end)
    return Solved(latents + h * at_end, at_end)


def between(start: Level, end: Level) -> Level:
    """Return the level of a flow half way between two, fed as they are, linearly."""
    return Level(
        0.5 * (start.alpha + end.alpha),
        0.5 * (start.sigma + end.sigma),
        0.5 * (start.fed + end.fed),
    )


def levels_of(grid: Grid) -> list[Level]:
    """Return the T + 1 levels of a flow's grid, cleanest first."""
    return [grid[-1].cleaner, *(step.noisier for step in reversed(grid))]


def solve_steps(
    solver: Solver, velocity: Velocity, latents: Tensor, levels: Sequence[Level], *, stage: str
) -> Generator[StepInfo, None, Tensor]:
    """Walk latents [B, C, h, w] along T + 1 levels, in the order in which they are given.

    Returns:
        where the walk is at every level, [T + 1, B, C, h, w].

    Raises:
        NumericalError: the latents became infinite or NaN.
    """
    walked, before = [latents], None
    for index, (start, end) in enumerate(pairwise(levels)):
        with torch.no_grad():
            solved = solver(velocity, walked[-1], start, end, before)
        check_finite(solved.latents, "The solver", max(start, end, key=lambda level: level.sigma))
        walked.append(solved.latents)
        before = solved.velocity
        yield StepInfo(stage, index + 1, len(levels) - 1, end)
    return torch.stack(walked)

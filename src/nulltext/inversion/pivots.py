"""The trajectory that a method steers its replay along: three ways to walk it.

    ddim           z*_t = invert(z*_{t-1}, o(z*_{t-1}, t, C))              as published
                   of a flow: o(z*_{t-1}, t - 1, C), Euler's step backwards
    fixed-point    z*_t such that denoise(z*_t, o(z*_t, t, C)) = z*_{t-1}   diffusion.fixed_point
    midpoint       z*_t by the explicit midpoint rule, for rectified flow     diffusion.solvers

A replay at w = 1 leaves the first by its discretisation error, and the second hardly at all. The
third follows the flow's ODE itself more closely, at two evaluations per step; the replay's Euler
steps still leave it by their own error.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from nulltext.constants import PivotName
from nulltext.diffusion.fixed_point import FixedPoints, fixed_point_steps
from nulltext.diffusion.loops import StepInfo, pivot_steps
from nulltext.diffusion.solvers import Solver, Velocity, levels_of, midpoint, solve_steps
from nulltext.errors import OptionError
from nulltext.inversion.base import Batch, Problem
from nulltext.models.latent_diffusion import LatentDiffusion


def check_pivot(name: str) -> None:
    """Refuse an unknown pivot.

    Raises:
        OptionError: there is no such pivot.
    """
    if name not in get_args(PivotName):
        *others, last = map(repr, get_args(PivotName))
        raise OptionError(f"pivot is {name!r}; choose {', '.join(others)} or {last}.")


def walk_steps(
    name: PivotName, model: LatentDiffusion, photos: Problem | Batch
) -> Generator[StepInfo, None, Tensor]:
    """Walk the pivots of B photos side by side.

    Returns:
        z*_0 … z*_T, [T + 1, B, C, h, w].

    Raises:
        NumericalError: the latents became infinite or NaN.
    """
    if name == "midpoint":
        return (yield from walk_by(midpoint, model, photos))
    if name == "ddim":
        return (yield from pivot_steps(model, photos.latents, photos.prompt_embeds, photos.grid))
    rounding = torch.finfo(model.network.dtype).eps
    steps = fixed_point_steps(
        model, photos.latents, photos.prompt_embeds, photos.grid, rounding=rounding
    )
    while True:
        try:
            info = next(steps)
        except StopIteration as stop:
            found: FixedPoints = stop.value
            return found.trajectory
        yield replace(info, kept=None)  # the method goes on from what it keeps itself


def velocity_of(model: LatentDiffusion, prompt_embeds: Tensor) -> Velocity:
    """Return the model's velocity at w = 1 under prompts [B, R, D]."""
    return lambda latents, level: model.predict(latents, level, prompt_embeds)


def walk_by(
    solver: Solver, model: LatentDiffusion, photos: Problem | Batch
) -> Generator[StepInfo, None, Tensor]:
    """Walk B photos towards noise by a solver: z*_0 … z*_T, [T + 1, B, C, h, w]."""
    velocity = velocity_of(model, photos.prompt_embeds)
    return (
        yield from solve_steps(
            solver, velocity, photos.latents, levels_of(photos.grid), stage="pivot"
        )
    )

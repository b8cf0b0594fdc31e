"""The trajectory that a method steers its replay along: two ways to walk it.

    ddim           z*_t = invert(z*_{t-1}, o(z*_{t-1}, t, C))              as published
                   of a flow: o(z*_{t-1}, t - 1, C), Euler's step backwards
    fixed-point    z*_t such that denoise(z*_t, o(z*_t, t, C)) = z*_{t-1}   diffusion.fixed_point

A replay at w = 1 leaves the first by its discretisation error, and the second hardly at all.
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
from nulltext.errors import OptionError
from nulltext.inversion.base import Batch, Problem
from nulltext.models.latent_diffusion import LatentDiffusion


def check_pivot(name: str) -> None:
    """Refuse an unknown pivot.

    Raises:
        OptionError: there is no such pivot.
    """
    if name not in get_args(PivotName):
        choices = " or ".join(map(repr, get_args(PivotName)))
        raise OptionError(f"pivot is {name!r}; choose {choices}.")


def walk_steps(
    name: PivotName, model: LatentDiffusion, photos: Problem | Batch
) -> Generator[StepInfo, None, Tensor]:
    """Walk the pivots of B photos side by side.

    Returns:
        z*_0 … z*_T, [T + 1, B, C, h, w].

    Raises:
        NumericalError: the latents became infinite or NaN.
    """
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

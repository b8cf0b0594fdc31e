"""The loop towards noise (the pivot), and one step of the way back (the replay).

    pivot    z*_0 = z_0,  z*_t = invert(z*_{t-1}, o(z*_{t-1}, t, C))                 w = 1
             of a flow: o(z*_{t-1}, t - 1, C), Euler's step backwards
    replay   z_T = z*_T,  z_{t-1} = denoise(z_t, guided o(z_t, t, ∅_t, C_t))

Loops are generators: they yield a `StepInfo` per step and return their tensors; `run` drives one.
`inversion.replay.replay_steps` is the loop of the replay.
Source: Mokady et al. 2023, sec. 3.2 (pivot), 3.3 (replay).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.guidance import CONDITIONAL_ONLY, Denoiser, guided_output
from nulltext.diffusion.levels import Grid, Level, Step
from nulltext.errors import convert_out_of_memory
from nulltext.image.bands import Bands
from nulltext.reprs import short_repr

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class StepInfo:
    """One step of a long loop: for progress bars, previews, and going on after a break."""

    stage: str
    """"pivot", "optimise", "correct", "replay", "region" or "edit", in which the model runs; of a
    photo at its own size "outline", "composite", "compare", "encode" or "write"."""
    index: int
    """Steps of this stage that are done."""
    total: int
    """Steps that this stage has."""
    level: Level | None = None
    """The noise level that was worked on; None where the model does not run."""
    clean_estimate: Tensor | None = None
    """x0 as seen from here, [B, C, h, w]; decoded, it is a preview."""
    loss: float | None = None
    """What is left of the step's objective, mean square over latents."""
    inner_steps: int | None = None
    """Optimiser steps that this level took."""
    kept: Mapping[str, Tensor] | None = field(default=None, repr=False)
    """Tensors from which a later run can go on behind this step; None where it cannot."""

    __repr__ = short_repr


@dataclass(frozen=True)
class Conditions:
    """The embeddings that each step of a replay runs under."""

    null_embeds: Tensor
    """[1 or T, R, D]."""
    prompt_embeds: Tensor
    """[1 or T, R, D]."""

    def at(self, index: int) -> Conditions:
        """Return those of the step with this index (0 is the noisiest), [1, R, D] each."""
        return Conditions(_row(self.null_embeds, index), _row(self.prompt_embeds, index))


def _row(embeds: Tensor, index: int) -> Tensor:
    return embeds if embeds.shape[0] == 1 else embeds[index : index + 1]


@dataclass(frozen=True)
class Sampled:
    """Where a step of a replay arrives."""

    latents: Tensor
    """At the cleaner level, [B, C, h, w]."""
    clean_estimate: Tensor
    """x0 as seen from the noisier level, [B, C, h, w]."""


def pivot_steps(
    model: Denoiser,
    latents: Tensor,
    prompt_embeds: Tensor,
    grid: Grid,
    *,
    null_embeds: Tensor | None = None,
    guidance_scale: float = CONDITIONAL_ONLY,
) -> Generator[StepInfo, None, Tensor]:
    """DDIM inversion of B photos side by side.

    Args:
        latents: z_0, [B, C, h, w]. prompt_embeds: [B, R, D].
        guidance_scale: w of the inversion; a pivot has 1, others are for comparison and need
            null_embeds, [1, R, D].

    Returns:
        the trajectories z*_0 … z*_T, [T + 1, B, C, h, w]. Costs T UNet evaluations per photo, 2 T
        unless w = 1.

    Raises:
        NumericalError: the latents became infinite or NaN.
    """
    trajectory = [latents]
    for index, step in enumerate(reversed(grid)):
        with torch.no_grad():
            output = guided_output(
                model,
                trajectory[-1],
                step.inverted_at,
                null_embeds=prompt_embeds if null_embeds is None else null_embeds,
                prompt_embeds=prompt_embeds,
                guidance_scale=guidance_scale,
            )
            noisier = step.invert(trajectory[-1], output)
        check_finite(noisier, "DDIM inversion", step.noisier)
        trajectory.append(noisier)
        yield StepInfo("pivot", index + 1, len(grid), step.noisier)
    return torch.stack(trajectory)


@torch.no_grad()
def sample_step(
    model: Denoiser,
    step: Step,
    latents: Tensor,
    conditions: Conditions,
    guidance_scale: float,
    *,
    what: str = "The replay",
) -> Sampled:
    """Take one guided step towards the image.

    Args:
        latents: [B, C, h, w]. conditions: of this step. what: names the loop in an error.

    Raises:
        NumericalError: the latents became infinite or NaN.
    """
    output = guided_output(
        model,
        latents,
        step.noisier,
        null_embeds=conditions.null_embeds,
        prompt_embeds=conditions.prompt_embeds,
        guidance_scale=guidance_scale,
    )
    cleaner = step.denoise(latents, output)
    check_finite(cleaner, what, step.noisier)
    return Sampled(cleaner, step.clean_estimate(latents, output))


def stage_steps(stage: str, bands: Bands[Result]) -> Generator[StepInfo, None, Result]:
    """Work on a picture in bands of rows, as steps of a stage."""
    while True:
        try:
            rows = next(bands)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        yield StepInfo(stage, rows.done, rows.total)


def run(
    steps: Generator[StepInfo, None, Result], on_step: Callable[[StepInfo], None] | None = None
) -> Result:
    """Drive a generator of steps to its end and return its result.

    Args:
        on_step: called with each `StepInfo`; what a progress bar hangs on.

    Raises:
        OutOfMemoryError: the device's memory did not suffice.
    """
    while True:
        try:
            with convert_out_of_memory():
                info = next(steps)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        level = "" if info.level is None else f", t = {info.level.fed:g}"
        logger.debug("%s: step %d of %d%s", info.stage, info.index, info.total, level)
        if on_step is not None:
            on_step(info)

"""Direct inversion: the pivot, and what a guided replay misses it by, step by step.

    d_t = z*_{t-1} - denoise(z*_t, guided o(z*_t, t, ∅, C)),   z_{t-1} = denoise(z_t, ...) + d_t

Nothing is optimised: the source is corrected onto the pivot, so its replay is the autoencoder's own
round trip, while targets are sampled under the model's own empty prompt, uncorrected.
Source: Ju et al. 2024 (Direct Inversion), alg. 1.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nulltext.constants import PivotName
from nulltext.diffusion.loops import Conditions, StepInfo, sample_step
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.pivots import check_pivot, walk_steps
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Direct:
    """Options of direct inversion."""

    name: ClassVar[str] = "direct"
    differentiates: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    pivot: PivotName = "ddim"
    """The trajectory: as published, or exact; see `pivots`."""

    def __post_init__(self) -> None:
        check_pivot(self.pivot)

    def check(self, guidance_scale: float) -> None:
        """Accept any scale."""

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Walk the pivot and measure; costs 3 T UNet evaluations around DDIM's (2 T at w = 1)."""
        walked = yield from walk_steps(self.pivot, model, problem)
        pivot = walked[:, 0]
        corrections = yield from correction_steps(model, problem, pivot)
        return Solution(trajectory=pivot, corrections=corrections, replayed=problem.latents)


def correction_steps(
    model: LatentDiffusion, problem: Problem, pivot: Tensor
) -> Generator[StepInfo, None, Tensor]:
    """Measure what guided steps miss a trajectory z*_0 … z*_T [T + 1, C, h, w] by.

    Returns: d_t, [T, C, h, w], noisiest first. Costs 2 T UNet evaluations, T at w = 1.
    """
    corrections = []
    conditions, latents = Conditions(model.embed([""]), problem.prompt_embeds), pivot[-1:]
    for index, step in enumerate(problem.grid):
        target = pivot[-index - 2][None]
        sampled = sample_step(model, step, latents, conditions, problem.guidance_scale)
        corrections.append(target - sampled.latents)
        latents = target  # where a replay lands, too
        yield StepInfo(
            "correct",
            index + 1,
            len(problem.grid),
            step.noisier,
            clean_estimate=sampled.clean_estimate,
        )
    return torch.cat(corrections)

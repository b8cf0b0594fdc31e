"""Plain DDIM inversion: the pivot, without a correction of the guided replay.

    z*_t = invert(z*_{t-1}, o(z*_{t-1}, t, C))

Replayed at w = 1 it is off by the discretisation error alone; under real guidance that error is
magnified w times at every step. It is the baseline of all methods.
Source: Dhariwal & Nichol 2021, app. F; Mokady et al. 2023, sec. 3.2.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from nulltext.diffusion.guidance import CONDITIONAL_ONLY
from nulltext.diffusion.loops import StepInfo, pivot_steps
from nulltext.inversion.base import Problem, Solution
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class DDIM:
    """DDIM inversion."""

    name: ClassVar[str] = "ddim"
    differentiates: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    pivot: ClassVar[str] = "ddim"

    inversion_guidance: float = CONDITIONAL_ONLY
    """w of the inversion itself: above 1 the noise it ends in is less and less Gaussian."""

    def check(self, guidance_scale: float) -> None:
        """Accept any scale."""

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """The pivot trajectory; costs T UNet evaluations, 2 T where the inversion is guided."""
        trajectories = yield from pivot_steps(
            model,
            problem.latents,
            problem.prompt_embeds,
            problem.grid,
            null_embeds=model.embed([""]),
            guidance_scale=self.inversion_guidance,
        )
        return Solution(trajectory=trajectories[:, 0])

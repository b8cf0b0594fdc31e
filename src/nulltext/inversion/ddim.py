"""Plain DDIM inversion: the pivot, and nothing to hold a guided replay to it.

Replayed at w = 1 it is off by the discretisation error alone; under real guidance that error is
magnified w times at every step. It is the lower bound that null-text inversion starts from.
Source: Dhariwal & Nichol 2021, app. F; Mokady et al. 2023, sec. 3.2.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from nulltext.inversion.base import Problem, Solution
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.record import StepInfo
from nulltext.sampling import pivot_steps


@dataclass(frozen=True)
class DDIM:
    """DDIM inversion at w = 1; it has no options."""

    name: ClassVar[str] = "ddim"
    differentiates: ClassVar[bool] = False

    def check(self, guidance_scale: float) -> None:
        """Any scale will do."""

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """The pivot trajectory; costs T UNet evaluations."""
        trajectory = yield from pivot_steps(
            model, problem.latents, problem.prompt_embeds, problem.num_steps
        )
        return Solution(trajectory=trajectory, unet_evaluations=problem.num_steps)

"""Null-text optimisation without a pivot: one null embedding, fitted to random noise.

    ∅ = argmin E || eps - (eps_∅ + w (eps_C - eps_∅))(z_t, t) ||^2     (see `random_noise`)

and the replay starts at the z*_T of DDIM inversion, as all others do.
Source: Mokady et al. 2023, sec. 4.1 ("null-text optimisation without pivotal inversion").
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nulltext.diffusion.guidance import guide
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.descent import check_effort
from nulltext.inversion.null_text import check_null_branch
from nulltext.inversion.per_step import tokens_alone
from nulltext.inversion.random_noise import random_noise_steps
from nulltext.inversion.record import StepInfo
from nulltext.inversion.sampling import pivot_steps
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class NullTextNoPivot:
    """Options of null-text optimisation without a pivot."""

    name: ClassVar[str] = "null-text-no-pivot"
    differentiates: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    step_cost: ClassVar[int] = 3
    gradient_cost: ClassVar[int] = 3

    inner_steps: int = 10
    """N: T N gradient steps are made, so that N means what it does with a pivot."""
    learning_rate: float = 1e-2
    """Of Adam: higher moves the embedding faster and less steadily (docs/study.md: the sweep)."""

    def __post_init__(self) -> None:
        check_effort(self.inner_steps, self.learning_rate)

    def check(self, guidance_scale: float) -> None:
        """It needs a null branch; see `check_null_branch`."""
        check_null_branch("Null-text optimisation without a pivot", guidance_scale)

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Pivot (for z*_T), and fit; costs T + 3 T N UNet evaluations."""
        num_steps, prompt_embeds = problem.num_steps, problem.prompt_embeds
        pivot = yield from pivot_steps(model, problem.latents, prompt_embeds, num_steps)
        null_embeds = model.embed([""]).requires_grad_(True)

        def predict(latents: Tensor, timestep: int) -> Tensor:
            with torch.no_grad():
                noise_prompt = model.predict_noise(latents, timestep, prompt_embeds)
            moving = tokens_alone(model, null_embeds)
            noise_null = model.predict_noise(latents, timestep, moving)
            return guide(noise_null, noise_prompt, problem.guidance_scale)

        iterations = num_steps * self.inner_steps
        yield from random_noise_steps(
            *(model, problem, null_embeds, predict),
            iterations=iterations,
            learning_rate=self.learning_rate,
        )
        return Solution(trajectory=pivot, null_embeds=null_embeds, iterations=iterations)

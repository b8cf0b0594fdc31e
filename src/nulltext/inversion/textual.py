"""Textual inversion: the prompt's embedding is fitted to the photo, without a pivot.

    C* = argmin_C E || eps - eps(z_t, t, C) ||^2,   started at the prompt     (see `random_noise`)

There is no guidance in the loss. The photo is then inverted by DDIM under C* (w = 1) and replayed
under C* and the plain empty prompt.
Source: Gal et al. 2022 (Textual Inversion), eq. 2; Mokady et al. 2023, sec. 4.1.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.descent import check_effort
from nulltext.inversion.per_step import tokens_alone
from nulltext.inversion.random_noise import random_noise_steps
from nulltext.inversion.record import StepInfo
from nulltext.inversion.sampling import pivot_steps
from nulltext.inversion.textual_pivot import check_prompt_branch
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Textual:
    """Options of textual inversion."""

    name: ClassVar[str] = "textual"
    differentiates: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    step_cost: ClassVar[int] = 3
    gradient_cost: ClassVar[int] = 2

    inner_steps: int = 10
    """N: T N gradient steps are made, so that N means what it does with a pivot."""
    learning_rate: float = 1e-3
    """Of Adam: higher moves the embedding faster and less steadily (docs/study.md: the sweep)."""

    def __post_init__(self) -> None:
        check_effort(self.inner_steps, self.learning_rate)

    def check(self, guidance_scale: float) -> None:
        """It needs the prompt's branch; see `check_prompt_branch`."""
        check_prompt_branch("Textual inversion", guidance_scale)

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Fit, then pivot; costs 2 T N + T UNet evaluations."""
        embeds = problem.prompt_embeds.detach().clone().requires_grad_(True)
        iterations = problem.num_steps * self.inner_steps
        yield from random_noise_steps(
            *(model, problem, embeds),
            lambda latents, t: model.predict_noise(latents, t, tokens_alone(model, embeds)),
            iterations=iterations,
            learning_rate=self.learning_rate,
        )
        learnt = embeds.detach()
        pivot = yield from pivot_steps(model, problem.latents, learnt, problem.num_steps)
        return Solution(
            trajectory=pivot,
            prompt_embeds=learnt,
            iterations=iterations,
        )

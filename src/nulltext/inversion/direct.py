"""Direct inversion: the pivot, and what a guided replay misses it by, step by step.

    d_t = z*_{t-1} - step(z*_t; guided eps(z*_t, t, ∅, C)),    z_{t-1} = step(z_t; ...) + d_t

Nothing is optimised: the source is corrected onto the pivot, so its replay is the autoencoder's own
round trip, while targets are sampled under the model's own empty prompt, uncorrected.
Source: Ju et al. 2024 (Direct Inversion), alg. 1.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import torch

from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.guidance import guided_noise
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.record import StepInfo
from nulltext.inversion.sampling import pivot_steps
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Direct:
    """Direct inversion; it has no options."""

    name: ClassVar[str] = "direct"
    differentiates: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    step_cost: ClassVar[int] = 3
    gradient_cost: ClassVar[int] = 0

    def check(self, guidance_scale: float) -> None:
        """Any scale will do."""

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Pivot, then measure; costs T + 2 T UNet evaluations (T + T at w = 1)."""
        num_steps, schedule = problem.num_steps, model.schedule
        trajectory = yield from pivot_steps(
            model, problem.latents, problem.prompt_embeds, num_steps
        )
        null_embeds, latents, corrections = model.embed([""]), trajectory[-1:], []
        for index, timestep in enumerate(schedule.timesteps(num_steps)):
            target = trajectory[num_steps - index - 1][None]
            with torch.no_grad():
                noise_pred = guided_noise(
                    model,
                    latents,
                    timestep,
                    null_embeds=null_embeds,
                    prompt_embeds=problem.prompt_embeds,
                    guidance_scale=problem.guidance_scale,
                )
            cleaner = schedule.cleaner(timestep, num_steps)
            stepped = schedule.step(latents, noise_pred, noisier=timestep, cleaner=cleaner)
            check_finite(stepped, "Direct inversion", timestep)
            corrections.append(target - stepped)
            estimate = schedule.clean_estimate(latents, noise_pred, timestep)
            latents = stepped + corrections[-1]  # what a replay will have, rounding included
            yield StepInfo("correct", index + 1, num_steps, timestep, clean_estimate=estimate)
        return Solution(trajectory=trajectory, corrections=torch.cat(corrections), replayed=latents)

"""Null-text inversion as its authors published it, to be measured against.

A straight transcription of the published loop, with what it spends: float32, explicit softmax
attention, weights as loaded (so a backward pass also fills their gradients), the step taken before
its loss is looked at, and two more forwards to advance under the fitted embedding. Per timestep
with n inner steps: 1 + 2 n + 2 evaluations, and the pivot's 1.
Source: Mokady et al. 2023, algorithm 1, and the constants of the code beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from nulltext.diffusion.guidance import guide
from nulltext.diffusion.levels import Step
from nulltext.diffusion.loops import Conditions, StepInfo, pivot_steps, sample_step
from nulltext.inversion.base import Problem, Solution
from nulltext.models.latent_diffusion import LatentDiffusion


def with_naive_attention(model: LatentDiffusion) -> LatentDiffusion:
    """A copy of the model with explicit softmax attention and trainable weights."""
    from diffusers.models.attention_processor import AttnProcessor

    unet = copy.deepcopy(model.unet)
    unet.set_attn_processor(AttnProcessor())
    return replace(model, network=unet.requires_grad_(True))


@dataclass(frozen=True)
class ReferenceLoop:
    """The published loop as an inversion method; give it a model `with_naive_attention`."""

    name: ClassVar[str] = "null-text"
    differentiates: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    inner_steps: int = 10
    """N."""
    tolerance: float = 1e-5
    """Loss at which the first timestep stops; each further one adds 2e-5. Negative: never."""

    def check(self, guidance_scale: float) -> None:
        """Measured only where it works."""

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Pivot, then the published double loop."""
        prompt_embeds, total = problem.prompt_embeds, len(problem.grid)
        trajectory = yield from pivot_steps(model, problem.latents, prompt_embeds, problem.grid)
        latents, null_embed = trajectory[-1], model.embed([""])
        null_embeds = []
        for index, step in enumerate(problem.grid):
            target = trajectory[total - index - 1]
            null_embed, inner = self._fit(model, problem, step, latents, target, null_embed, index)
            null_embeds.append(null_embed)
            conditions = Conditions(null_embed, prompt_embeds)
            latents = sample_step(model, step, latents, conditions, problem.guidance_scale).latents
            yield StepInfo("optimise", index + 1, total, step.noisier, inner_steps=inner)
        return Solution(
            trajectory=trajectory[:, 0],
            null_embeds=torch.cat(null_embeds),
            replayed=latents,
        )

    def _fit(
        self,
        model: LatentDiffusion,
        problem: Problem,
        step: Step,
        latents: Tensor,
        target: Tensor,
        start: Tensor,
        index: int,
    ) -> tuple[Tensor, int]:
        """(embedding, inner steps that were taken)."""
        null_embed = start.clone().detach().requires_grad_(True)
        optimiser = torch.optim.Adam([null_embed], lr=1e-2 * (1.0 - index / 100.0))
        with torch.no_grad():
            output_prompt = model.predict(latents, step.noisier, problem.prompt_embeds)
        inner = 0
        while inner < self.inner_steps:
            output_null = model.predict(latents, step.noisier, null_embed)
            output = guide(output_null, output_prompt, problem.guidance_scale)
            landed = step.denoise(latents, output)
            loss = torch.nn.functional.mse_loss(landed, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            inner += 1
            if self.tolerance >= 0 and loss.item() < self.tolerance + index * 2e-5:
                break
        return null_embed.detach(), inner

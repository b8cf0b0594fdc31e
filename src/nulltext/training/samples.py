"""Pictures from words alone, with the library's own schedule and guidance.

    z_T ~ N(0, I),   z_{t-1} = step(z_t, guided eps(z_t, t, ∅, C))       DDIM, eta = 0

Source: Song et al. 2021 (DDIM), eq. 12.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nulltext.diffusion.loops import Conditions, sample_step
from nulltext.models.latent_diffusion import LatentDiffusion

TOGETHER = 8
"""Pictures that go through the UNet at once."""


@torch.no_grad()
def sample(
    model: LatentDiffusion,
    prompts: Sequence[str],
    *,
    seed: int,
    num_steps: int = 30,
    guidance_scale: float = 4.0,
) -> Tensor:
    """One picture per prompt: [N, 3, H, W], float32 on the CPU, about [-1, 1].

    Picture k depends on its prompt, the seed and k only.
    """
    noise = starting_noise(model, len(prompts), seed=seed)
    latents = sample_latents(model, prompts, noise, num_steps, guidance_scale)
    return torch.cat([model.decode(rows).cpu() for rows in latents.split(TOGETHER)])


def starting_noise(model: LatentDiffusion, count: int, *, seed: int) -> Tensor:
    """z_T of so many pictures: [N, C, h, w] on the CPU."""
    return torch.stack(
        [torch.randn(model.latents_shape, generator=_generator(seed, row)) for row in range(count)]
    )


@torch.no_grad()
def sample_latents(
    model: LatentDiffusion,
    prompts: Sequence[str],
    noise: Tensor,
    num_steps: int = 30,
    guidance_scale: float = 4.0,
) -> Tensor:
    """z_0 [N, C, h, w] on the model's device, from a prompt and z_T for each."""
    null, finished = model.embed([""]), []
    embeds = model.embed(prompts)
    for latents, rows in zip(noise.split(TOGETHER), embeds.split(TOGETHER), strict=True):
        latents = latents.to(model.device)
        for step in model.schedule.grid(num_steps):
            conditions = Conditions(null, rows)
            latents = sample_step(model, step, latents, conditions, guidance_scale).latents
        finished.append(latents)
    return torch.cat(finished)


def _generator(seed: int, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + row)

"""Pictures from words alone, with the library's own schedule and guidance.

    z_T ~ N(0, I),   z_{t-1} = step(z_t, guided eps(z_t, t, ∅, C))       DDIM, eta = 0

Source: Song et al. 2021 (DDIM), eq. 12.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nulltext.guidance import guided_noise
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
    shape, pictures = model.latents_shape, []
    null = model.embed([""])
    for first in range(0, len(prompts), TOGETHER):
        rows = range(first, min(first + TOGETHER, len(prompts)))
        noise = [torch.randn(shape, generator=_generator(seed, row)) for row in rows]
        latents = torch.stack(noise).to(model.device)
        embeds = model.embed([prompts[row] for row in rows])
        for timestep in model.schedule.timesteps(num_steps):
            noise_pred = guided_noise(
                model,
                latents,
                timestep,
                null_embeds=null,
                prompt_embeds=embeds,
                guidance_scale=guidance_scale,
            )
            cleaner = model.schedule.cleaner(timestep, num_steps)
            latents = model.schedule.step(latents, noise_pred, noisier=timestep, cleaner=cleaner)
        pictures.append(model.decode(latents).cpu())
    return torch.cat(pictures)


def _generator(seed: int, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + row)

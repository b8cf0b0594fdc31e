"""Classifier-free guidance, written once.

    eps = eps_null + w (eps_prompt - eps_null)

w = 1 is the conditional branch alone, so nobody needs to compute the null branch then; w = 0 is
the unconditional model. Source: Ho & Salimans 2022, in the form of Mokady et al. 2023, eq. 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

CONDITIONAL_ONLY = 1.0
"""The guidance scale at which the null branch has no weight."""


class NoisePredictor(Protocol):
    """Whatever predicts eps: a `LatentDiffusion`, or a formula in a test."""

    def predict_noise(self, latents: Tensor, timestep: int, prompt_embeds: Tensor) -> Tensor:
        """eps [B, C, h, w] of latents [B, C, h, w] under embeddings [B, R, D]."""
        ...


def guide(noise_null: Tensor, noise_prompt: Tensor, guidance_scale: float) -> Tensor:
    """Combine two noise predictions [B, C, h, w] of the same latents into the guided one."""
    return noise_null + guidance_scale * (noise_prompt - noise_null)


def guided_noise(
    model: NoisePredictor,
    latents: Tensor,
    timestep: int,
    *,
    null_embeds: Tensor,
    prompt_embeds: Tensor,
    guidance_scale: float,
) -> Tensor:
    """Predict the guided noise; both branches share one UNet call, null first.

    Args:
        latents: [B, C, h, w]. null_embeds, prompt_embeds: [1 or B, R, D].

    Returns:
        eps [B, C, h, w] in the model's precision. Costs 2 B single-image UNet evaluations, or B at
        w = 1.
    """
    batch = latents.shape[0]
    prompt = prompt_embeds.expand(batch, -1, -1)
    if guidance_scale == CONDITIONAL_ONLY:
        return model.predict_noise(latents, timestep, prompt)
    import torch

    null = null_embeds.expand(batch, -1, -1)
    both = model.predict_noise(torch.cat([latents, latents]), timestep, torch.cat([null, prompt]))
    noise_null, noise_prompt = both.chunk(2)
    return guide(noise_null, noise_prompt, guidance_scale)


def guided_evaluations(batch: int, guidance_scale: float) -> int:
    """Single-image UNet evaluations that one `guided_noise` call costs."""
    return batch if guidance_scale == CONDITIONAL_ONLY else 2 * batch

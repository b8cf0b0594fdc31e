"""Classifier-free guidance, written once.

    eps = eps_null + w (eps_prompt - eps_null)

w = 1 is the conditional branch alone, so nobody needs to compute the null branch then; w = 0 is
the unconditional model. Source: Ho & Salimans 2022, in the form of Mokady et al. 2023, eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
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


GuidanceScale = float | Sequence[float]
"""w, the same for all rows of a batch or one per row."""


def is_guided(guidance_scale: GuidanceScale) -> bool:
    """Whether any row needs the null branch."""
    scales = [guidance_scale] if isinstance(guidance_scale, float | int) else guidance_scale
    return any(scale != CONDITIONAL_ONLY for scale in scales)


def guide(noise_null: Tensor, noise_prompt: Tensor, guidance_scale: GuidanceScale) -> Tensor:
    """Combine two noise predictions [B, C, h, w] of the same latents into the guided one."""
    if isinstance(guidance_scale, float | int):
        return noise_null + guidance_scale * (noise_prompt - noise_null)
    scales = noise_null.new_tensor(guidance_scale)[:, None, None, None]
    return noise_null + scales * (noise_prompt - noise_null)


def guided_noise(
    model: NoisePredictor,
    latents: Tensor,
    timestep: int,
    *,
    null_embeds: Tensor,
    prompt_embeds: Tensor,
    guidance_scale: GuidanceScale,
) -> Tensor:
    """Predict the guided noise; both branches share one UNet call, null first.

    Args:
        latents: [B, C, h, w]. null_embeds, prompt_embeds: [1 or B, R, D].
        guidance_scale: one w, or B of them.

    Returns:
        eps [B, C, h, w] in the model's precision. Costs 2 B UNet evaluations, or B if all w = 1.
    """
    batch = latents.shape[0]
    prompt = prompt_embeds.expand(batch, -1, -1)
    if not is_guided(guidance_scale):
        return model.predict_noise(latents, timestep, prompt)
    import torch

    null = null_embeds.expand(batch, -1, -1)
    both = model.predict_noise(torch.cat([latents, latents]), timestep, torch.cat([null, prompt]))
    noise_null, noise_prompt = both.chunk(2)
    return guide(noise_null, noise_prompt, guidance_scale)


def guided_evaluations(batch: int, guidance_scale: GuidanceScale) -> int:
    """UNet evaluations that one `guided_noise` call will cost; what it did cost is counted."""
    return 2 * batch if is_guided(guidance_scale) else batch

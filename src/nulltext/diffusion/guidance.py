"""Classifier-free guidance, written once.

    o = o_null + w (o_prompt - o_null)

o is the network's own output (epsilon, v, x0 or flow): all are affine in eps at fixed latents,
with the same coefficients in both branches, so that mixing them is mixing eps. w = 1 is the
conditional branch alone, for which the null branch is not computed; w = 0 is the unconditional
model. A network that guidance was distilled into takes w as an input instead, in one evaluation.
Source: Ho & Salimans 2022; Mokady et al. 2023, sec. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from nulltext.diffusion.levels import Level

CONDITIONAL_ONLY = 1.0
"""The guidance scale at which the null branch has no weight."""


GuidanceScale = float | Sequence[float]
"""w, the same for all rows of a batch or one per row."""


class Denoiser(Protocol):
    """A denoising network under text conditions: a `LatentDiffusion`, or a formula in a test."""

    def predict(
        self,
        latents: Tensor,
        level: Level,
        embeds: Tensor,
        rows: Sequence[int] | None = None,
        guidance: GuidanceScale | None = None,
    ) -> Tensor:
        """Return the network's own output [B, C, h, w] on latents [B, C, h, w] at a noise level,
        under embeddings [B, R, D].

        Args:
            rows: [B], the photos that they belong to, where not all are there.
            guidance: what a network is fed that was distilled to take a guidance scale.
        """
        ...


def takes_guidance(model: Denoiser) -> bool:
    """Whether guidance was distilled into an input of the network (FLUX.1 [dev]), so that the
    prompt's branch alone is computed, fed w."""
    return getattr(model, "guidance", "branches") == "input"


def needs_null_branch(model: Denoiser, guidance_scale: GuidanceScale) -> bool:
    """Whether any row needs the null branch of this model."""
    if takes_guidance(model):
        return False
    return _mixes(guidance_scale)


def _mixes(guidance_scale: GuidanceScale) -> bool:
    """Whether a scale, or one of several, gives the null branch a weight."""
    scales = [guidance_scale] if isinstance(guidance_scale, float | int) else guidance_scale
    return any(scale != CONDITIONAL_ONLY for scale in scales)


def guide(output_null: Tensor, output_prompt: Tensor, guidance_scale: GuidanceScale) -> Tensor:
    """Combine the outputs [B, C, h, w] of both branches for the same latents."""
    if isinstance(guidance_scale, float | int):
        return output_null + guidance_scale * (output_prompt - output_null)
    scales = output_null.new_tensor(guidance_scale)[:, None, None, None]
    return output_null + scales * (output_prompt - output_null)


def guided_output(
    model: Denoiser,
    latents: Tensor,
    level: Level,
    *,
    null_embeds: Tensor,
    prompt_embeds: Tensor,
    guidance_scale: GuidanceScale,
) -> Tensor:
    """Return the guided output; both branches share one call of the network, null first.

    Args:
        latents: [B, C, h, w]. null_embeds, prompt_embeds: [1 or B, R, D].
        guidance_scale: one w, or B of them.

    Returns:
        o [B, C, h, w] in the model's precision. Costs 2 B UNet evaluations, or B if all w = 1.
    """
    batch = latents.shape[0]
    prompt = prompt_embeds.expand(batch, -1, -1)
    if takes_guidance(model):
        return model.predict(latents, level, prompt, guidance=guidance_scale)
    if not needs_null_branch(model, guidance_scale):
        return model.predict(latents, level, prompt)
    import torch

    null = null_embeds.expand(batch, -1, -1)
    both = model.predict(torch.cat([latents, latents]), level, torch.cat([null, prompt]))
    output_null, output_prompt = both.chunk(2)
    return guide(output_null, output_prompt, guidance_scale)


def guided_evaluations(batch: int, guidance_scale: GuidanceScale) -> int:
    """Return the UNet evaluations that one `guided_output` call costs with a null branch."""
    return 2 * batch if _mixes(guidance_scale) else batch

"""A fingerprint of a checkpoint's weights, cheap enough to take at every load.

The digest runs over the name, the shape and up to 64 evenly spaced values of every tensor of every
component, upcast to float32, and over the settings that give them their meaning (schedule, what
the UNet predicts, the autoencoder's scale). Two copies of the same checkpoint agree; another
training run, a merged LoRA or a swapped autoencoder does not. It identifies, it does not
authenticate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from nulltext.schedule import Schedule

SAMPLES_PER_TENSOR = 64
DIGEST_CHARACTERS = 32
SAMPLED_TIMESTEPS = 16


@torch.no_grad()
def fingerprint(components: Mapping[str, torch.nn.Module], schedule: Schedule) -> str:
    """Hex digest of named modules and their schedule, independent of the device they are on."""
    digest = hashlib.sha256(_settings(components["vae"], schedule).encode())
    for component, module in sorted(components.items()):
        for name, parameter in sorted(module.named_parameters()):
            digest.update(f"{component}.{name}{tuple(parameter.shape)}".encode())
            flat = parameter.detach().reshape(-1)
            count = min(flat.numel(), SAMPLES_PER_TENSOR)
            index = torch.linspace(0, flat.numel() - 1, count, device=flat.device).long()
            digest.update(flat[index].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:DIGEST_CHARACTERS]


def _settings(vae: Any, schedule: Schedule) -> str:
    every = max(1, schedule.train_steps // SAMPLED_TIMESTEPS)
    alphas = [f"{a:.5g}" for a in schedule.alphas_cumprod[::every]]
    final, offset = f"{schedule.final_alpha_cumprod:.5g}", schedule.steps_offset
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None)
    return repr((alphas, final, schedule.spacing, offset, schedule.prediction, scale, shift))

"""A fingerprint of a checkpoint's weights, cheap enough to take at every load.

The digest runs over the name, the shape and up to 64 evenly spaced values of every tensor of every
component, upcast to float32. Two copies of the same weights agree; another training run, a merged
LoRA or a swapped autoencoder does not. It identifies, it does not authenticate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

SAMPLES_PER_TENSOR = 64
DIGEST_CHARACTERS = 32


@torch.no_grad()
def fingerprint(components: Mapping[str, torch.nn.Module]) -> str:
    """Hex digest of the weights of named modules, independent of the device they are on."""
    digest = hashlib.sha256()
    for component, module in sorted(components.items()):
        for name, parameter in sorted(module.named_parameters()):
            digest.update(f"{component}.{name}{tuple(parameter.shape)}".encode())
            flat = parameter.detach().reshape(-1)
            count = min(flat.numel(), SAMPLES_PER_TENSOR)
            index = torch.linspace(0, flat.numel() - 1, count, device=flat.device).long()
            digest.update(flat[index].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:DIGEST_CHARACTERS]

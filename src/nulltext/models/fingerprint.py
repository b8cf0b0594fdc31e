"""A fingerprint of a checkpoint's weights, cheap enough to take whenever it matters.

The digest runs over the name, the shape and up to 64 evenly spaced values of every tensor of every
component, upcast to float32, and over the settings that give them their meaning (schedule, what
the UNet predicts, the autoencoder's scale). Two copies of the same checkpoint agree; another
training run, an active or merged LoRA, or a swapped autoencoder does not. A LoRA that sleeps does
not count. It identifies, it does not authenticate.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from nulltext.schedule import Schedule

SAMPLES_PER_TENSOR = 64
DIGEST_CHARACTERS = 32
SAMPLED_TIMESTEPS = 16


@torch.no_grad()
def fingerprint(
    components: Mapping[str, torch.nn.Module], schedule: Schedule, settings: str = ""
) -> str:
    """Hex digest of named modules and their schedule, independent of the device they are on.

    Args:
        settings: whatever else decides what the weights mean.
    """
    digest = hashlib.sha256((_settings(components["vae"], schedule) + settings).encode())
    for component, module in sorted(components.items()):
        acting = sorted(_acting(module), key=itemgetter(0))
        for (name, parameter), values in zip(acting, _samples([p for _, p in acting]), strict=True):
            digest.update(f"{component}.{name}{tuple(parameter.shape)}".encode())
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:DIGEST_CHARACTERS]


def _samples(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Up to 64 evenly spaced values of each, float32, on the CPU; read from a device at once."""
    if not tensors:
        return []
    found = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        count = min(flat.numel(), SAMPLES_PER_TENSOR)
        # on the CPU: devices round a linspace differently
        index = torch.linspace(0, flat.numel() - 1, count, device="cpu").long()
        found.append(flat[index.to(flat.device)].float().to(tensors[0].device))
    return list(torch.cat(found).cpu().split([len(values) for values in found]))


def _settings(vae: Any, schedule: Schedule) -> str:
    every = max(1, schedule.train_steps // SAMPLED_TIMESTEPS)
    alphas = [f"{a:.5g}" for a in schedule.alphas_cumprod[::every]]
    final, offset = f"{schedule.final_alpha_cumprod:.5g}", schedule.steps_offset
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None)
    return repr((alphas, final, schedule.spacing, offset, schedule.prediction, scale, shift))


def _acting(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters by their names without adapters, then the strengths of the adapters that act."""
    sleeping: list[str] = []
    for path, layer in _adapted_layers(module):
        awake = () if layer.disable_adapters else layer.active_adapters
        for kind in layer.adapter_layer_names:
            sleeping += [f"{path}.{kind}.{a}." for a in getattr(layer, kind) if a not in awake]
        for adapter in awake:
            if adapter in getattr(layer, "scaling", {}):
                yield f"{path}.{adapter}.scaling", torch.tensor(float(layer.scaling[adapter]))
    for name, parameter in module.named_parameters():
        if not f"{name}.".startswith(tuple(sleeping)):
            yield name.replace(".base_layer.", "."), parameter


def _adapted_layers(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers that peft has put adapters on, as diffusers does to load a LoRA."""
    if "peft" not in sys.modules:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in module.named_modules():
        if isinstance(layer, BaseTunerLayer):
            yield path, layer

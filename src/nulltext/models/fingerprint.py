"""Take a fingerprint of a checkpoint's weights, cheap enough to take whenever it matters.

The digest runs over the name, the shape and up to 64 evenly spaced values of every tensor of every
component, upcast to float32, and over the settings that give them their meaning (schedule, what
the UNet predicts, the autoencoder's scale). Two copies of the same checkpoint agree; another
training run, an active or merged LoRA, FreeU, or a swapped autoencoder does not. Inactive LoRAs are
ignored, and so are the copies that fused projections keep of their weights. The fingerprint
identifies weights; it is no protection against forgery.

Names are those of the newest libraries, whichever are installed. Until release 5.5 transformers had
`text_model.` before every name of a text encoder, and fingerprints were taken of those: they still
stand in files, so each checkpoint has two fingerprints, and whatever carries one of them fits.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

from nulltext.diffusion.schedule import Schedule
from nulltext.models.weights import TEXT_MODEL

SAMPLES_PER_TENSOR = 64
DIGEST_CHARACTERS = 32
FLOAT32_COUNTS = 2**24
"""Up to here float32 holds every whole number."""

FUSED = (".to_qkv.", ".to_kv.")
"""Layers that `fuse_qkv_projections` adds: copies of `to_q`, `to_k` and `to_v`, which stay."""

FREEU = ("s1", "s2", "b1", "b2")
"""What `enable_freeu` sets on a block of the UNet."""

TEXT_ENCODER, PREFIXED_ENCODER = "text_encoder", "text_encoder_2"
"""Of the text encoders, XL's second one has `text_model.` in its names in all releases."""

Content = TypeVar("Content")


class Digest:
    """Fingerprints that are taken tensor by tensor, components and names in alphabetical order."""

    def __init__(self, vae: Any, schedule: Schedule, settings: str = "") -> None:
        begun = hashlib.sha256((_settings(vae, schedule) + settings).encode())
        self._hashes = (begun, begun.copy())

    def add(self, component: str, *named: tuple[str, Tensor]) -> None:
        """Take in tensors by their names, whatever their precision and device."""
        for (name, tensor), values in zip(named, _samples([t for _, t in named]), strict=True):
            shape, read = tuple(tensor.shape), values.numpy().tobytes()
            for digest, known in zip(self._hashes, known_names(component, name), strict=True):
                digest.update(f"{component}.{known}{shape}".encode() + read)

    def hexes(self) -> tuple[str, ...]:
        """Return the fingerprint of what has been taken in, then the older one."""
        return tuple(digest.hexdigest()[:DIGEST_CHARACTERS] for digest in self._hashes)


def known_names(component: str, name: str) -> tuple[str, str]:
    """Return a weight's name in the newest libraries, and in transformers before 5.6."""
    if component not in (TEXT_ENCODER, PREFIXED_ENCODER):
        return name, name
    bare = name.removeprefix(TEXT_MODEL)
    older = bare if bare.startswith("text_projection.") else TEXT_MODEL + bare
    return (older if component == PREFIXED_ENCODER else bare), older


def fingerprints(
    components: Mapping[str, torch.nn.Module], schedule: Schedule, settings: str = ""
) -> tuple[str, ...]:
    """Compute the fingerprint of named modules, and the one that older libraries led to."""
    digest = Digest(components["vae"], schedule, settings)
    for component, module in sorted(components.items()):
        digest.add(component, *sorted(_acting(module), key=itemgetter(0)))
    return digest.hexes()


def with_true_cfg(fingerprint: str) -> str:
    """Return the fingerprint of the same weights under a null branch that is not their own."""
    return hashlib.sha256(f"{fingerprint} true cfg".encode()).hexdigest()[:DIGEST_CHARACTERS]


def spellings(content: Content, fingerprints: Sequence[str]) -> list[Content]:
    """Repeat JSON that names the first of a model's fingerprints with each of them.

    Named are whole ones, and their first eight characters, as messages and settings have them.
    """
    text, now = json.dumps(content), fingerprints[0]
    texts = [text.replace(now, known).replace(now[:8], known[:8]) for known in fingerprints]
    return [json.loads(text) for text in texts]


@lru_cache(maxsize=1024)
def sample_positions(numel: int) -> Tensor:
    """Choose where a tensor of so many numbers is read: up to 64 positions, int64.

    Up to 2**24 numbers, position k is k (numel - 1) / 63 in float32, as in all saved inversions,
    computed on the CPU, since devices round differently. Beyond that float32 cannot count; there it
    is rounded down in integer arithmetic.
    """
    count = min(numel, SAMPLES_PER_TENSOR)
    if numel <= FLOAT32_COUNTS:
        return torch.linspace(0, numel - 1, count, dtype=torch.float32, device="cpu").long()
    return torch.arange(count, device="cpu") * (numel - 1) // (count - 1)


@torch.no_grad()
def _samples(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Read up to 64 evenly spaced values of each, float32; they come to the CPU in one transfer."""
    if not tensors:
        return []
    found = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        positions = sample_positions(flat.numel()).to(flat.device)
        found.append(flat[positions].float().to(tensors[0].device))
    return list(torch.cat(found).cpu().split([len(values) for values in found]))


def _settings(vae: Any, schedule: Schedule) -> str:
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None)
    return repr((*schedule.identity, scale, shift))


def _acting(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    inactive: list[str] = []
    blocks = list(module.named_modules())
    for path, layer in _adapted_layers(blocks):
        active = () if layer.disable_adapters else layer.active_adapters
        for kind in layer.adapter_layer_names:
            inactive += [f"{path}.{kind}.{a}." for a in getattr(layer, kind) if a not in active]
        for adapter in active:
            if adapter in getattr(layer, "scaling", {}):
                yield f"{path}.{adapter}.scaling", torch.tensor(float(layer.scaling[adapter]))
    for name, parameter in module.named_parameters():
        fused = any(layer in name for layer in FUSED)
        if not fused and not f"{name}.".startswith(tuple(inactive)):
            yield name.replace(".base_layer.", "."), parameter
    for path, block in blocks:
        strengths = [vars(block).get(name) for name in FREEU]
        if None not in strengths:
            yield f"{path}.freeu", torch.tensor(strengths)


def _adapted_layers(blocks: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    if "peft" not in sys.modules:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in blocks:
        if isinstance(layer, BaseTunerLayer):
            yield path, layer

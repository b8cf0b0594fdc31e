"""Estimate how much memory a run needs beside what the model's weights take.

A backward pass needs what the forward pass kept. Let c h w / 4^l be the numbers in a feature map of
c channels at level l of the UNet, and N the sum over its ResNet blocks and transformer blocks, M
the same with a whole transformer counted once. Then, for B photos and s bytes a number,

    keep every activation       17 N B s
    recompute blocks             6 M B s      one more forward pass for each backward pass
    no backward pass             2.4 M B s

17, 6 and 2.4 are the most live bytes at once, counted storage by storage by
`benchmarks/live_bytes.py` in float32, about the largest over three architectures: the bundled one
(16.0, 6.2, 2.4), narrower ones of Stable Diffusion 1.5's layout (16.3, 4.8, 1.4) and of SDXL's
(17.3, 4.0, 1.2). What a kernel borrows inside one operation and what an allocator cannot reuse come
on top.

While Prompt-to-Prompt edits, each row that others are edited from keeps one step's attention
beside this (`benchmarks/live_bytes.py`): at a site of n pixels, a heads of d numbers and L tokens,
4 a n L bytes of cross-attention's map, and s a n d of the hidden states that self-attention follows
from.
In float16 that is at most 66 MB + 3 MB in Stable Diffusion 1.5 at 512 px, and 505 MB + 157 MB in
SDXL at 1024 px, where the self-attention maps themselves would be 5 GB.
The autoencoder's picture is `placement`'s. With `offload` text encoders and autoencoder add their
weights to their own work instead of to the UNet's.
Source: recomputation, Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.placement import is_tiled, picture_bytes, safe_dtype

KEEPING, RECOMPUTING, FORWARD_ONLY = 17, 6, 2.4
"""Live numbers per number of N, of M, and of M where nothing is differentiated."""

JOINT = 1.5
"""What a block that attends jointly keeps, in blocks of a UNet's transformer."""

STATE_BYTES = 4
"""Of a latent or an embedding: float32 whatever the UNet is."""

GUIDED_ROWS = 2
"""Rows of one photo in a guided pass: null and prompt."""

LEVELS: dict[str, Callable[[int, int], int]] = {
    "down_blocks": lambda index, levels: index,  # noqa: ARG005
    "mid_block": lambda index, levels: levels - 1,  # noqa: ARG005
    "up_blocks": lambda index, levels: levels - 1 - index,
}
"""A UNet stage to the level that its block of some index works at."""


def level_of(name: str, levels: int) -> int:
    stage, index, *_ = name.split(".")
    return LEVELS[stage](int(index) if index.isdigit() else 0, levels)


@dataclass(frozen=True)
class FeatureMaps:
    """Sizes of a UNet's feature maps, in numbers per latent pixel."""

    blocks: float
    """N / (h w)."""
    stages: float
    """M / (h w)."""

    @classmethod
    def of(cls, model: LatentDiffusion) -> FeatureMaps:
        """Add up the network's blocks; a transformer's have a token of text for some of image."""
        if model.text.patch > 1:
            return cls._of_transformer(model)
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        unet = model.network
        blocks = stages = 0.0
        levels = len(unet.down_blocks)
        for name, module in unet.named_modules():
            if name.partition(".")[0] not in LEVELS or "." not in name:
                continue
            area = 4.0 ** -level_of(name, levels)
            if isinstance(module, ResnetBlock2D):
                blocks += module.out_channels * area
                stages += module.out_channels * area
            elif isinstance(module, BasicTransformerBlock):
                blocks += module.dim * area
            elif isinstance(module, Transformer2DModel):
                stages += module.inner_dim * area
        return cls(blocks, stages)

    @classmethod
    def _of_transformer(cls, model: LatentDiffusion) -> FeatureMaps:
        network = model.network
        _, height, width = model.latents_shape
        pixels, patch = height * width, model.text.patch
        tokens = pixels / patch**2 + model.max_tokens
        count = len(network.transformer_blocks) + len(
            getattr(network, "single_transformer_blocks", ())
        )
        numbers = count * int(network.inner_dim) * tokens / pixels
        return cls(JOINT * numbers, numbers)


@dataclass(frozen=True)
class MemoryNeed:
    """What a run is estimated to need, in bytes; see the module for how."""

    weights: int
    """Of the components that stay on the device, as they are loaded."""
    activations: int
    """The largest of the UNet's pass, the autoencoder's picture and the prompt's embedding, the
    weights that are there for it alone included."""
    state: int
    """Trajectories and null embeddings."""

    @property
    def beside_weights(self) -> int:
        """What has to be free once the model is loaded."""
        return self.activations + self.state


def memory_need(
    model: LatentDiffusion,
    *,
    photos: int,
    size: tuple[int, int],
    num_steps: int,
    differentiates: bool,
) -> MemoryNeed:
    """Estimate an inversion of photos side by side.

    Args:
        size: (height, width) in pixels that the model works at.
        differentiates: whether the method asks for gradients.
    """
    height, width = size
    channels, _, _ = model.latents_shape
    rows, dimension = model.embeds_shape
    pixels = height * width // model.vae_stride**2
    trajectory = (num_steps + 1) * channels * pixels + num_steps * rows * dimension
    parts = {name: weight_bytes(module) for name, module in model.components.items()}
    texts = sum(parts[name] for name in model.text.modules) if model.offload else 0
    return MemoryNeed(
        weights=parts[model.text.network] if model.offload else sum(parts.values()),
        activations=max(
            pass_need(model, size, photos=photos, differentiates=differentiates),
            decoding_need(model, size),
            texts,
        ),
        state=photos * trajectory * STATE_BYTES,
    )


def backward_numbers(model: LatentDiffusion) -> float:
    maps = FeatureMaps.of(model)
    return RECOMPUTING * maps.stages if model.memory.recomputes else KEEPING * maps.blocks


def pass_need(
    model: LatentDiffusion, size: tuple[int, int], *, photos: int, differentiates: bool
) -> int:
    """Estimate bytes of a guided pass of the UNet, or of a gradient where that is more."""
    maps = FeatureMaps.of(model)
    kept = FORWARD_ONLY * maps.stages * max(GUIDED_ROWS, photos)
    if differentiates:
        kept = max(kept, photos * backward_numbers(model))
    pixels = size[0] * size[1] // model.vae_stride**2
    return int(kept * pixels * model.network.dtype.itemsize)


def decoding_need(model: LatentDiffusion, size: tuple[int, int]) -> int:
    """Estimate bytes that decoding one picture of (height, width) takes beside the weights."""
    vae, dtype, own = model.vae, safe_dtype(model.vae), model.resolution
    tiled = is_tiled(vae, size, own, dtype.itemsize)
    pixels = max(own) ** 2 if tiled else size[0] * size[1]
    copied = model.offload or dtype != vae.dtype
    numbers = sum(parameter.numel() for parameter in vae.parameters()) if copied else 0
    return picture_bytes(vae, pixels, dtype.itemsize) + numbers * dtype.itemsize


def weight_bytes(module: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def free_memory(device: torch.device) -> int | None:
    """Ask how many bytes a device has left; None where it does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if device.type == "cpu":
        try:
            lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        said = dict(line.split(":", 1) for line in lines)
        return int(said["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in said else None
    return None

"""How much of a device's memory the work may take: plans of equal results, and what a run needs.

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
Source: recomputation, Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from nulltext.errors import OptionError
from nulltext.models.autoencoding import picture_bytes

if TYPE_CHECKING:
    from nulltext.models.latent_diffusion import LatentDiffusion

MemoryName = Literal["plenty", "low"]

FORWARD_ONLY = 2.4
"""Live numbers per number of M where nothing is differentiated."""

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


@contextmanager
def recompute_blocks(unet: Any) -> Iterator[None]:
    """Let a backward pass compute each block again from its input, inside the block."""
    if unet.is_gradient_checkpointing:  # as whoever made the pipeline wanted it
        yield
        return
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


def keep_activations(unet: Any) -> AbstractContextManager[None]:  # noqa: ARG001
    """Leave the UNet as it is."""
    return nullcontext()


@dataclass(frozen=True)
class MemoryPlan:
    """How work is cut; pictures and inversions are the same under all plans, to rounding."""

    photos: int
    """Photos that are inverted side by side."""
    targets: int
    """Targets that pass the UNet together."""
    backward: Callable[[Any], AbstractContextManager[None]]
    """What the UNet is put into while it is differentiated."""
    kept: Callable[[Numbers], float]
    """Live numbers per latent pixel and photo during a backward pass."""


@dataclass(frozen=True)
class Numbers:
    """A UNet's feature maps, in numbers per latent pixel."""

    blocks: float
    """N / (h w)."""
    stages: float
    """M / (h w)."""

    @classmethod
    def of(cls, unet: Any) -> Numbers:
        """Count the blocks of a `UNet2DConditionModel`."""
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        blocks = stages = 0.0
        levels = len(unet.down_blocks)
        for name, module in unet.named_modules():
            stage, *rest = name.split(".")
            if stage not in LEVELS or not rest:
                continue
            area = 4.0 ** -LEVELS[stage](int(rest[0]) if rest[0].isdigit() else 0, levels)
            if isinstance(module, ResnetBlock2D):
                blocks += module.out_channels * area
                stages += module.out_channels * area
            elif isinstance(module, BasicTransformerBlock):
                blocks += module.dim * area
            elif isinstance(module, Transformer2DModel):
                stages += module.inner_dim * area
        return cls(blocks, stages)


PLANS: dict[str, MemoryPlan] = {
    "plenty": MemoryPlan(8, 4, keep_activations, lambda numbers: 17 * numbers.blocks),
    "low": MemoryPlan(1, 1, recompute_blocks, lambda numbers: 6 * numbers.stages),
}


def memory_plan(name: str) -> MemoryPlan:
    """A plan by its name.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in PLANS:
        raise OptionError(f"There is no memory plan '{name}'; choose {', '.join(PLANS)}.")
    return PLANS[name]


@dataclass(frozen=True)
class MemoryNeed:
    """What a run is estimated to need, in bytes; see the module for how."""

    weights: int
    """All components', as they are loaded."""
    activations: int
    """The larger of the UNet's pass and the autoencoder's picture."""
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
    numbers = Numbers.of(model.unet)
    kept = FORWARD_ONLY * numbers.stages * GUIDED_ROWS
    if differentiates:
        kept = max(kept, photos * model.memory.kept(numbers))
    picture = picture_bytes(model.vae, height * width, model.vae.dtype.itemsize)
    trajectory = (num_steps + 1) * channels * pixels + num_steps * rows * dimension
    return MemoryNeed(
        weights=sum(
            p.numel() * p.element_size() for m in model.components.values() for p in m.parameters()
        ),
        activations=max(int(kept * pixels * model.unet.dtype.itemsize), picture),
        state=photos * trajectory * STATE_BYTES,
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device has left; None where it does not say."""
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

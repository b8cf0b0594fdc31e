"""What surrounds a call of the denoising network: a count, a low-rank difference, a safe backward.

UNet evaluations: every stated cost is read from `Passes`. A UNet evaluation is one image once
through the UNet, under one embedding, in either direction:

    forward     1
    backward    1    with frozen weights it takes about as long as a forward (docs/speed.md)

They are counted where the UNet is called, whatever calls it; a guided step is therefore 2. A pass
that is repeated, since it left float16's range, counts again. What is inside a pass does not count:
a tile, or a block that a backward pass computes again to save memory.

Low-rank difference: for a layer with weight W (a convolution's flattened to [out, in k k]) and
factors of rank r,

    (W + up down) x = W x + up (down x),    down [r, in],  up [out, r]

so the difference is added to the layer's output by a hook: the weights themselves are never
written, and what is trained is what is stored. It starts at up = 0: no difference.
Source: Hu et al. 2022 (LoRA), sec. 4.1. Written out here, as peft would rename the UNet's layers.

float16: it ends at 6e-8 and 65504. The gradient of a loss that is a mean over thousands of latents
lies below its smallest number when it enters the UNet's backward pass, and comes out as zero.
A backward pass is linear, so each photo's row x is first scaled by a power of two:

    J x = 2^-k J (2^k x),    k so that max |2^k x| lies in [2^(e-1), 2^e)

e starts at `START` and backs off while the result is not finite. Rows are scaled in float32; other
precisions than float16 have float32's range and are left alone, bit for bit.
Source: loss scaling, Micikevicius et al. 2018, sec. 3.2; the scale by row is ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

DOWN, UP = ".down", ".up"
"""What follows a layer's name in the names of its two factors."""

START = 6
"""e at the first try: room of 2^20 below for what underflows, of 2^10 above for sums."""
BACK_OFF = 6
"""By how much e falls after a try that was not finite."""
LOWEST = -18


@dataclass
class Passes:
    """UNet evaluations of one run, photo by photo."""

    photos: int = 1
    """Photos side by side: row i of a pass belongs to photo i mod `photos` by default."""
    counts: Counter[int] = field(default_factory=Counter)

    def note(self, output: Tensor, rows: Iterable[int] | None = None) -> None:
        """Count the pass that led to an output, and each backward pass that will go through it.

        Args: output: [b, ...]. rows: [b], the photos whose rows these are.
        """
        own = [row % self.photos for row in range(len(output))] if rows is None else list(rows)
        self.counts.update(own)
        if output.requires_grad:
            output.register_hook(lambda _: self.counts.update(own))

    @property
    def each(self) -> list[int]:
        return [self.counts[photo] for photo in range(self.photos)]

    @property
    def total(self) -> int:
        return self.counts.total()


def layers_of(unet: nn.Module, rank: int) -> dict[str, nn.Linear | nn.Conv2d]:
    """Layers that a difference of this rank can sit on and be smaller than the weight itself."""
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, layer in unet.named_modules():
        plain = isinstance(layer, nn.Linear) or (
            isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
        )
        if plain and rank < min(layer.weight.flatten(1).shape):
            found[name] = layer
    return found


def new_delta(unet: nn.Module, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Factors of no difference for every layer, float32: down random, up zero."""
    delta = {}
    for name, layer in layers_of(unet, rank).items():
        rows, columns = layer.weight.flatten(1).shape
        down = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
        delta[name + DOWN] = down.to(layer.weight.device)
        delta[name + UP] = torch.zeros(rows, rank, device=layer.weight.device)
    return delta


def fits(unet: nn.Module, delta: Mapping[str, Tensor]) -> bool:
    """Whether the factors come in pairs, each for a layer of this UNet and of its shape."""
    layers = layers_of(unet, 0)
    for name in {name.removesuffix(DOWN).removesuffix(UP) for name in delta}:
        down, up, layer = delta.get(name + DOWN), delta.get(name + UP), layers.get(name)
        if down is None or up is None or layer is None:
            return False
        rows, columns = layer.weight.flatten(1).shape
        if down.shape != (len(down), columns) or up.shape != (rows, len(down)):
            return False
    return True


@contextmanager
def applied(unet: nn.Module, delta: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Add a difference to the UNet's layers inside the block; None changes nothing.

    Differentiable in the factors.
    """
    delta = delta or {}
    names = [name.removesuffix(UP) for name in delta if name.endswith(UP)]
    handles = []
    try:
        for name in names:
            hook = _adding(delta[name + DOWN], delta[name + UP])
            handles.append(unet.get_submodule(name).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(down: Tensor, up: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """A hook that adds up (down x) to a layer's output, in this thread."""
    here = get_ident()

    def hook(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        if get_ident() != here:
            return output
        x: Tensor = arguments[0]
        first, second = down.to(x.dtype), up.to(x.dtype)
        if isinstance(layer, nn.Conv2d):
            kernel = first.view(-1, layer.in_channels, *layer.kernel_size)
            low = functional.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)
            return output + functional.conv2d(low, second[:, :, None, None])
        return output + functional.linear(functional.linear(x, first), second)

    return hook


def through_half(linear: Callable[[Tensor], Tensor], rows: Tensor, dtype: torch.dtype) -> Tensor:
    """linear(rows), computed at a scale that float16 can hold.

    Args:
        linear: maps [b, ...] to [b, ...], row by row.
        rows: [b, ...], float32. dtype: what `linear` computes in.

    Returns:
        float32; not finite only if `rows` are not, or no scale helps.
    """
    if dtype != torch.float16:
        return linear(rows)
    # a number a photo, on the CPU: MPS takes no exponents
    _, exponents = torch.frexp(rows.flatten(1).abs().amax(dim=1).cpu())
    target = START
    while True:
        shifts = target - exponents
        result = _shifted(linear(_shifted(rows, shifts)).float(), -shifts)
        if target <= LOWEST or bool(result.isfinite().all()) or not bool(rows.isfinite().all()):
            return result
        target -= BACK_OFF


def differentiable_in_half(
    compute: Callable[[Tensor], Tensor], embeds: Tensor, dtype: torch.dtype
) -> Tensor:
    """compute(embeds), whose gradient in the embeddings comes through float16 unharmed.

    Args:
        compute: from embeddings [B, L, D] in `dtype` to [B, ...] in `dtype`.
        embeds: [B, L, D], float32, the only thing that is differentiated.

    Returns:
        [B, ...], float32.
    """
    result: Tensor = _ScaledBackward.apply(compute, dtype, embeds)  # type: ignore[no-untyped-call]
    return result


class _ScaledBackward(torch.autograd.Function):
    """Keeps a graph of its own, so that its backward pass may be tried at several scales."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[[Tensor], Tensor], dtype: torch.dtype, embeds: Tensor
    ) -> Tensor:
        with torch.enable_grad():
            leaf = embeds.detach().to(dtype).requires_grad_(True)
            output = compute(leaf)
        ctx.leaf, ctx.output = leaf, output
        return output.detach().float()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[None, None, Tensor]:
        leaf, output = ctx.leaf, ctx.output

        def pull(rows: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(output, leaf, rows.to(output.dtype), retain_graph=True)
            return product

        return None, None, through_half(pull, cotangents[0], output.dtype)


def _shifted(rows: Tensor, shifts: Tensor) -> Tensor:
    """Each row times two to its own power; shifts on the CPU."""
    factors = torch.ldexp(torch.ones(len(shifts)), shifts).to(rows.device)
    return rows * factors.view(-1, *[1] * (rows.ndim - 1))

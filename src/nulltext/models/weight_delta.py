"""A low-rank difference of a UNet's weights, put on for one call and taken off again.

For a layer with weight W (a convolution's flattened to [out, in k k]) and factors of rank r,

    (W + up down) x = W x + up (down x),    down [r, in],  up [out, r]

so the difference is added to the layer's output by a hook: the weights themselves are never
written, and what is trained is what is stored. It starts at up = 0: no difference.
Source: Hu et al. 2022 (LoRA), sec. 4.1. Written out here, as peft would rename the UNet's layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

DOWN, UP = ".down", ".up"
"""What follows a layer's name in the names of its two factors."""


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
    """Let the UNet's layers have the difference inside the block; None changes nothing.

    Differentiable in the factors.
    """
    names = [name.removesuffix(UP) for name in delta or () if name.endswith(UP)]
    handles = []
    try:
        for name in names:
            assert delta is not None
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

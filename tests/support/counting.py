"""Counting the passes through UNets by hooks, apart from the package's own count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from diffusers import UNet2DConditionModel
from torch.autograd.forward_ad import unpack_dual
from torch.nn.modules.module import register_module_forward_pre_hook


@dataclass
class Seen:
    """Rows of every pass, by kind."""

    forward: list[int] = field(default_factory=list)
    backward: list[int] = field(default_factory=list)
    tangents: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.forward) + sum(self.backward) + sum(self.tangents)


@contextmanager
def unet_passes() -> Iterator[Seen]:
    """Count rows of all UNets of the process; backward, those that reach the last layer."""
    seen, handles = Seen(), {}

    def dress(module, args):
        if isinstance(module, UNet2DConditionModel) and module not in handles:
            last = module.conv_out.register_full_backward_pre_hook(backward)
            handles[module] = [module.register_forward_hook(forward), last]

    def forward(module, args, output):
        rows = len(args[0])
        seen.forward.append(rows)
        if unpack_dual(output.sample).tangent is not None:
            seen.tangents.append(rows)

    def backward(module, gradients):
        seen.backward.append(len(gradients[0]))

    everywhere = register_module_forward_pre_hook(dress)
    try:
        yield seen
    finally:
        for handle in [everywhere, *(one for both in handles.values() for one in both)]:
            handle.remove()

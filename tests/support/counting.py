"""Counting the passes through UNets by hooks, apart from the package's own count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from diffusers import UNet2DConditionModel
from torch.nn.modules.module import register_module_forward_pre_hook


@dataclass
class Seen:
    """Rows of every pass, by kind."""

    forward: list[int] = field(default_factory=list)
    backward: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.forward) + sum(self.backward)


@contextmanager
def unet_passes() -> Iterator[Seen]:
    """Count rows of all UNets of the process; backward, those that reach the last layer."""
    seen, handles = Seen(), {}

    def dress(module, args):
        if isinstance(module, UNet2DConditionModel) and module not in handles:
            last = module.conv_out.register_full_backward_pre_hook(backward)
            handles[module] = [module.register_forward_hook(forward), last]

    def forward(module, args, output):
        seen.forward.append(len(args[0]))

    def backward(module, gradients):
        seen.backward.append(len(gradients[0]))

    everywhere = register_module_forward_pre_hook(dress)
    try:
        yield seen
    finally:
        for handle in [everywhere, *(one for both in handles.values() for one in both)]:
            handle.remove()

"""What moves the weights of a training loop, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from nulltext.training.muon import Muon, takes

ADAM_EPSILON = 1e-8

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""What optimisers keep per weight."""


def adams(_: nn.Module) -> set[int]:
    """No weight is Muon's."""
    return set()


def muons(module: nn.Module) -> set[int]:
    """Ids of Muon's weights: matrices and kernels, but for tables that are looked up."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return {id(w) for w in module.parameters() if takes(w)} - tables


OPTIMIZERS = {"adamw": adams, "muon": muons}
"""By name, which weights Muon moves; AdamW moves the rest."""


def build_optimizers(
    module: nn.Module, weights: Mapping[str, nn.Parameter], name: str, *, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW, Muon or both; vectors are not pulled towards zero.

    Args: name: one of `OPTIMIZERS`.
    """
    own = OPTIMIZERS[name](module)
    wide = [weight for weight in weights.values() if id(weight) in own]
    others = [weight for weight in weights.values() if id(weight) not in own]
    groups = [
        {"params": [w for w in others if w.ndim > 1], "weight_decay": weight_decay},
        {"params": [w for w in others if w.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    made: list[torch.optim.Optimizer] = []
    if groups:
        made.append(torch.optim.AdamW(groups, eps=ADAM_EPSILON, fused=True))
    if wide:
        made.append(Muon(wide, weight_decay=weight_decay))
    return made

"""Muon: momentum, made orthogonal, so that no direction of a layer is left behind.

    M_k     = mu M_{k-1} + (1 - mu) G_k
    U_k     = NewtonSchulz5((1 - mu) G_k + mu M_k)          about U V^T of its U S V^T
    W_{k+1} = (1 - lr d) W_k - 0.2 lr sqrt(max(n, m)) U_k

for weights taken as n x m matrices: a convolution's kernel is one row per output channel. The last
factor makes an update as long as AdamW's usual one, so that both use one learning rate. torch's own
Muon takes matrices only and works in bfloat16; on them, the two agree (tested).
Sources: Jordan et al. 2024 (Muon); Liu et al. 2025 (Moonlight), sec. 2.2, for the factor.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial that takes all singular values into about [0.7, 1.2] in five turns."""
TURNS = 5
ADAM_LENGTH = 0.2
"""Root mean square of AdamW's updates, per unit of learning rate, in practice."""
THINNEST = 32
"""Matrices with a side shorter than this (colours in and out) have too few directions."""
TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """Steps along orthogonal momentum; a group has `lr` and `weight_decay`."""

    def __init__(self, params: Iterable[Tensor], *, weight_decay: float) -> None:
        """Args: params: weights of two or more dimensions, float32."""
        super().__init__(params, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Follow the gradients once."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                momentum = state["momentum_buffer"].lerp_(weight.grad, 1.0 - MOMENTUM)
                update = orthogonal(weight.grad.lerp(momentum, MOMENTUM).flatten(1))
                length = ADAM_LENGTH * max(update.shape) ** 0.5
                weight.mul_(1.0 - group["lr"] * group["weight_decay"])
                weight.add_(update.view(weight.shape), alpha=-group["lr"] * length)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with all singular values brought near 1 (Newton-Schulz; Jordan et al. 2024).

    All turns are symmetric polynomials of the gram matrix, so they are taken there, where kernels
    are small, and the matrix itself is met only before and after.
    """
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + TINY)
    gram = wide @ wide.mT
    gathered = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    a, b, c = COEFFICIENTS
    for _ in range(TURNS):
        turn = torch.addmm(b * gram, gram, gram, alpha=c)
        turn.diagonal().add_(a)
        gathered = turn @ gathered
        gram = turn @ gram @ turn
    wide = gathered @ wide
    return wide.mT.contiguous() if matrix.shape[0] > matrix.shape[1] else wide


def takes(weight: Tensor) -> bool:
    """Whether a weight is wide enough to have directions."""
    return weight.ndim > 1 and min(weight.shape[0], weight[0].numel()) >= THINNEST

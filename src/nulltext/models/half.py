"""Derivatives through a float16 UNet that neither vanish nor explode.

float16 ends at 6e-8 and 65504. The gradient of a loss that is a mean over thousands of latents lies
below its smallest number when it enters the UNet's backward pass, and comes out as zero. Backward
and forward-mode passes are linear, so each photo's row x is first scaled by a power of two:

    J x = 2^-k J (2^k x),    k so that max |2^k x| lies in [2^(e-1), 2^e)

e starts at `START` and backs off while the result is not finite. Rows are scaled in float32; other
precisions than float16 have float32's range and are left alone, bit for bit.
Source: loss scaling, Micikevicius et al. 2018, sec. 3.2; the scale by row is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

START = 6
"""e at the first try: room of 2^20 below for what underflows, of 2^10 above for sums."""

BACK_OFF = 6
"""By how much e falls after a try that was not finite."""

LOWEST = -18
"""The last e that is tried."""


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

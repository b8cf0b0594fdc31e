"""One gradient step, and the options that every gradient method has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nulltext.errors import NumericalError, OptionError


def descend(
    optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], loss: Tensor, timestep: int
) -> None:
    """One optimiser step; gradients flow to the parameters and to nothing else.

    Raises:
        NumericalError: the loss is infinite or NaN.
    """
    if not bool(torch.isfinite(loss)):
        raise NumericalError(
            f"The loss is {loss.item()} at timestep {timestep}; "
            "pass --dtype float32, or a lower learning rate."
        )
    wanted = list(parameters)
    # a weight of a layer that this loss does not reach has gradient zero
    slopes = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    for parameter, gradient in zip(wanted, slopes, strict=True):
        parameter.grad = gradient
    optimiser.step()


def check_effort(inner_steps: int, learning_rate: float) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        OptionError: fewer than 0 steps, or a learning rate that is not above 0.
    """
    if inner_steps < 0 or not learning_rate > 0:
        raise OptionError(
            f"inner_steps is {inner_steps} and learning_rate {learning_rate:g}; choose 0 or more, "
            "and more than 0."
        )

"""One set of parameters for all timesteps, fitted to the pivot by walking down it again and again.

For j = 1 … N: zbar_T = z*_T, and for t = T … 1

    theta <- one Adam step on L_t(theta) = mean || z*_{t-1} - denoise(zbar_t, o_theta) ||^2
    zbar_{t-1} = denoise(zbar_t, o_theta)          under the theta that was just stepped to

theta is one null embedding, one prompt embedding, or a difference of weights: see `Fitted`. Adam
runs through all rounds; nothing is reset but zbar. Where the step is the identity, L_t is the same
for all theta: no step is taken on it, as Adam's means of earlier gradients would move theta all
the same.
Source: Mokady et al. 2023, supplementary algorithm of the global null-text inversion.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from nulltext.diffusion.finite import at
from nulltext.diffusion.levels import Grid, Level
from nulltext.diffusion.loops import StepInfo
from nulltext.errors import NumericalError
from nulltext.models.latent_diffusion import LatentDiffusion


class Fitted(Protocol):
    """What is fitted, and how the guided output follows from it."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """theta: leaves that require gradients."""
        ...

    @property
    def share(self) -> float:
        """v: what the output that moves with theta counts for in the guided output."""
        ...

    def output_at(self, latents: Tensor, level: Level) -> Callable[[], Tensor]:
        """Return the guided output [1, C, h, w] on fixed latents, as a function of theta now."""
        ...


def descend(
    optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], loss: Tensor, level: Level
) -> None:
    """Take one optimiser step; gradients flow to the parameters and to nothing else.

    Raises:
        NumericalError: the loss is infinite or NaN.
    """
    if not bool(torch.isfinite(loss)):
        raise NumericalError(
            f"The loss is {loss.item()}{at(level)}; pass --dtype float32, or a lower learning rate."
        )
    wanted = list(parameters)
    # a weight of a layer that this loss does not reach has gradient zero
    slopes = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    for parameter, gradient in zip(wanted, slopes, strict=True):
        parameter.grad = gradient
    optimiser.step()


def rollout_steps(
    model: LatentDiffusion,
    pivot: Tensor,
    grid: Grid,
    fitted: Fitted,
    *,
    rounds: int,
    learning_rate: float,
) -> Generator[StepInfo, None, int]:
    """Fit in place; returns the number of gradients that it took.

    Args:
        pivot: z*_0 … z*_T, [T + 1, C, h, w]. rounds: N.

    Raises:
        NumericalError: the loss stopped being finite; names the timestep.
    """
    optimiser, gradients, total = torch.optim.Adam(fitted.parameters, lr=learning_rate), 0, 0
    for _ in range(rounds):
        latents = pivot[-1:]
        for index, step in enumerate(grid):
            guided, target = fitted.output_at(latents, step.noisier), pivot[-index - 2][None]
            fittable = step.moves(fitted.share, latents.dtype)
            if fittable:
                with torch.enable_grad(), model.frozen():
                    loss = (target - step.denoise(latents, guided())).square().mean()
                    descend(optimiser, fitted.parameters, loss, step.noisier)
                gradients += 1
            with torch.no_grad():
                output = guided()
            estimate = step.clean_estimate(latents, output)
            latents = step.denoise(latents, output)
            if not fittable:
                loss = (target - latents).square().mean()
            total += 1
            yield StepInfo(
                "optimise",
                total,
                rounds * len(grid),
                step.noisier,
                clean_estimate=estimate,
                loss=loss.item(),
            )
    return gradients

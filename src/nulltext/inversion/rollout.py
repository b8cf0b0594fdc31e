"""One thing for all timesteps, fitted to the pivot by walking down it again and again.

For j = 1 … N: zbar_T = z*_T, and for t = T … 1

    theta <- one Adam step on L_t(theta) = mean || z*_{t-1} - step(zbar_t; eps_theta) ||^2
    zbar_{t-1} = step(zbar_t; eps_theta)          under the theta that was just stepped to

theta is one null embedding, one prompt embedding, or a difference of weights: see `Fitted`. Adam
runs through all rounds; nothing is reset but zbar. Where the step is the identity, L_t is the same
for all theta: no step is taken on it, as Adam's means of earlier gradients would move theta all
the same.
Source: Mokady et al. 2023, supplementary algorithm of the global null-text inversion.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nulltext.diffusion.guidance import guide
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.descent import descend
from nulltext.inversion.per_step import Roles, tokens_alone
from nulltext.inversion.record import StepInfo
from nulltext.inversion.sampling import pivot_steps
from nulltext.inversion.solvers.task import is_fittable
from nulltext.models.latent_diffusion import LatentDiffusion


class Fitted(Protocol):
    """What is fitted, and how the guided noise follows from it."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """theta: leaves that require gradients."""
        ...

    @property
    def share(self) -> float:
        """v: what the noise that moves with theta counts for in the guided noise."""
        ...

    def at(self, latents: Tensor, timestep: int) -> Callable[[], Tensor]:
        """Guided eps [1, C, h, w] of fixed latents, as a function of the present theta."""
        ...


@dataclass(frozen=True)
class FittedEmbedding:
    """One embedding, [1, R, D], of the branch that moves; a pooled row (SDXL) stays."""

    model: LatentDiffusion
    embeds: Tensor
    roles: Roles

    @classmethod
    def of(cls, model: LatentDiffusion, roles: Roles) -> FittedEmbedding:
        """A leaf that starts where the branch does."""
        return cls(model, roles.moving.detach().clone().requires_grad_(True), roles)

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The embedding."""
        return [self.embeds]

    @property
    def share(self) -> float:
        """Of the branch that moves."""
        return self.roles.share

    def at(self, latents: Tensor, timestep: int) -> Callable[[], Tensor]:
        """The branch that stays is computed here, once."""
        with torch.no_grad():
            fixed = self.model.predict_noise(latents, timestep, self.roles.fixed)

        def guided() -> Tensor:
            embeds = tokens_alone(self.model, self.embeds)
            moving = self.model.predict_noise(latents, timestep, embeds)
            return guide(fixed, moving, self.roles.share)

        return guided


def rollout_steps(
    model: LatentDiffusion, pivot: Tensor, fitted: Fitted, *, rounds: int, learning_rate: float
) -> Generator[StepInfo, None, int]:
    """Fit in place; returns the number of gradients that it took.

    Args:
        pivot: z*_0 … z*_T, [T + 1, C, h, w]. rounds: N.

    Raises:
        NumericalError: the loss stopped being finite; names the timestep.
    """
    schedule, num_steps = model.schedule, len(pivot) - 1
    optimiser, gradients = torch.optim.Adam(fitted.parameters, lr=learning_rate), 0
    for done in range(0, rounds * num_steps, num_steps):
        latents = pivot[-1:]
        for index, timestep in enumerate(schedule.timesteps(num_steps)):
            cleaner = schedule.cleaner(timestep, num_steps)
            guided, target = fitted.at(latents, timestep), pivot[num_steps - index - 1][None]
            _, b = schedule.coefficients(start=timestep, end=cleaner)
            fittable = is_fittable(b * fitted.share, latents)
            if fittable:
                with torch.enable_grad(), model.frozen():
                    landed = schedule.step(latents, guided(), noisier=timestep, cleaner=cleaner)
                    loss = (target - landed).square().mean()
                    descend(optimiser, fitted.parameters, loss, timestep)
                gradients += 1
            with torch.no_grad():
                noise_pred = guided()
            estimate = schedule.clean_estimate(latents, noise_pred, timestep)
            latents = schedule.step(latents, noise_pred, noisier=timestep, cleaner=cleaner)
            if not fittable:
                loss = (target - latents).square().mean()
            yield StepInfo(
                *("optimise", done + index + 1, rounds * num_steps, timestep),
                clean_estimate=estimate,
                loss=loss.item(),
            )
    return gradients


def shared_embedding_steps(
    model: LatentDiffusion,
    problem: Problem,
    roles: Roles,
    *,
    rounds: int,
    learning_rate: float,
) -> Generator[StepInfo, None, Solution]:
    """Pivot, then fit one embedding of the branch that moves; T + 4 T N UNet evaluations.

    (A step that is the identity takes no gradient, and 2 instead of 4.)

    Raises:
        NumericalError: the loss stopped being finite; names the timestep.
    """
    num_steps = problem.num_steps
    pivot = yield from pivot_steps(model, problem.latents, problem.prompt_embeds, num_steps)
    fitted = FittedEmbedding.of(model, roles)
    gradients = yield from rollout_steps(
        model, pivot, fitted, rounds=rounds, learning_rate=learning_rate
    )
    field: dict[str, Any] = {roles.branch: fitted.embeds}
    return Solution(
        trajectory=pivot,
        iterations=gradients,
        **field,
    )

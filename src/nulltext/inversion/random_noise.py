"""One embedding, fitted to random noise instead of to a pivot.

    E <- one Adam step on mean || eps - eps_E(z_t, t) ||^2
    z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps

with fresh eps ~ N(0, I) and t uniform over the training steps at each iteration, as diffusion
models are trained.
Source: Gal et al. 2022 (Textual Inversion), eq. 2; Mokady et al. 2023, sec. 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias

import torch
from torch import Tensor

from nulltext.inversion.base import Problem
from nulltext.inversion.descent import descend
from nulltext.inversion.record import StepInfo
from nulltext.models.latent_diffusion import LatentDiffusion

Predict: TypeAlias = Callable[[Tensor, int], Tensor]
"""eps_E [1, C, h, w] of latents [1, C, h, w] at a timestep, under the present embedding."""


def random_noise_steps(
    model: LatentDiffusion,
    problem: Problem,
    embeds: Tensor,
    predict: Predict,
    *,
    iterations: int,
    learning_rate: float,
) -> Generator[StepInfo, None, None]:
    """Fit `embeds` [1, L, D], a leaf that requires gradients, in place.

    Raises:
        NumericalError: the loss stopped being finite; names the timestep.
    """
    schedule, latents, draw = model.schedule, problem.latents, problem.generator
    optimiser = torch.optim.Adam([embeds], lr=learning_rate)
    for done in range(1, iterations + 1):
        timestep = int(torch.randint(schedule.train_steps, (), generator=draw))
        noise = torch.randn(latents.shape, generator=draw).to(latents)
        noisy = schedule.add_noise(latents, noise, timestep)
        with torch.enable_grad(), model.frozen():
            loss = (noise - predict(noisy, timestep)).square().mean()
            descend(optimiser, [embeds], loss, timestep)
        yield StepInfo("optimise", done, iterations, timestep, loss=loss.item())

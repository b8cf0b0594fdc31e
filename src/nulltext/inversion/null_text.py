"""Null-text inversion: one unconditional embedding per timestep, fitted to the pivot.

With z*_0 … z*_T the pivot, zbar_T = z*_T and ∅_T the embedding of "", for t = T … 1:

    L_t(∅) = mean || z*_{t-1} - step(zbar_t; eps_∅ + w (eps_C - eps_∅)) ||^2
    ∅_t    = argmin L_t by Adam, N inner steps, started at ∅_{t+1}
    zbar_{t-1} = step(zbar_t; guided eps under ∅_t)

Weights and the prompt's embedding stay as they are, and eps_C is computed once per timestep.
Source: Mokady et al. 2023, sec. 3.3, algorithm 1; learning rate and stopping rule as published
with the paper's code. Two things are done better than there, neither of which moves the optimum:
the loss is tested before a step is taken and the best embedding tested is kept, so no timestep ends
worse than it began; and its eps_∅ is reused to advance, so advancing costs no evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nulltext.errors import NumericalError, OptionError
from nulltext.guidance import guide
from nulltext.inversion.base import Problem, Solution
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.record import StepInfo
from nulltext.sampling import pivot_steps

BACKWARD_COST = 2
"""UNet evaluations that a backward pass counts for."""


@dataclass(frozen=True)
class NullText:
    """Options of null-text inversion; the defaults are the paper's."""

    name: ClassVar[str] = "null-text"

    inner_steps: int = 10
    """N: Adam steps per timestep at most; more is closer to the pivot and slower."""
    learning_rate: float = 1e-2
    """Of Adam, at the first (noisiest) timestep."""
    learning_rate_horizon: int = 100
    """Step index at which the linearly falling learning rate would reach zero."""
    learning_rate_floor: float = 1e-4
    """Where it stops falling; only runs of more than 99 timesteps get there."""
    loss_tolerance: float = 1e-5
    """Loss below which the noisiest timestep is good enough."""
    loss_tolerance_slope: float = 2e-5
    """What each further timestep adds to that tolerance."""

    def __post_init__(self) -> None:
        if self.inner_steps < 0:
            raise OptionError(f"inner_steps is {self.inner_steps}; choose 0 or more (10 is usual).")

    def check(self, guidance_scale: float) -> None:
        """Refuse scales at which the null embedding has no say.

        Raises:
            OptionError: the scale is 1 or below.
        """
        if guidance_scale <= 1:
            raise OptionError(
                f"Null-text inversion cannot do anything at guidance {guidance_scale:g}: at 1 and "
                "below, the null embedding that it optimises does not guide the image; "
                "pass --guidance 7.5, or --method ddim."
            )

    def learning_rate_at(self, index: int) -> float:
        """Adam's learning rate at step index i: 0.01 (1 - i / 100) by default."""
        falling = self.learning_rate * (1.0 - index / self.learning_rate_horizon)
        return max(falling, self.learning_rate_floor)

    def tolerance_at(self, index: int) -> float:
        """Loss at which step index i stops early: 1e-5 + 2e-5 i by default."""
        return self.loss_tolerance + self.loss_tolerance_slope * index

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Pivot, then fit; see the module's formulae.

        Raises:
            NumericalError: the loss stopped being finite; names the timestep.
        """
        num_steps, schedule = problem.num_steps, model.schedule
        trajectory = yield from pivot_steps(
            model, problem.latents, problem.prompt_embeds, num_steps
        )
        latents, null_embed = trajectory[-1:], model.embed([""])
        evaluations, null_embeds = num_steps, []
        for index, timestep in enumerate(schedule.timesteps(num_steps)):
            target = trajectory[num_steps - index - 1][None]
            task = _StepTask(model, problem, latents, target, timestep)
            fit = _fit(task, null_embed, self, index)
            null_embed, latents = fit.null_embed, fit.cleaner
            null_embeds.append(null_embed)
            evaluations += fit.unet_evaluations
            yield StepInfo(
                "optimise",
                index + 1,
                num_steps,
                timestep,
                clean_estimate=schedule.clean_estimate(task.latents, fit.noise_pred, timestep),
                loss=fit.loss,
                inner_steps=fit.inner_steps,
            )
        return Solution(
            trajectory=trajectory,
            unet_evaluations=evaluations,
            null_embeds=torch.cat(null_embeds),
            replayed=latents,
        )


class _StepTask:
    """One timestep's least-squares problem in the null embedding."""

    def __init__(
        self,
        model: LatentDiffusion,
        problem: Problem,
        latents: Tensor,
        target: Tensor,
        timestep: int,
    ) -> None:
        self.model, self.problem = model, problem
        self.latents, self.target, self.timestep = latents, target, timestep
        self.cleaner_timestep = model.schedule.cleaner(timestep, problem.num_steps)
        with torch.no_grad():
            self.noise_prompt = model.predict_noise(latents, timestep, problem.prompt_embeds)

    def evaluate(self, null_embed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, guided eps, cleaner latents) under a null embedding [1, L, D]; one evaluation."""
        noise_null = self.model.predict_noise(self.latents, self.timestep, null_embed)
        noise_pred = guide(noise_null, self.noise_prompt, self.problem.guidance_scale)
        cleaner = self.model.schedule.step(
            self.latents, noise_pred, noisier=self.timestep, cleaner=self.cleaner_timestep
        )
        return (cleaner - self.target).square().mean(), noise_pred, cleaner


@dataclass(frozen=True)
class _Fit:
    null_embed: Tensor
    noise_pred: Tensor
    cleaner: Tensor
    loss: float
    inner_steps: int
    unet_evaluations: int


def _fit(task: _StepTask, start: Tensor, config: NullText, index: int) -> _Fit:
    """Minimise one timestep's loss by Adam from `start`, keeping the best embedding tested."""
    null_embed = start.detach().clone().requires_grad_(True)
    optimiser = torch.optim.Adam([null_embed], lr=config.learning_rate_at(index))
    best: tuple[float, Tensor, Tensor, Tensor] | None = None
    evaluations = 1  # eps_C
    for inner in range(config.inner_steps + 1):
        last = inner == config.inner_steps
        with torch.set_grad_enabled(not last), task.model.frozen():
            loss, noise_pred, cleaner = task.evaluate(null_embed)
        evaluations += 1
        value = loss.item()
        if not math.isfinite(value):
            raise NumericalError(
                f"The null-text loss is {value} at timestep {task.timestep}; "
                "pass --dtype float32, or a lower --guidance."
            )
        if best is None or value < best[0]:
            best = (
                value,
                null_embed.detach().clone(),
                noise_pred.detach(),
                cleaner.detach(),
            )
        if last or value < config.tolerance_at(index):
            break
        optimiser.zero_grad()
        loss.backward()
        evaluations += BACKWARD_COST
        optimiser.step()
    assert best is not None
    return _Fit(best[1], best[2], best[3], best[0], inner, evaluations)

"""Null-text inversion: one unconditional embedding per timestep, fitted to the pivot.

With z*_0 … z*_T the pivot, zbar_T = z*_T and ∅_T the embedding of "", for t = T … 1:

    L_t(∅) = mean || z*_{t-1} - step(zbar_t; eps_∅ + w (eps_C - eps_∅)) ||^2
    ∅_t    = argmin L_t by Adam, N inner steps, started at ∅_{t+1}
    zbar_{t-1} = step(zbar_t; guided eps under ∅_t)

Weights and the prompt's embedding stay as they are, and eps_C is computed once per timestep.
How the minimum is looked for is a solver's business (see `solvers`); Adam is the paper's.
Source: Mokady et al. 2023, sec. 3.3, algorithm 1; learning rate and stopping rule as published
with the paper's code. Two things are done better than there, neither of which moves the optimum:
the loss is tested before a step is taken and the best embedding tested is kept, so no timestep ends
worse than it began; and its eps_∅ is reused to advance, so advancing costs no evaluation.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nulltext.errors import OptionError
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.solvers.base import Fit, InnerLoop, Solver
from nulltext.inversion.solvers.registry import solver_named
from nulltext.inversion.solvers.task import StepTask
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.record import StepInfo
from nulltext.sampling import pivots_steps


@dataclass(frozen=True)
class NullText:
    """Options of null-text inversion; the defaults are the paper's."""

    name: ClassVar[str] = "null-text"
    differentiates: ClassVar[bool] = True

    solver: str | Solver = "adam"
    """Name of a solver, or one with options, such as `Secant(damping=0.1)`: who minimises."""
    inner_steps: int = 10
    """N: solver steps per timestep at most; more is closer to the pivot and slower."""
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
    pooled: Literal["fixed", "optimised"] = "fixed"
    """Whether the pooled null embedding moves with the tokens' (SDXL; elsewhere there is none)."""

    def __post_init__(self) -> None:
        if isinstance(self.solver, str):
            solver_named(self.solver)
        if self.inner_steps < 0:
            raise OptionError(f"inner_steps is {self.inner_steps}; choose 0 or more (10 is usual).")
        if self.pooled not in ("fixed", "optimised"):
            raise OptionError(f"pooled is {self.pooled!r}; choose 'fixed' or 'optimised'.")

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

    def inner_loop_at(self, index: int) -> InnerLoop:
        """What a solver may do at step index i."""
        return InnerLoop(self.inner_steps, self.tolerance_at(index), self.learning_rate_at(index))

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Pivot, then fit; see the module's formulae.

        Raises:
            NumericalError: the loss stopped being finite; names the timestep.
        """
        (solution,) = yield from self.batch_steps(model, [problem])
        return solution

    def batch_steps(
        self, model: LatentDiffusion, problems: Sequence[Problem]
    ) -> Generator[StepInfo, None, list[Solution]]:
        """`steps` for several photos at once, each of which stops as early as it would alone."""
        batch = _Batch.of(problems, self._free_rows(model))
        pivots = yield from pivots_steps(model, batch.latents, batch.prompt_embeds, batch.num_steps)
        solver = solver_named(self.solver) if isinstance(self.solver, str) else self.solver
        run, latents = solver.begin(), pivots[-1]
        null_embeds = model.embed([""]).repeat(len(problems), 1, 1)
        evaluations, fitted = [batch.num_steps] * len(problems), []
        for index, timestep in enumerate(model.schedule.timesteps(batch.num_steps)):
            task = batch.task(model, latents, pivots[batch.num_steps - index - 1], timestep)
            with model.frozen():
                fit = run.fit(task, null_embeds, self.inner_loop_at(index))
            null_embeds, latents = fit.best.null_embeds, fit.best.cleaner
            fitted.append(null_embeds)
            evaluations = [a + b for a, b in zip(evaluations, task.unet_evaluations, strict=True)]
            yield _step_info(task, fit, index, batch.num_steps)
        return [
            Solution(
                trajectory=pivots[:, row],
                unet_evaluations=evaluations[row],
                null_embeds=torch.stack(fitted)[:, row],
                replayed=latents[row : row + 1],
            )
            for row in range(len(problems))
        ]

    def _free_rows(self, model: LatentDiffusion) -> Tensor | None:
        """Which rows of an embedding are fitted: [R], 1 or 0; None for all."""
        rows, _ = model.embeds_shape
        if self.pooled == "optimised" or rows == model.max_tokens:
            return None
        return (torch.arange(rows, device=model.device) < model.max_tokens).to(model.precision)


@dataclass(frozen=True)
class _Batch:
    """Problems that differ in photo and prompt alone."""

    latents: Tensor
    prompt_embeds: Tensor
    num_steps: int
    guidance_scale: float
    free_rows: Tensor | None

    @classmethod
    def of(cls, problems: Sequence[Problem], free_rows: Tensor | None) -> _Batch:
        first = problems[0]
        shared = {(problem.num_steps, problem.guidance_scale) for problem in problems}
        assert len(shared) == 1, f"one grid and one scale per batch, not {shared}"
        return cls(
            latents=torch.cat([problem.latents for problem in problems]),
            prompt_embeds=torch.cat([problem.prompt_embeds for problem in problems]),
            num_steps=first.num_steps,
            guidance_scale=first.guidance_scale,
            free_rows=free_rows,
        )

    def task(
        self, model: LatentDiffusion, latents: Tensor, targets: Tensor, timestep: int
    ) -> StepTask:
        return StepTask.at(
            model,
            latents,
            targets,
            self.prompt_embeds,
            timestep=timestep,
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
            free_rows=self.free_rows,
        )


def _step_info(task: StepTask, fit: Fit, index: int, num_steps: int) -> StepInfo:
    schedule = task.model.schedule
    return StepInfo(
        "optimise",
        index + 1,
        num_steps,
        task.timestep,
        clean_estimate=schedule.clean_estimate(task.latents, fit.best.noise_pred, task.timestep),
        loss=fit.best.losses.mean().item(),
        inner_steps=fit.inner_steps,
    )

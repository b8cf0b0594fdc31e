"""One embedding per timestep, fitted to a trajectory: what the pivotal methods have in common.

With z*_0 … z*_T a trajectory, zbar_T = z*_T and E_T the start, for t = T … 1:

    L_t(E) = mean || z*_{t-1} - step(zbar_t; eps_fix + v (eps_E - eps_fix)) ||^2
    E_t    = argmin L_t, N inner steps, started at E_{t+1}
    zbar_{t-1} = step(zbar_t; guided eps under E_t)

Where the step is the identity, L_t is the same for all E, so E_t = E_{t+1} without inner steps.
Which branch moves (E is the null embedding or the prompt's) is `Roles`; see `solvers.task`.
Source: Mokady et al. 2023, sec. 3.3, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from nulltext.errors import OptionError
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.record import StepInfo
from nulltext.inversion.sampling import pivots_steps
from nulltext.inversion.solvers.base import Fit, InnerLoop, Solver
from nulltext.inversion.solvers.registry import solver_named
from nulltext.inversion.solvers.task import StepTask
from nulltext.models.latent_diffusion import LatentDiffusion

FITTED, SOLVER = "fitted.", "solver."
"""Begin the names of a state's tensors that are many."""


@dataclass(frozen=True)
class PerStepOptions:
    """Options of a per-timestep fit; the defaults are the null-text paper's."""

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

    def __post_init__(self) -> None:
        if isinstance(self.solver, str):
            solver_named(self.solver)
        if self.inner_steps < 0:
            raise OptionError(f"inner_steps is {self.inner_steps}; choose 0 or more (10 is usual).")

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


@dataclass(frozen=True)
class State:
    """How far a fit has come: all that the timesteps still to do depend on.

    Its tensors are those of the run itself, so going on from it is going on, to the bit.
    """

    pivots: Tensor
    """[T + 1, B, C, h, w]."""
    latents: Tensor
    """zbar after the last timestep that is done, [B, C, h, w]."""
    fitted: tuple[Tensor, ...]
    """E_T …, one [B, R, D] per timestep that is done."""
    counts: Tensor
    """[2, B], int64: UNet evaluations of the run, gradients."""
    remembered: Mapping[str, Tensor]
    """The solver's."""

    def tensors(self) -> dict[str, Tensor]:
        """By name, as `of` reads them; nothing is copied."""
        own = {"pivots": self.pivots, "latents": self.latents, "counts": self.counts}
        fitted = {f"{FITTED}{index}": embeds for index, embeds in enumerate(self.fitted)}
        return own | fitted | {SOLVER + name: self.remembered[name] for name in self.remembered}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> State:
        """Undo `tensors`."""
        count = sum(name.startswith(FITTED) for name in tensors)
        solver = {n.removeprefix(SOLVER): tensors[n] for n in tensors if n.startswith(SOLVER)}
        fitted = tuple(tensors[f"{FITTED}{index}"] for index in range(count))
        counts = tensors["counts"].cpu()
        return cls(tensors["pivots"], tensors["latents"], fitted, counts, solver)


@dataclass(frozen=True)
class Batch:
    """Problems that differ in photo and prompt alone."""

    latents: Tensor
    """[B, C, h, w]."""
    prompt_embeds: Tensor
    """[B, R, D]."""
    num_steps: int
    guidance_scale: float
    kept: State | None = None
    """How far an earlier run came, if there was one."""

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> Batch:
        """Side by side."""
        first = problems[0]
        shared = {(problem.num_steps, problem.guidance_scale) for problem in problems}
        assert len(shared) == 1, f"one grid and one scale per batch, not {shared}"
        return cls(
            latents=torch.cat([problem.latents for problem in problems]),
            prompt_embeds=torch.cat([problem.prompt_embeds for problem in problems]),
            num_steps=first.num_steps,
            guidance_scale=first.guidance_scale,
            kept=None if first.kept is None else State.of(first.kept),
        )


@dataclass(frozen=True)
class Roles:
    """Which branch of guidance moves."""

    branch: Literal["null_embeds", "prompt_embeds"]
    """The field of a `Solution` that it becomes."""
    moving: Tensor
    """Where it starts, [B, R, D]."""
    fixed: Tensor
    """The other branch's embedding, [B, R, D]."""
    share: float
    """v: what the moving branch counts for in the guided noise."""
    free_rows: Tensor | None
    """[R], 1 for the rows of an embedding that move, 0 for those that stay; None: all move."""


def token_rows(model: LatentDiffusion) -> Tensor | None:
    """The tokens' rows move; a pooled one beside them (SDXL) stays."""
    rows, _ = model.embeds_shape
    if rows == model.max_tokens:
        return None
    return (torch.arange(rows, device=model.device) < model.max_tokens).to(model.precision)


def tokens_alone(model: LatentDiffusion, embeds: Tensor) -> Tensor:
    """The same embeddings [B, R, D], through which only the tokens' rows get gradients."""
    tokens, others = embeds.split([model.max_tokens, embeds.shape[1] - model.max_tokens], dim=1)
    return torch.cat([tokens, others.detach()], dim=1)


def null_moves(model: LatentDiffusion, batch: Batch) -> Roles:
    """∅ moves, from the empty prompt; C stays: eps_C + (1 - w) (eps_∅ - eps_C)."""
    empty = model.embed([""]).repeat(len(batch.latents), 1, 1)
    share = 1.0 - batch.guidance_scale
    return Roles("null_embeds", empty, batch.prompt_embeds, share, token_rows(model))


def prompt_moves(model: LatentDiffusion, batch: Batch) -> Roles:
    """C moves, from the prompt; ∅ stays at the empty prompt: eps_∅ + w (eps_C - eps_∅)."""
    empty = model.embed([""]).repeat(len(batch.latents), 1, 1)
    own = batch.prompt_embeds
    return Roles("prompt_embeds", own, empty, batch.guidance_scale, token_rows(model))


@dataclass(frozen=True)
class Fits:
    """What a fit found for B photos."""

    branch: Literal["null_embeds", "prompt_embeds"]
    embeds: Tensor
    """E_T … E_1, [T, B, R, D]."""
    latents: Tensor
    """zbar_0, [B, C, h, w]."""
    iterations: list[int]
    """Gradients taken, per photo."""

    def solutions(self, trajectories: Tensor) -> list[Solution]:
        """One for each photo, whose trajectories are [T + 1, B, C, h, w]."""
        fields: list[dict[str, Any]] = [{self.branch: e} for e in self.embeds.unbind(1)]
        return [
            Solution(
                trajectory=trajectories[:, row],
                iterations=self.iterations[row],
                replayed=self.latents[row : row + 1],
                **fitted,
            )
            for row, fitted in enumerate(fields)
        ]


def pivot_of_steps(model: LatentDiffusion, batch: Batch) -> Generator[StepInfo, None, Tensor]:
    """The pivots of a batch, [T + 1, B, C, h, w], unless an earlier run has walked them."""
    if batch.kept is not None:
        return batch.kept.pivots
    return (yield from pivots_steps(model, batch.latents, batch.prompt_embeds, batch.num_steps))


def fit_steps(
    model: LatentDiffusion, batch: Batch, pivots: Tensor, roles: Roles, options: PerStepOptions
) -> Generator[StepInfo, None, Fits]:
    """Fit the moving branch, from where an earlier run stopped; see the module's formulae.

    Args: pivots: [T + 1, B, C, h, w].

    Raises:
        NumericalError: the loss stopped being finite; names the timestep.
    """
    name = options.solver
    solver = solver_named(name) if isinstance(name, str) else name
    nothing = torch.zeros(2, len(batch.latents), dtype=torch.int64)
    state = batch.kept or State(pivots, pivots[-1], (), nothing, {})
    if batch.kept is not None:
        model.passes.resume(dict(enumerate(state.counts[0].tolist())))
    run = solver.begin(state.remembered)
    grid = model.schedule.timesteps(batch.num_steps)
    for index in range(len(state.fitted), len(grid)):
        latents, timestep = state.latents, grid[index]
        embeds = state.fitted[-1] if state.fitted else roles.moving
        task = StepTask.at(
            model,
            latents,
            pivots[batch.num_steps - index - 1],
            roles.fixed,
            timestep=timestep,
            num_steps=batch.num_steps,
            share=roles.share,
            prompt_embeds=batch.prompt_embeds,
            free_rows=roles.free_rows,
        )
        loop = options.inner_loop_at(index)
        if not task.fittable:
            loop = replace(loop, max_steps=0)
        with model.frozen():
            fit = run.fit(task, embeds, loop)
        gradients = state.counts[1] + torch.tensor(task.gradients)
        evaluations = torch.tensor([model.passes.counts[row] for row in range(len(gradients))])
        fitted = (*state.fitted, fit.best.embeds)
        counts = torch.stack([evaluations, gradients])
        state = State(pivots, fit.best.cleaner, fitted, counts, run.remembered())
        yield _step_info(task, fit, index, batch.num_steps, state)
    return Fits(roles.branch, torch.stack(state.fitted), state.latents, state.counts[1].tolist())


def _step_info(task: StepTask, fit: Fit, index: int, num_steps: int, state: State) -> StepInfo:
    schedule = task.model.schedule
    return StepInfo(
        "optimise",
        index + 1,
        num_steps,
        task.timestep,
        clean_estimate=schedule.clean_estimate(task.latents, fit.best.noise_pred, task.timestep),
        loss=fit.best.losses.mean().item(),
        inner_steps=fit.inner_steps,
        kept=state.tensors(),
    )

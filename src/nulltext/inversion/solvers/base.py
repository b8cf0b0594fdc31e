"""What a solver is: it lowers one timestep's loss from where the last timestep ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from nulltext.inversion.solvers.task import Best, StepTask


@dataclass(frozen=True)
class InnerLoop:
    """What a method allows a solver at one timestep."""

    max_steps: int
    """N: steps at most."""
    tolerance: float
    """Loss below which a photo is done."""
    learning_rate: float
    """For the solvers that need one."""


@dataclass(frozen=True)
class Fit:
    """What a solver found."""

    best: Best
    """Per photo: embedding, landing, loss; never worse than the start."""
    inner_steps: int
    """Steps that the slowest photo took."""


class SolverRun(Protocol):
    """A solver on its way through the timesteps of one batch; it may remember."""

    def fit(self, task: StepTask, start: Tensor, loop: InnerLoop) -> Fit:
        """Lower the losses of all the task's photos from `start` [B, R, D], each on its own."""
        ...

    def remembered(self) -> Mapping[str, Tensor]:
        """What it carries to the next timestep, by names of its own; nothing that changes later."""
        ...


class Solver(Protocol):
    """A frozen dataclass of options."""

    def begin(self, remembered: Mapping[str, Tensor] | None = None) -> SolverRun:
        """Start at the noisiest timestep, or go on with what an earlier run remembered."""
        ...

"""Adam on the loss, as published: a fresh optimiser at every timestep.

    ∅ <- ∅ - lr m_hat / (sqrt(v_hat) + 1e-8),   m, v running means of grad L and its square

The loss is tested before a step is taken, and the best embedding tested is kept. A step costs 2
evaluations: a forward and a backward pass.
Source: Kingma & Ba 2015, alg. 1; Mokady et al. 2023, alg. 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nulltext.inversion.solvers.base import Fit, InnerLoop
from nulltext.inversion.solvers.task import Best, StepTask


@dataclass(frozen=True)
class Adam:
    """It has no options of its own: the learning rate is `NullText`'s."""

    def begin(self, remembered: Mapping[str, Tensor] | None = None) -> Adam:  # noqa: ARG002
        """It remembers nothing from one timestep to the next."""
        return self

    def remembered(self) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}

    def fit(self, task: StepTask, start: Tensor, loop: InnerLoop) -> Fit:
        """Step until the tolerance or the last step; Adam is elementwise, so photos do not mix."""
        embeds = start.detach().clone().requires_grad_(True)
        optimiser = torch.optim.Adam([embeds], lr=loop.learning_rate)
        best, rows = Best(task, start), task.all_rows
        for inner in range(loop.max_steps + 1):
            last = inner == loop.max_steps
            with torch.set_grad_enabled(not last):
                landing = task.evaluate(embeds[rows], rows)
            losses, _ = best.offer(embeds[rows], landing, rows)
            going = losses >= loop.tolerance
            if last or not bool(going.any()):
                break
            each = torch.ones_like(losses)
            embeds.grad = task.pullback(landing.losses, embeds, each, rows)
            del landing  # and its graph: two at a time would double the memory
            optimiser.step()
            rows = rows[going]
        return Fit(best, inner)

"""Gauss-Newton with a little damping, its linear problem solved by a few conjugate gradients.

    d = argmin ||r + J d||^2 + lambda ||d||^2,   ∅ <- ∅ + d,   kept only where the loss falls

CGLS minimises this over span{g, (J^T J) g, …} with g = -J^T r, one J^T u and one J v per iteration,
exact line search included; J is never formed. lambda is a fraction of the curvature along g, so the
damping has no unit. With k iterations a step costs 3 k + 1 evaluations: k backward and k
forward-mode passes, and the forward that tests it.
Source: Nocedal & Wright 2006, sec. 10.3; Björck, Elfving & Strakoš 1998, alg. 3.1 (CGLS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nulltext.errors import OptionError
from nulltext.inversion.solvers.base import Fit, InnerLoop
from nulltext.inversion.solvers.task import Best, Landing, StepTask, within_trust


@dataclass(frozen=True)
class GaussNewton:
    """Options of the solver."""

    cg_steps: int = 2
    """Conjugate-gradient iterations per step: more solves each linear problem better, at 3
    evaluations each."""
    damping: float = 1e-3
    """Fraction of the curvature that is added to it: higher takes shorter, safer steps."""

    trust: float = 0.3
    """Longest step, relative to the embedding: lower is safer and slower."""

    def __post_init__(self) -> None:
        if self.cg_steps < 1 or self.damping < 0 or self.trust <= 0:
            raise OptionError(
                f"GaussNewton has cg_steps {self.cg_steps}, damping {self.damping:g} and trust "
                f"{self.trust:g}; choose at least 1, 0, and more than 0 (2, 0.001, 0.3 are usual)."
            )

    def begin(self, remembered: Mapping[str, Tensor] | None = None) -> GaussNewton:  # noqa: ARG002
        """It remembers nothing from one timestep to the next."""
        return self

    def remembered(self) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}

    def fit(self, task: StepTask, start: Tensor, loop: InnerLoop) -> Fit:
        """Step until the tolerance, the last step, or a step that does not help."""
        best, rows, tried = Best(task, start), task.all_rows, start.detach()
        for inner in range(loop.max_steps + 1):
            last = inner == loop.max_steps
            embeds = tried.requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                landing = task.evaluate(embeds, rows)
            losses, better = best.offer(embeds, landing, rows)
            going = better & (losses >= loop.tolerance)
            if last or not bool(going.any()):
                break
            point, direction = (
                embeds.detach(),
                self._direction(task, embeds, landing, rows),
            )
            del landing  # and its graph: two at a time would double the memory
            moved = point + within_trust(direction, task.sizes(point, rows), self.trust)
            tried, rows = moved[going], rows[going]
        return Fit(best, inner)

    def _direction(self, task: StepTask, embeds: Tensor, landing: Landing, rows: Tensor) -> Tensor:
        """d of the module's formula, [b, R, D]."""
        point = embeds.detach()
        left = -landing.residual.detach()  # what is left of -r to explain
        direction = torch.zeros_like(point)
        slope = task.pullback(landing.residual, embeds, left, rows)
        search, power = slope, _dot(slope, slope)
        penalty = torch.zeros_like(power)
        for iteration in range(self.cg_steps):
            image = task.pushforward(point, search, rows)
            curvature = _dot(image, image)
            if iteration == 0:
                penalty = self.damping * _ratio(curvature, power)
            length = _ratio(power, curvature + penalty * _dot(search, search))
            direction = direction + _scale(length, search)
            if iteration + 1 == self.cg_steps:
                break
            left = left - _scale(length, image)
            slope = task.pullback(landing.residual, embeds, left, rows)
            slope = slope - _scale(penalty, direction)
            fresh = _dot(slope, slope)
            search = slope + _scale(_ratio(fresh, power), search)
            power = fresh
        return direction


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each photo's rows: [b]."""
    return (left * right).flatten(1).sum(dim=1)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where below is: a photo without slope stays where it is."""
    return torch.where(below > 0, above / below, torch.zeros_like(above))


def _scale(factors: Tensor, rows: Tensor) -> Tensor:
    """Each photo's row times its own factor."""
    return factors.view(-1, *[1] * (rows.ndim - 1)) * rows

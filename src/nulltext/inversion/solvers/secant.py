"""Gauss-Newton in a small subspace whose images are measured by trying, not by differentiating.

With rho = eps_∅ - u* (the residual as noise), J its Jacobian, g = -J^T rho one backward pass:

    probe      x' = x + g / kappa,   s = x' - x,   y = rho(x') - rho(x) ≈ J s
    combine    c  = argmin ||rho + sum_i c_i y_i||^2 + mu sum_i c_i^2 ||y_i||^2
    test       x + sum_i c_i s_i

over this pair and the last m, those of earlier timesteps among them: the null branch's Jacobian
changes slowly from timestep to timestep. kappa = ||y||^2 / ||s||^2 is the curvature that the last
probe met, so a probe is a step of nearly the right length already. A step costs 3 evaluations:
forward with its backward 2, probe 1 (its test is the next step's forward); a last test that
promises little is left out. No kernel needs a forward-mode derivative.
Source: multisecant methods, Fang & Saad 2009, sec. 2; the step length is Barzilai & Borwein 1988's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nulltext.errors import OptionError
from nulltext.inversion.solvers.base import Fit, InnerLoop
from nulltext.inversion.solvers.task import Best, Landing, StepTask, within_trust

FIRST_PROBE = 1e-2
"""Length of the very first probe, whose curvature is unknown, relative to the embedding."""

WORTH_A_TEST = 0.8
"""A last test is made where it promises a loss below this fraction of the best one so far."""


STEP, IMAGE = "step.", "image."
"""Begin the names of what is remembered."""


@dataclass(frozen=True)
class Secant:
    """Options of the solver."""

    memory: int = 20
    """Pairs that are remembered: more finds better combinations, and costs memory alone."""
    damping: float = 5e-2
    """mu: higher trusts remembered pairs less."""
    trust: float = 0.3
    """Longest probe and longest step, relative to the embedding: lower is safer and slower."""

    def __post_init__(self) -> None:
        if self.memory < 1 or self.damping <= 0 or self.trust <= 0:
            raise OptionError(
                f"Secant has memory {self.memory}, damping {self.damping:g} and trust "
                f"{self.trust:g}; choose at least 1, and more than 0 (20, 0.05, 0.3 are usual)."
            )

    def begin(self, remembered: Mapping[str, Tensor] | None = None) -> SecantRun:
        """Start without any pairs, or with those of an earlier run."""
        return SecantRun(self, remembered or {})


class SecantRun:
    """The solver on its way through the timesteps of one batch."""

    def __init__(self, options: Secant, remembered: Mapping[str, Tensor]) -> None:
        self.options = options
        self.memories: list[_Memory] = []
        steps = [name for name in remembered if name.startswith(STEP)]
        for name in sorted(steps, key=_place):
            photo, _ = _place(name)
            while len(self.memories) <= photo:
                self.memories.append(_Memory(options))
            pair = remembered[name], remembered[IMAGE + name.removeprefix(STEP)]
            self.memories[photo].pairs.append(pair)

    def remembered(self) -> Mapping[str, Tensor]:
        """The pairs of each photo, oldest first: `step.PHOTO.AGE` and `image.PHOTO.AGE`."""
        found: dict[str, Tensor] = {}
        for photo, memory in enumerate(self.memories):
            for age, (step, image) in enumerate(memory.pairs):
                found |= {f"{STEP}{photo}.{age}": step, f"{IMAGE}{photo}.{age}": image}
        return found

    def fit(self, task: StepTask, start: Tensor, loop: InnerLoop) -> Fit:
        """Step until the tolerance, the last step, or a step that does not help."""
        while len(self.memories) < len(start):  # at first, or where a photo had no pairs
            self.memories.append(_Memory(self.options))
        best, rows, tried = Best(task, start), task.all_rows, start.detach()
        for inner in range(loop.max_steps + 1):
            left = loop.max_steps - inner
            embeds = tried.requires_grad_(left > 0)
            with torch.set_grad_enabled(left > 0):
                landing = task.evaluate(embeds, rows)
            losses, better = best.offer(embeds, landing, rows)
            going = better & (losses >= loop.tolerance)
            if left == 0 or not bool(going.any()):
                break
            probes = self._probes(task, embeds, landing, rows, going)
            del landing  # and its graph: two at a time would double the memory
            tried, rows = self._combinations(task, best, probes, loop.tolerance, left == 1)
            if len(rows) == 0:
                inner += 1  # the probe was a step
                break
        return Fit(best, inner)

    def _probes(
        self, task: StepTask, embeds: Tensor, landing: Landing, rows: Tensor, going: Tensor
    ) -> _Probes:
        """One step along the slope for each photo that goes on."""
        gain = task.noise_gain
        noise_residual = landing.residual.detach() / gain
        slopes = task.pullback(landing.residual, embeds, -noise_residual / gain, rows)
        points, slopes, rows = embeds.detach()[going], slopes[going], rows[going]
        sizes = task.sizes(points, rows)
        steps = [
            self.memories[row].step_length(size, slope) * slope
            for row, size, slope in zip(rows.tolist(), sizes, slopes, strict=True)
        ]
        shortened = within_trust(torch.stack(steps), sizes, self.options.trust)
        return _Probes(rows, points, shortened, noise_residual[going])

    def _combinations(
        self, task: StepTask, best: Best, probes: _Probes, tolerance: float, final: bool
    ) -> tuple[Tensor, Tensor]:
        """Try the probes, learn from them, and say what to test next: (embeddings, rows)."""
        rows = probes.rows
        with torch.no_grad():
            landing = task.evaluate(probes.points + probes.steps, rows)
        best.offer(probes.points + probes.steps, landing, rows)
        moved = landing.residual / task.noise_gain - probes.noise_residual
        steps, kept = [], []
        for i, row in enumerate(rows.tolist()):
            memory = self.memories[row]
            memory.add(probes.steps[i], moved[i])
            if not memory.pairs:
                continue
            step, promised = memory.combine(probes.noise_residual[i])
            reached = best.losses[row].item()
            worth = WORTH_A_TEST if final else 1.0
            if reached >= tolerance and promised * task.noise_gain**2 < worth * reached:
                steps.append(step)
                kept.append(i)
        points, kept_rows = probes.points[kept], rows[kept]
        if not steps:
            return points, kept_rows
        sizes = task.sizes(points, kept_rows)
        return points + within_trust(torch.stack(steps), sizes, self.options.trust), kept_rows


def _place(name: str) -> tuple[int, int]:
    """(photo, age) in the name of a remembered step."""
    photo, age = name.removeprefix(STEP).split(".")
    return int(photo), int(age)


@dataclass(frozen=True)
class _Probes:
    rows: Tensor
    points: Tensor
    """x, [b, R, D]."""
    steps: Tensor
    """s, [b, R, D]."""
    noise_residual: Tensor
    """rho at the points, [b, C, h, w]."""


class _Memory:
    """One photo's pairs (s, y)."""

    def __init__(self, options: Secant) -> None:
        self.damping = options.damping
        self.pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=options.memory)

    def step_length(self, size: Tensor, slope: Tensor) -> Tensor:
        """1 / kappa by the last pair; without one, by the size of embeddings."""
        if not self.pairs:
            return FIRST_PROBE * size / slope.norm().clamp_min(torch.finfo().tiny)
        step, image = self.pairs[-1]
        return step.square().sum() / image.square().sum().clamp_min(torch.finfo().tiny)

    def add(self, step: Tensor, image: Tensor) -> None:
        """Remember a pair; one that changed nothing would teach nothing."""
        if bool(image.any()):
            self.pairs.append((step, image))

    def combine(self, noise_residual: Tensor) -> tuple[Tensor, float]:
        """The best step in the span of the pairs, [R, D], and the mean square that it promises."""
        images = torch.stack([image.flatten() for _, image in self.pairs])
        gram = images @ images.T
        damped = gram + self.damping * gram.diagonal().diag()
        slopes = images @ noise_residual.flatten()
        # a few numbers, on the CPU: older torch does not solve on MPS
        factors = torch.linalg.solve(damped.cpu(), -slopes.cpu()).to(images.device)
        step = sum(
            (factor * pair[0] for factor, pair in zip(factors, self.pairs, strict=True)),
            start=torch.zeros_like(self.pairs[0][0]),
        )
        promised = (noise_residual.flatten() + factors @ images).square().mean().item()
        return step, promised

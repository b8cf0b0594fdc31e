"""The pivot as a fixed point: latents from which the denoising step lands on z*_{t-1}.

    find z with   a z + b o(z, t, C) = z*_{t-1}         (a, b) of the step from t to t - 1
    remainder     r(z) = z*_{t-1} - (a z + b o(z, t, C))
    iteration     z <- z + r(z) / a                     that is z <- (z*_{t-1} - b o(z, t, C)) / a

DDIM inversion takes o at the cleaner latents and holds it over the step: for epsilon and flow that
is the first iterate from z*_{t-1}, for v the same to first order. r is what one step at w = 1 from
z*_t misses; a replay accumulates it. (Where the network predicts x0, the iteration divides by the
a of v: its own is zero in the last step.)

The first guess costs nothing: the noise eps that the outputs at the two levels before imply is
extrapolated linearly to this one, and the output at the solution serves the next guess. So a step
costs one evaluation where the guess is good enough, and the remainder is known in any case.

    guess         eps = 2 eps_{t-1} - eps_{t-2},  z = the step from t - 1 to t that holds eps

Where it is not, iterates are mixed (Anderson acceleration of depth 1): of the best point x' and the
newest x, with f = r / a,

    c = <f, f - f'> / ||f - f'||^2,   z = x - c (x - x') + theta (f - c (f - f'))

theta is 1, and is halved whenever the newest point is not better than the best. After
`most_evaluations` the best point is kept; `FixedPoints.converged` says whether its remainder is
within the tolerance.
Sources: Pan et al. 2023 (AIDI, arXiv 2309.04907), the fixed point with Anderson acceleration; Meiri
et al. 2023 (Fixed-point Inversion, arXiv 2312.12540v1), plain iteration; Walker & Ni 2011 (Anderson
acceleration, and its damping). Both papers begin at z*_{t-1}, whose first iterate is DDIM's; the
extrapolated guess is in neither.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.guidance import Denoiser
from nulltext.diffusion.levels import Grid, Step, affine, noise_estimate
from nulltext.diffusion.loops import StepInfo
from nulltext.reprs import short_repr

TOLERANCE = 5e-3
"""Largest ||r|| / (alpha_{t-1} ||z_0||) that counts as converged; docs/speed.md has its cost."""

MOST_EVALUATIONS = 6
"""Most evaluations of the network per photo and timestep."""


@dataclass(frozen=True)
class FixedPoints:
    """A pivot of B photos, and how exact each of its steps is."""

    trajectory: Tensor
    """z*_0 … z*_T, [T + 1, B, C, h, w]."""
    remainders: Tensor
    """r at z*_t, [T, B, C, h, w], noisiest first: what to add behind a denoising step at w = 1 to
    land on the trajectory."""
    converged: Tensor
    """[T, B] bool, noisiest first: whether the remainder is within the tolerance."""

    __repr__ = short_repr


def fixed_point_steps(
    model: Denoiser,
    latents: Tensor,
    prompt_embeds: Tensor,
    grid: Grid,
    *,
    tolerance: float = TOLERANCE,
    most_evaluations: int = MOST_EVALUATIONS,
    rounding: float = 0.0,
    kept: Mapping[str, Tensor] | None = None,
) -> Generator[StepInfo, None, FixedPoints]:
    """Walk the fixed-point pivot of B photos side by side; each stops as early as it would alone.

    Args:
        latents: z_0, [B, C, h, w]. prompt_embeds: [B, R, D].
        tolerance: largest ||r|| / (alpha_{t-1} ||z_0||) at any step: what the remainder is beside
            the photo's part in the latents.
        most_evaluations: of the network per photo and step, 1 or more.
        rounding: relative error of the network's output, such as half precision has: a remainder
            as small as what it makes of a step, |b| rounding ||o||, counts as converged.
        kept: `StepInfo.kept` of an earlier run of the same problem, to go on from there.

    Raises:
        NumericalError: the network's output became infinite or NaN.
    """
    walk = Walk.start(latents) if kept is None else Walk.from_tensors(kept)
    upwards = list(reversed(grid))
    for step in upwards[walk.done :]:
        with torch.no_grad():
            guess = walk.guess(model, step, prompt_embeds)
            solved = _Equation(
                model,
                step,
                target=walk.latents,
                prompt_embeds=prompt_embeds,
                sizes=walk.sizes(step),
                tolerance=tolerance,
                rounding=rounding,
            ).solve(guess, most_evaluations)
        check_finite(solved.points, "The fixed-point inversion", step.noisier)
        check_finite(solved.remainders, "The fixed-point inversion", step.noisier)
        walk = walk.after(solved, step)
        loss = solved.remainders.square().mean().item()
        yield StepInfo("pivot", walk.done, len(grid), step.noisier, loss=loss, kept=walk.tensors())
    return FixedPoints(
        torch.stack(walk.trajectory),
        torch.stack(walk.remainders[::-1]),
        torch.stack(walk.converged[::-1]),
    )


@dataclass(frozen=True)
class Walk:
    """How far a pivot has come: all that the steps still to do depend on, cleanest first."""

    trajectory: list[Tensor]
    """z*_0 …, [B, C, h, w] each."""
    remainders: list[Tensor]
    converged: list[Tensor]
    """[B] bool each."""
    noises: list[Tensor]
    """eps at the last two levels, [B, C, h, w] each."""

    @classmethod
    def start(cls, latents: Tensor) -> Walk:
        return cls([latents], [], [], [])

    @property
    def done(self) -> int:
        """Steps that are done."""
        return len(self.remainders)

    @property
    def latents(self) -> Tensor:
        """Where the next step starts."""
        return self.trajectory[-1]

    def sizes(self, step: Step) -> Tensor:
        """Return alpha_{t-1} ||z_0||, [B]: the photo's part in the latents that a step lands on."""
        norms = _norms(self.trajectory[0])
        return step.cleaner.alpha * norms.clamp_min(torch.finfo(norms.dtype).tiny)

    def guess(self, model: Denoiser, step: Step, prompt_embeds: Tensor) -> Tensor:
        """Return latents near the solution; the first step costs one evaluation per photo."""
        if not self.noises:
            return step.invert(
                self.latents, model.predict(self.latents, step.noisier, prompt_embeds)
            )
        noise = self.noises[-1]
        if len(self.noises) > 1:
            noise = 2 * noise - self.noises[-2]
        return affine("epsilon", step.cleaner, step.noisier)(self.latents, noise)

    def after(self, solved: Solved, step: Step) -> Walk:
        """Return the walk one step later."""
        noise = noise_estimate(step.prediction, step.noisier, solved.points, solved.outputs)
        return Walk(
            [*self.trajectory, solved.points],
            [*self.remainders, solved.remainders],
            [*self.converged, solved.errors <= solved.allowed],
            [*self.noises[-1:], noise],
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as tensors by name, to be saved; nothing is copied."""
        return {
            f"{one.name}.{index}": tensor
            for one in fields(self)
            for index, tensor in enumerate(getattr(self, one.name))
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Walk:
        """Restore a state that `tensors` returned."""
        lists: dict[str, dict[int, Tensor]] = {one.name: {} for one in fields(cls)}
        for name, tensor in tensors.items():
            part, index = name.split(".")
            lists[part][int(index)] = tensor
        return cls(**{part: [found[i] for i in sorted(found)] for part, found in lists.items()})


@dataclass(frozen=True)
class Solved:
    """The best point of each of B equations."""

    points: Tensor
    """z, [B, C, h, w]."""
    outputs: Tensor
    """o at them, [B, C, h, w]."""
    remainders: Tensor
    """r at them, [B, C, h, w]."""
    errors: Tensor
    """||r|| / (alpha_{t-1} ||z_0||), [B]; infinite where it is not finite."""
    allowed: Tensor
    """Largest error that counts as converged, [B]."""

    def select(self, rows: Tensor) -> Solved:
        """Copy those of some photos, given by index or by mask."""
        return Solved(*(getattr(self, one.name)[rows] for one in fields(self)))

    def put(self, rows: Tensor, solved: Solved) -> None:
        """Replace those of some photos."""
        for one in fields(self):
            getattr(self, one.name)[rows] = getattr(solved, one.name)


@dataclass(frozen=True)
class _Equation:
    """a z + b o(z) = z*_{t-1}, for B photos."""

    model: Denoiser
    step: Step
    target: Tensor
    """z*_{t-1}, [B, C, h, w]."""
    prompt_embeds: Tensor
    sizes: Tensor
    """alpha_{t-1} ||z_0||, [B]: what remainders are measured by."""
    tolerance: float
    rounding: float

    @property
    def slope(self) -> float:
        """a: what a change of the latents alone moves the landing by.

        Where the network predicts x0 this is that of v: its own is zero in the last step, which
        lands on the output itself.
        """
        prediction = self.step.prediction
        solved = "v_prediction" if prediction == "sample" else prediction
        return affine(solved, self.step.noisier, self.step.cleaner).a

    def at(self, points: Tensor, rows: Tensor) -> Solved:
        """Evaluate at points [b, C, h, w] of the photos `rows` [b]."""
        embeds = self.prompt_embeds[rows]
        outputs = self.model.predict(points, self.step.noisier, embeds, rows.tolist())
        remainders = self.target[rows] - self.step.denoise(points, outputs)
        errors = _norms(remainders) / self.sizes[rows]
        errors = torch.where(errors.isfinite(), errors, math.inf)
        rounded = self.rounding * abs(self.step.gain) * _norms(outputs) / self.sizes[rows]
        return Solved(points, outputs, remainders, errors, rounded.clamp_min(self.tolerance))

    def solve(self, guess: Tensor, most_evaluations: int) -> Solved:
        """Iterate from a guess [B, C, h, w] until each photo is within the tolerance."""
        rows = torch.arange(len(guess), device=guess.device)
        best = self.at(guess, rows)
        points = guess + best.remainders / self.slope
        theta = torch.ones_like(best.errors)
        for _ in range(most_evaluations - 1):
            rows = rows[best.errors[rows] > best.allowed[rows]]
            if not len(rows):
                break
            before, newest = best.select(rows), self.at(points[rows], rows)
            better = newest.errors < before.errors
            theta[rows] = torch.where(better, theta[rows], theta[rows] / 2)
            points[rows] = self._mixed(before, newest, theta[rows])
            best.put(rows[better], newest.select(better))
        return best

    def _mixed(self, best: Solved, newest: Solved, theta: Tensor) -> Tensor:
        """Mix the best point so far and the newest into the next one to try, [b, C, h, w].

        An output that left the finite numbers says nothing but that the step was too long: then
        the next point is half way back.
        """
        f, f_best = newest.remainders / self.slope, best.remainders / self.slope
        moved, changed = newest.points - best.points, f - f_best
        least = torch.finfo(f.dtype).tiny
        c = (f * changed).flatten(1).sum(1) / _norms(changed).square().clamp_min(least)
        c, theta = c[:, None, None, None], theta[:, None, None, None]
        mixed = newest.points - c * moved + theta * (f - c * changed)
        usable = mixed.isfinite().flatten(1).all(dim=1)[:, None, None, None]
        return torch.where(usable, mixed, best.points + moved / 2)


def _norms(tensors: Tensor) -> Tensor:
    """The norm of each photo's tensor: [b]."""
    return tensors.flatten(1).norm(dim=1)

"""The pivot as a fixed point: latents from which the denoising step lands where it should.

    find z with   a z + b o(z, t, C) = z*_{t-1}         (a, b) of the step from t to t - 1
    remainder     r(z) = z*_{t-1} - (a z + b o(z, t, C))
    iteration     z <- z + r(z) / a                      which is z <- (z*_{t-1} - b o(z, t, C)) / a

DDIM inversion takes o at the cleaner latents and holds it over the step, which is the first iterate
alone. What is left of r is all that a replay at w = 1 misses the pivot by.

The guess costs nothing: the noise eps that the network saw at the two levels before is extrapolated
to this one (Adams-Bashforth), and the output at the solution serves the next guess. So a step
costs one evaluation where the guess is good enough, and the remainder is known in any case.

    guess         eps = 2 eps_{t-1} - eps_{t-2},  z = the step from t - 1 to t that holds eps

Where it is not, iterates are mixed (Anderson acceleration, depth 1): of the best point x' and the
newest x, with f = r / a,

    c = <f, f - f'> / ||f - f'||^2,   z = x - c (x - x') + theta (f - c (f - f'))

theta is 1, and is halved whenever a remainder has grown. The best point is kept. A map that does
not contract ends with a remainder above the tolerance, which `FixedPoints.converged` tells.
Sources: Meiri et al. 2023 (Fixed-point Inversion), sec. 4; Pan et al. 2023 (AIDI), sec. 4.2 (both
iterate from DDIM's guess); Walker & Ni 2011, sec. 2 (Anderson); Hairer et al. 1993, sec. III.1
(Adams-Bashforth). The free guess is ours.
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
"""Of ||r|| / (alpha_{t-1} ||z_0||); docs/speed.md has what it costs."""

MOST_EVALUATIONS = 6
"""Of the network at one level."""

GUESSED_FROM = 2
"""Levels whose noise the guess is extrapolated from."""


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
    kept: Mapping[str, Tensor] | None = None,
) -> Generator[StepInfo, None, FixedPoints]:
    """Walk the fixed-point pivot of B photos side by side; each stops as early as it would alone.

    Args:
        latents: z_0, [B, C, h, w]. prompt_embeds: [B, R, D].
        tolerance: of ||r|| / (alpha_{t-1} ||z_0||), at every step: what the remainder is beside the
            photo.
        most_evaluations: of the network per photo and step, 1 or more.
        kept: `StepInfo.kept` of an earlier run of the same problem, to go on from there.

    Raises:
        NumericalError: the network's output became infinite or NaN.
    """
    walk = Walk.start(latents) if kept is None else Walk.of(kept)
    upwards = list(reversed(grid))
    for step in upwards[walk.done :]:
        with torch.no_grad():
            guess = walk.guess(model, step, prompt_embeds)
            equation = _Equation(model, step, walk.latents, prompt_embeds, walk.sizes(step))
            solved = equation.solve(guess, tolerance, most_evaluations)
        check_finite(solved.points, "The fixed-point inversion", step.noisier)
        check_finite(solved.remainders, "The fixed-point inversion", step.noisier)
        walk = walk.after(solved, step, tolerance)
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
        """Return latents near the solution; the first step's cost one evaluation per photo."""
        if not self.noises:
            return step.invert(
                self.latents, model.predict(self.latents, step.noisier, prompt_embeds)
            )
        noise = self.noises[-1]
        if len(self.noises) == GUESSED_FROM:
            noise = 2 * noise - self.noises[0]
        return affine("epsilon", step.cleaner, step.noisier)(self.latents, noise)

    def after(self, solved: Solved, step: Step, tolerance: float) -> Walk:
        """Return the walk one step later."""
        noise = noise_estimate(step.prediction, step.noisier, solved.points, solved.outputs)
        return Walk(
            [*self.trajectory, solved.points],
            [*self.remainders, solved.remainders],
            [*self.converged, solved.errors <= tolerance],
            [*self.noises, noise][-GUESSED_FROM:],
        )

    def tensors(self) -> dict[str, Tensor]:
        """By name, as `of` reads them."""
        return {
            name: torch.stack(getattr(self, name))
            for name in ("trajectory", "remainders", "converged", "noises")
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Walk:
        """Undo `tensors`."""
        return cls(**{name: list(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Solved:
    """The best points of B equations."""

    points: Tensor
    """z, [B, C, h, w]."""
    outputs: Tensor
    """o at them, [B, C, h, w]."""
    remainders: Tensor
    """r at them, [B, C, h, w]."""
    errors: Tensor
    """||r|| / (alpha_{t-1} ||z_0||), [B]; infinite where it is no number."""

    def of(self, rows: Tensor) -> Solved:
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

    @property
    def slope(self) -> float:
        """a: what a change of the latents alone moves the landing by.

        Where the network predicts x0 this is epsilon's: its own is zero in the last step, which
        lands on the output itself.
        """
        prediction = self.step.prediction
        own = "epsilon" if prediction == "sample" else prediction
        return affine(own, self.step.noisier, self.step.cleaner).a

    def at(self, points: Tensor, rows: Tensor) -> Solved:
        """Evaluate at points [b, C, h, w] of the photos `rows` [b]."""
        embeds = self.prompt_embeds[rows]
        outputs = self.model.predict(points, self.step.noisier, embeds, rows.tolist())
        remainders = self.target[rows] - self.step.denoise(points, outputs)
        errors = (_norms(remainders) / self.sizes[rows]).nan_to_num(nan=math.inf)
        return Solved(points, outputs, remainders, errors)

    def solve(self, guess: Tensor, tolerance: float, most_evaluations: int) -> Solved:
        """Iterate from a guess [B, C, h, w] until each photo is within the tolerance."""
        rows = torch.arange(len(guess), device=guess.device)
        best = self.at(guess, rows)
        points = guess + best.remainders / self.slope
        theta = torch.ones_like(best.errors)
        for _ in range(most_evaluations - 1):
            rows = rows[best.errors[rows] > tolerance]
            if not len(rows):
                break
            held, newest = best.of(rows), self.at(points[rows], rows)
            better = newest.errors < held.errors
            theta[rows] = torch.where(better, theta[rows], theta[rows] / 2)
            points[rows] = self._mixed(held, newest, theta[rows])
            best.put(rows[better], newest.of(better))
        return best

    def _mixed(self, held: Solved, newest: Solved, theta: Tensor) -> Tensor:
        """Mix the best point so far and the newest into the next one to try, [b, C, h, w].

        An output that left the finite numbers says nothing but that the step was too long: then
        the next point is half way back.
        """
        lead, before = newest.remainders / self.slope, held.remainders / self.slope
        moved, changed = newest.points - held.points, lead - before
        least = torch.finfo(lead.dtype).tiny
        c = (lead * changed).flatten(1).sum(1) / _norms(changed).square().clamp_min(least)
        c, theta = c[:, None, None, None], theta[:, None, None, None]
        mixed = newest.points - c * moved + theta * (lead - c * changed)
        usable = mixed.isfinite().flatten(1).all(dim=1)[:, None, None, None]
        return torch.where(usable, mixed, held.points + moved / 2)


def _norms(tensors: Tensor) -> Tensor:
    """The norm of each photo's tensor: [b]."""
    return tensors.flatten(1).norm(dim=1)

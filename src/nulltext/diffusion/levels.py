"""Noise levels, and the deterministic step from one to another.

Latents at a noise level are z = alpha x0 + sigma eps. A DDIM step from level s to level r keeps
the x0 and eps that z and the output imply and mixes them anew, which is affine in the latents and
in the network's own output o:

    z_r = a z_s + b o

    epsilon         a = alpha_r / alpha_s                     b = sigma_r - a sigma_s
    v_prediction    a = alpha_r alpha_s + sigma_r sigma_s     b = sigma_r alpha_s - alpha_r sigma_s
    flow            a = 1                                     b = sigma_r - sigma_s
    sample          a = A + B / sigma_n                       b = -B alpha_n / sigma_n

with o = eps; o = alpha eps - sigma x0; o = eps - x0, where alpha = 1 - sigma; and o = x0, where
(A, B) are the coefficients for epsilon and n is the noisier of both levels, at which the network
looked. The clean estimate is the step to (alpha, sigma) = (1, 0), the noise estimate the step to
(0, 1). Nothing is divided by alpha where the network predicts v or the flow, so their steps
are also valid at alpha = 0. Their outputs are read at the level where a step starts. An output x0
is read at the noisier level in both directions: at the clean level it does not determine eps.

A step between equal levels is the identity: a = 1, b = 0, whatever o is. Coefficients are float64,
latents keep their dtype.

Source: Song et al. 2021 (DDIM), eq. 12 with sigma = 0; Salimans & Ho 2022, app. D (v); Liu et al.
2023 (Rectified Flow), eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
"""What a network's output o means."""


@dataclass(frozen=True)
class Level:
    """One noise level."""

    alpha: float
    """Share of the clean latents, float64."""
    sigma: float
    """Share of the noise, float64."""
    fed: float
    """The number that the network is given for it: in Stable Diffusion an integer timestep."""

    def add_noise(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Draw from q(z | z_0): alpha z_0 + sigma eps, all [B, C, h, w].

        Source: Ho et al. 2020 (DDPM), eq. 4.
        """
        return self.alpha * clean + self.sigma * noise


class Affine(NamedTuple):
    """z_r = a z_s + b o."""

    a: float
    b: float

    def __call__(self, latents: Tensor, output: Tensor) -> Tensor:
        """Apply the map to latents and output [B, C, h, w], whose dtype stays."""
        return self.a * latents + self.b * output


def affine(prediction: Prediction, start: Level, end: Level) -> Affine:
    """Return the coefficients of the step from `start` to `end`; see the module's formulae."""
    if prediction == "v_prediction":
        return Affine(
            end.alpha * start.alpha + end.sigma * start.sigma,
            end.sigma * start.alpha - end.alpha * start.sigma,
        )
    if prediction == "flow":
        return Affine(1.0, end.sigma - start.sigma)
    if prediction == "epsilon":
        a = end.alpha / start.alpha
        return Affine(a, end.sigma - a * start.sigma)
    a, b = affine("epsilon", start, end)
    seen = max(start, end, key=lambda level: level.sigma)
    return Affine(a + b / seen.sigma, -b * seen.alpha / seen.sigma)


def clean_estimate(prediction: Prediction, level: Level, latents: Tensor, output: Tensor) -> Tensor:
    """Return the x0 that an output at a level implies, [B, C, h, w]."""
    if prediction == "sample":
        return output
    return affine(prediction, level, Level(1.0, 0.0, 0))(latents, output)


def noise_estimate(prediction: Prediction, level: Level, latents: Tensor, output: Tensor) -> Tensor:
    """Return the eps that an output at a level implies, [B, C, h, w]."""
    if prediction == "epsilon":
        return output
    if prediction == "sample":
        return (latents - level.alpha * output) / level.sigma
    return affine(prediction, level, Level(0.0, 1.0, 0))(latents, output)


@dataclass(frozen=True)
class Step:
    """One step of a grid, between two neighbouring noise levels."""

    noisier: Level
    """Where the network looks, in both directions."""
    cleaner: Level
    prediction: Prediction = "epsilon"
    """What the network's output means."""

    def denoise(self, latents: Tensor, output: Tensor) -> Tensor:
        """Move latents one DDIM step towards the image.

        Args:
            latents, output: [B, C, h, w], latents at `noisier` and the network's output there.

        Returns:
            [B, C, h, w] at `cleaner`, dtype of the arguments.
        """
        return affine(self.prediction, self.noisier, self.cleaner)(latents, output)

    def invert(self, latents: Tensor, output: Tensor) -> Tensor:
        """Move latents one DDIM step towards noise.

        First order: the output, predicted from the cleaner latents, is held over the step.
        Source: Song et al. 2021 (DDIM), eq. 12, run backwards; Mokady et al. 2023, sec. 3.2.

        Args:
            latents, output: [B, C, h, w], latents at `cleaner` and the network's output on them.

        Returns:
            [B, C, h, w] at `noisier`, dtype of the arguments.
        """
        return affine(self.prediction, self.cleaner, self.noisier)(latents, output)

    @property
    def inverted_at(self) -> Level:
        """The level that the network is told when a first-order inversion shows it the cleaner
        latents: DDIM's is the one that it goes to, as published; Euler's, of a flow, the one that
        they have, by which a replay comes nearer (docs/flow.md)."""
        return self.cleaner if self.prediction == "flow" else self.noisier

    def clean_estimate(self, latents: Tensor, output: Tensor) -> Tensor:
        """Return the x0 that an output at `noisier` implies, [B, C, h, w]."""
        return clean_estimate(self.prediction, self.noisier, latents, output)

    @property
    def gain(self) -> float:
        """b of the step towards the image: what a change of the output moves the latents by."""
        return affine(self.prediction, self.noisier, self.cleaner).b

    def moves(self, share: float, dtype: torch.dtype) -> bool:
        """Tell whether a branch that counts for `share` of the output can move the latents.

        Where it moves them by no more than rounding (a step that is the identity), gradients are
        zero or noise, so that no method takes any.
        """
        import torch

        return abs(self.gain * share) > torch.finfo(dtype).eps


Grid: TypeAlias = Sequence[Step]
"""The steps of a run, noisiest first. The cleaner level of a step is the noisier one of the next,
but for some grids (linspace, trailing) where it lies a little beside it."""

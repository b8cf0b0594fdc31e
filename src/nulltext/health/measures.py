"""What a checkpoint's parts are measured by.

With z0 the photo's latents, e ~ N(0, I) and ab the noise level's alpha-bar, a network sees

    z = sqrt(ab) z0 + sqrt(1 - ab) e

and its output o is one of three targets, by which a checkpoint's prediction type can be told:

    epsilon       e
    v_prediction  sqrt(ab) e - sqrt(1 - ab) z0          (Salimans & Ho 2022, sec. 4)
    sample        z0

The error of a target y is mean (o - y)^2 / mean y^2: 1 for an output of zeros, well below for the
type that the network was trained for. A network that is told another noise level than there is
errs more, so of several schedules the one that a network was trained with gives it the timestep
with the least error. What no network is needed for is the best guess of e from z alone,

    min over c of mean (e - c z)^2 / mean e^2 = 1 - <e, z>^2 / (<e, e> <z, z>)        about ab

so an error of e that is not below it means that the network removes no noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.levels import Level, Prediction, noise_estimate
from nulltext.diffusion.schedule import Schedule
from nulltext.errors import NumericalError
from nulltext.models.latent_diffusion import LatentDiffusion

LEVELS = (0.8, 0.5, 0.2, 0.05)
"""alpha-bar of the noise levels: from little to much noise."""

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")

SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "scaled_linear 0.00085 to 0.012": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    },
    "linear 0.0001 to 0.02": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
}
"""Schedules that a config may name by mistake: Stable Diffusion's (all of 1.x, 2.x and XL), the
defaults of diffusers' schedulers (Ho et al. 2020), and Nichol & Dhariwal 2021."""

CONFIGURED = "configured"

SAME = 0.01
"""Schedules whose log alpha-bars differ by no more than this at every timestep are one."""


@dataclass(frozen=True)
class NoiseErrors:
    """Errors of the network's output at `LEVELS`."""

    by_prediction: dict[str, list[float]]
    """Relative squared error at each level, under the configured schedule."""
    by_schedule: dict[str, list[float]]
    """The same under the configured prediction type, by schedule."""
    guess: list[float]
    """That of the best guess of e from z alone."""
    noise_mse: list[float]
    """mean (eps - e)^2 as configured: what training minimises; 0 is perfect."""


@torch.no_grad()
def noise_errors(model: LatentDiffusion, latents: Tensor, prompt_embeds: Tensor) -> NoiseErrors:
    """Measure how well the network predicts noise of known size.

    Costs len(LEVELS) single-image UNet evaluations for each schedule.

    Args:
        latents: z0, [1, C, h, w], scaled. prompt_embeds: [1, R, D].

    Raises:
        NumericalError: an output is not finite.
    """
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=draw, dtype=latents.dtype).to(latents.device)
    schedules = _schedules(model.schedule)
    by_prediction: dict[str, list[float]] = {name: [] for name in PREDICTIONS}
    by_schedule: dict[str, list[float]] = {name: [] for name in schedules}
    guess, noise_mse = [], []
    for level in LEVELS:
        noisy = math.sqrt(level) * latents + math.sqrt(1.0 - level) * noise
        targets = _targets(latents, noise, level)
        for name, schedule in schedules.items():
            nearest = schedule.nearest_level(level)
            output = model.predict(noisy, nearest, prompt_embeds)
            check_finite(output, "The UNet's prediction", nearest)
            errors = {key: _relative(output, target) for key, target in targets.items()}
            by_schedule[name].append(errors[model.schedule.prediction])
            if name == CONFIGURED:
                for key, error in errors.items():
                    by_prediction[key].append(error)
                here = Level(math.sqrt(level), math.sqrt(1.0 - level), nearest.fed)
                noise_pred = noise_estimate(model.schedule.prediction, here, noisy, output)
                noise_mse.append(float((noise_pred - noise).square().mean()))
        guess.append(_best_guess(noise, noisy))
    return NoiseErrors(by_prediction, by_schedule, guess, noise_mse)


def same_levels(one: Schedule, other: Schedule) -> bool:
    """Whether two schedules give every timestep the same noise, to rounding."""
    if one.train_steps != other.train_steps:
        return False
    difference = np.log(one.alphas_cumprod) - np.log(other.alphas_cumprod)
    return bool(np.abs(difference).max() <= SAME)


def _schedules(configured: Schedule) -> dict[str, Schedule]:
    """The configured one, and those of `SCHEDULES` that are another one."""
    found = {CONFIGURED: configured}
    for name, config in SCHEDULES.items():
        schedule = Schedule.from_config(config)
        if not same_levels(schedule, configured):
            found[name] = schedule
    return found


def _targets(latents: Tensor, noise: Tensor, level: float) -> dict[Prediction, Tensor]:
    velocity = math.sqrt(level) * noise - math.sqrt(1.0 - level) * latents
    return {"epsilon": noise, "v_prediction": velocity, "sample": latents}


def _relative(output: Tensor, target: Tensor) -> float:
    return float((output - target).square().mean() / target.square().mean())


def _best_guess(noise: Tensor, noisy: Tensor) -> float:
    product = (noise * noisy).sum().square()
    return float(1.0 - product / (noise.square().sum() * noisy.square().sum()))


def geometric_mean(values: list[float]) -> float:
    """exp mean log, of positive numbers."""
    return math.exp(sum(math.log(max(value, 1e-12)) for value in values) / len(values))


def distance(one: Tensor, other: Tensor) -> float:
    """|a - b| / |b|, of tensors of one shape."""
    return float((one - other).norm() / other.norm().clamp_min(1e-12))


def gradient_norm(model: LatentDiffusion, latents: Tensor, prompt_embeds: Tensor) -> float:
    """|d mean eps^2 / dC|: the gradient that null-text inversion lives on, by one backward pass.

    Raises:
        NumericalError: it is zero or not finite.
    """
    embeds = prompt_embeds.detach().clone().requires_grad_(True)
    with model.frozen(), torch.enable_grad():
        noise_pred = model.predict_noise(latents, model.schedule.level_at(0.5), embeds)
        (gradient,) = torch.autograd.grad(noise_pred.square().mean(), embeds)
    check_finite(gradient, "The gradient in the prompt's embedding")
    size = float(gradient.norm())
    if size == 0.0:
        raise NumericalError(
            "The gradient in the prompt's embedding is zero, so nothing can be optimised; "
            "pass --dtype float32."
        )
    return size

"""Tell from the noise that a network predicts whether its configuration fits its weights.

**By known noise.** With z0 the photo's latents, e ~ N(0, I) and ab the noise level's alpha-bar, a
network sees

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

**By an inversion**, without further work. With z*_{T-1}, z*_T the noisy end of the trajectory and
a, b of the last step, the network's output was

    o = (z*_T - a z*_{T-1}) / b,        and        z*_T = sqrt(ab) x0 + sqrt(1 - ab) eps

with eps the noise that o stands for at z*_{T-1}. So where hardly any photo is left (ab near 0),
z*_T is of unit variance and eps is nearly z*_T. With another prediction type than the network was
trained for, one of the two fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.levels import Level, Prediction, affine, noise_estimate
from nulltext.diffusion.schedule import SMALLEST_ALPHA_CUMPROD, DiscreteSchedule, Schedule
from nulltext.health.expectations import GUESS, SCHEDULES, rounded, same_levels, schedule_note
from nulltext.inversion.record import Inversion
from nulltext.models.latent_diffusion import LatentDiffusion

LEVELS = (0.8, 0.5, 0.2, 0.05)
"""alpha-bar of the noise levels: from little to much noise."""

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")

CONFIGURED = "configured"

CLEARLY_LESS = 0.7
"""A type whose mean error is less than this part of the configured one's is the right one: for the
bundled model epsilon has 0.10 and v 0.95."""

KNOWS_SOMETHING = 0.8
"""Mean error of a type below which the network's output has to do with it at all."""

BETTER_SCHEDULE, HINTING_SCHEDULE = 0.83, 0.95
"""A schedule whose error is less than this part of the configured one's is the better one, or worth
a note. On the bundled model the wrong schedules of `SCHEDULES` cost 5, 7 and 30 per cent."""

FEWEST_STEPS = 10
"""With fewer, the discretisation alone moves both: at 3 steps deviations are 0.66 to 1.25."""

LEAST_NOISE = 0.98
"""1 - alpha-bar of the noisiest timestep, above which the photo no longer counts."""

DEVIATION = (0.8, 1.25)
"""Of eps and z*_T. The bundled model has 0.96 to 1.11 on photos, flat colours, noise and stripes;
read as v_prediction 1.63 to 3.0, as sample 1.4 to 5.4 (but on flat grey 1.04 and 1.23)."""

UNTRAINED = 0.5
"""With both deviations below, the weights are hardly trained: random ones of every family have 0.28
to 0.40."""

LEAST_COSINE = 0.97
"""Of the angle between eps and z*_T: the bundled model has 0.995 and more, a network that predicts
v and is read as epsilon 0.95 and less."""


@dataclass
class NoiseErrors:
    """Errors of the network's output at `LEVELS`."""

    by_prediction: dict[str, list[float]]
    """Relative squared error at each level, under the configured schedule."""
    by_schedule: dict[str, list[float]]
    """The same under the configured prediction type, by schedule."""
    guess: list[float] = field(default_factory=list)
    """That of the best guess of e from z alone."""
    noise_mse: list[float] = field(default_factory=list)
    """mean (eps - e)^2 as configured: what training minimises; 0 is perfect."""

    @property
    def over_guess(self) -> float:
        """Error of the predicted noise over that of the best guess; below 1 is knowledge."""
        return _geometric_mean([a / b for a, b in zip(self.noise_mse, self.guess, strict=True)])

    def as_json(self) -> dict[str, Any]:
        def listed(values: list[float]) -> list[float]:
            return [rounded(value) for value in values]

        return {
            "alpha_cumprod": list(LEVELS),
            "noise_mse": listed(self.noise_mse),
            "guess_mse": listed(self.guess),
            "noise_over_guess": rounded(self.over_guess),
            "error_by_prediction": {n: listed(v) for n, v in self.by_prediction.items()},
            "error_by_schedule": {n: listed(v) for n, v in self.by_schedule.items()},
        }


class Findings(NamedTuple):
    """Sentences on a checkpoint."""

    problems: list[str]
    notes: list[str]


@torch.no_grad()
def noise_errors(model: LatentDiffusion, latents: Tensor, prompt_embeds: Tensor) -> NoiseErrors:
    """Measure how well the network predicts noise of known size.

    Costs len(LEVELS) single-image UNet evaluations for each schedule.

    Args:
        latents: z0, [1, C, h, w], scaled. prompt_embeds: [1, R, D].

    Raises:
        NumericalError: an output is not finite.
    """
    prediction = model.schedule.prediction
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=draw, dtype=latents.dtype).to(latents.device)
    published = {name: DiscreteSchedule.from_config(config) for name, config in SCHEDULES.items()}
    schedules: dict[str, Schedule] = {CONFIGURED: model.schedule}
    flows = prediction == "flow"  # a flow model cannot be another kind by mistake
    if isinstance(model.schedule, DiscreteSchedule):
        own = model.schedule
        schedules |= {n: s for n, s in published.items() if not same_levels(s, own)}
    kinds = (prediction,) if flows else PREDICTIONS
    found = NoiseErrors({name: [] for name in kinds}, {name: [] for name in schedules})
    for level in LEVELS:
        signal, sigma = math.sqrt(level), math.sqrt(1.0 - level)
        targets = {
            "epsilon": noise,
            "v_prediction": signal * noise - sigma * latents,
            "sample": latents,
        }
        if flows:
            exact = model.schedule.nearest_level(level)
            signal, sigma = exact.alpha, exact.sigma
            targets = {"flow": noise - latents}
        noisy = signal * latents + sigma * noise
        for name, schedule in schedules.items():
            nearest = schedule.nearest_level(level)
            output = model.predict(noisy, nearest, prompt_embeds)
            check_finite(output, "The network's prediction", nearest)
            errors = {key: _relative_error(output, target) for key, target in targets.items()}
            found.by_schedule[name].append(errors[prediction])
            if name == CONFIGURED:
                for key, error in errors.items():
                    found.by_prediction[key].append(error)
                noise_pred = noise_estimate(
                    prediction, Level(signal, sigma, nearest.fed), noisy, output
                )
                found.noise_mse.append(float((noise_pred - noise).square().mean()))
        product = (noise * noisy).sum().square()
        norms = noise.square().sum() * noisy.square().sum()
        found.guess.append(float(1.0 - product / norms))
    return found


def _relative_error(output: Tensor, target: Tensor) -> float:
    return float((output - target).square().mean() / target.square().mean())


def _geometric_mean(values: list[float]) -> float:
    """exp mean log, of positive numbers."""
    return math.exp(sum(math.log(max(value, 1e-12)) for value in values) / len(values))


def noise_findings(model: LatentDiffusion, errors: NoiseErrors) -> Findings:
    """Say what the errors of predicted noise mean; the first problem explains the others."""
    note = schedule_note(model)
    notes = [] if note is None else [note]
    means = {name: _geometric_mean(values) for name, values in errors.by_prediction.items()}
    configured, best = model.schedule.prediction, min(means, key=means.__getitem__)
    if means[best] < min(KNOWS_SOMETHING, CLEARLY_LESS * means[configured]):
        problem = (
            f"prediction_type is {configured}, but the network's output is {best} (mean squared "
            f"error {means[best]:.3g} of the target's, under {configured} "
            f'{means[configured]:.3g}): set "prediction_type": "{best}" in '
            "scheduler/scheduler_config.json."
        )
        return Findings([problem], notes)
    ignorant = GUESS.finding(errors.over_guess)
    if ignorant is not None:
        return Findings([ignorant], notes)
    means = {name: _geometric_mean(values) for name, values in errors.by_schedule.items()}
    best = min(means, key=means.__getitem__)
    part = means[best] / means[CONFIGURED]
    if part >= HINTING_SCHEDULE:
        return Findings([], notes)
    reason = (
        "the network predicts noise better if its timesteps are those of the schedule "
        f"'{best}' (mean squared error {means[best]:.3g}, under the configured one "
        f"{means[CONFIGURED]:.3g}): compare beta_schedule, beta_start and beta_end in "
        "scheduler/scheduler_config.json with the published file."
    )
    if part < BETTER_SCHEDULE:
        return Findings([f"The noise schedule seems wrong: {reason}"], notes)
    return Findings([], [*notes, f"The noise schedule may be another one: {reason}"])


def note_on_configuration(model: LatentDiffusion, inversion: Inversion) -> str | None:
    """Say what an inversion shows of a wrong configuration.

    Judges the betas of published families, which a fine-tune may have changed on purpose, and the
    noise that the inversion ends in. None where both are as they should be, or too little is known.
    """
    schedule = model.schedule
    rescaled = (  # on purpose
        isinstance(schedule, DiscreteSchedule)
        and schedule.alphas_cumprod[-1] <= SMALLEST_ALPHA_CUMPROD
    )
    betas = None if rescaled else schedule_note(model)
    findings = " ".join(filter(None, [_note_on_noise(model, inversion), betas]))
    if not findings:
        return None
    return (
        f"Note on the model '{model.name}': {findings} Compare "
        "scheduler/scheduler_config.json with the published file, or run nulltext doctor with this "
        "model and --report FILE, which tells what it should say."
    )


def _note_on_noise(model: LatentDiffusion, inversion: Inversion) -> str | None:
    noisiest, prediction = model.grid(inversion.num_steps)[0], model.schedule.prediction
    guided = inversion.header.method_config.get("inversion_guidance", 1.0) != 1.0
    few = inversion.num_steps < FEWEST_STEPS
    if inversion.is_encoded_only or guided or few or noisiest.noisier.sigma**2 < LEAST_NOISE:
        return None
    cleaner, noisy = inversion.trajectory[-2:].double()
    a, b = affine(prediction, noisiest.cleaner, noisiest.noisier)
    output = (noisy - a * cleaner) / b
    noise_pred = noise_estimate(prediction, noisiest.cleaner, cleaner, output)
    sizes = [float(one.square().mean().sqrt()) for one in (noise_pred, noisy)]
    cosine = float((noise_pred * noisy).mean()) / max(sizes[0] * sizes[1], 1e-12)
    low, high = DEVIATION
    if all(low <= size <= high for size in sizes) and cosine >= LEAST_COSINE:
        return None
    untrained = max(sizes) < UNTRAINED
    return (
        f"Its {'weights look untrained' if untrained else 'configuration looks wrong'}: the noise "
        f"that it inverts the photo to has a deviation of {sizes[1]:.2f}, what its network takes "
        f"for noise there one of {sizes[0]:.2f} and a likeness of {cosine:.2f}, and each should be "
        f"1{'; if they are trained,' if untrained else ', so'} its prediction_type may not be "
        f"{prediction}."
    )

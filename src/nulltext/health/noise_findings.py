"""What the errors of predicted noise say about a checkpoint's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nulltext.health.expectations import GUESS, schedule_note
from nulltext.health.measures import CONFIGURED, LEVELS, NoiseErrors, geometric_mean
from nulltext.health.parts import rounded
from nulltext.models.latent_diffusion import LatentDiffusion

CLEARLY_LESS = 0.7
"""A type whose mean error is less than this part of the configured one's is the right one: for the
bundled model epsilon has 0.10 and v 0.95."""

KNOWS_SOMETHING = 0.8
"""Mean error of a type below which the UNet's output has to do with it at all."""

BETTER_SCHEDULE, HINTING_SCHEDULE = 0.83, 0.95
"""A schedule whose error is less than this part of the configured one's is the better one, or worth
a note. On the bundled model the wrong schedules of `SCHEDULES` cost 5, 7 and 30 per cent."""


def noise_findings(model: LatentDiffusion, errors: NoiseErrors) -> tuple[list[str], list[str]]:
    """(what is wrong, what is worth a note) by the errors of predicted noise."""
    means = {name: geometric_mean(values) for name, values in errors.by_prediction.items()}
    configured = model.schedule.prediction
    best = min(means, key=means.__getitem__)
    note = schedule_note(model)
    notes = [] if note is None else [note]
    knows = means[best] < KNOWS_SOMETHING
    if knows and best != configured and means[best] < CLEARLY_LESS * means[configured]:
        return [
            f"prediction_type is {configured}, but the UNet's output is {best} (mean squared error "
            f"{means[best]:.3g} of the target's, under {configured} {means[configured]:.3g}): set "
            f'"prediction_type": "{best}" in scheduler/scheduler_config.json.'
        ], notes
    over = over_guess(errors)
    said = GUESS.finding(over)
    if said is not None:
        return [f"{said}."], notes
    found, further = _schedule_findings(errors)
    return found, notes + further


def _schedule_findings(errors: NoiseErrors) -> tuple[list[str], list[str]]:
    means = {name: geometric_mean(values) for name, values in errors.by_schedule.items()}
    best = min(means, key=means.__getitem__)
    part = means[best] / means[CONFIGURED]
    if best == CONFIGURED or part >= HINTING_SCHEDULE:
        return [], []
    said = (
        f"the UNet predicts noise better if its timesteps are those of the schedule '{best}' (mean "
        f"squared error {means[best]:.3g}, under the configured one {means[CONFIGURED]:.3g}): "
        "compare beta_schedule, beta_start and beta_end in scheduler/scheduler_config.json with "
        "the published file"
    )
    if part < BETTER_SCHEDULE:
        return [f"The noise schedule seems wrong: {said}."], []
    return [], [f"The noise schedule may be another one: {said}."]


def over_guess(errors: NoiseErrors) -> float:
    """Error of the predicted noise over that of a guess without a network; below 1 is knowledge."""
    return geometric_mean([a / b for a, b in zip(errors.noise_mse, errors.guess, strict=True)])


def noise_figures(errors: NoiseErrors) -> Mapping[str, Any]:
    """All that was measured, for the report."""

    def listed(values: list[float]) -> list[float]:
        return [rounded(value) for value in values]

    return {
        "alpha_cumprod": list(LEVELS),
        "noise_mse": listed(errors.noise_mse),
        "guess_mse": listed(errors.guess),
        "noise_over_guess": rounded(over_guess(errors)),
        "error_by_prediction": {n: listed(v) for n, v in errors.by_prediction.items()},
        "error_by_schedule": {n: listed(v) for n, v in errors.by_schedule.items()},
    }

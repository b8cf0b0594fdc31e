"""What a healthy checkpoint of a family shows on the example photo, and where that is known from.

A range is wide enough for any sound checkpoint; outside it something is wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nulltext.diffusion.schedule import Schedule
from nulltext.health.measures import SCHEDULES, same_levels
from nulltext.health.parts import rounded
from nulltext.models.latent_diffusion import LatentDiffusion

EARLIER_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
"""Families of one text encoder, by its width (CLIP ViT-L, OpenCLIP ViT-H)."""

XL = "Stable Diffusion XL"
XL_WIDTH = 2048

KL_F8 = (
    "23.4 +/- 3.8 dB on COCO 2017 at 256 px, more on larger and smoother pictures (model card of "
    "stabilityai/sd-vae-ft-mse); the least here is one deviation below"
)
XL_VAE = (
    "24.7 +/- 3.9 dB on COCO 2017 at 256 px, more on larger and smoother pictures (model card of "
    "stabilityai/sdxl-vae); the least here is one deviation below"
)


@dataclass(frozen=True)
class Range:
    """Where a figure lies if all is well."""

    figure: str
    """Name of the figure."""
    least: float
    most: float
    source: str
    """Where the range is known from."""
    wrong: str
    """What is wrong outside it, for a person, ending in what to do."""

    def as_json(self, value: float) -> dict[str, Any]:
        """A figure beside its range; None for an end that is open."""
        ends = {"least": rounded(self.least), "most": rounded(self.most)}
        return {
            "figure": self.figure,
            "value": rounded(value),
            **{name: end if math.isfinite(end) else None for name, end in ends.items()},
            "holds": self.finding(value) is None,
            "source": self.source,
        }

    def finding(self, value: float) -> str | None:
        """What is wrong with a value; None where nothing is."""
        if self.least <= value <= self.most:
            return None
        said = f"at least {self.least:.3g}" if value < self.least else f"at most {self.most:.3g}"
        return f"{self.figure} is {rounded(value, 3):g}, expected {said}: {self.wrong}"


def family_name(model: LatentDiffusion) -> str:
    """Which published family a model's parts are of; its layout where the widths are its own."""
    _, width = model.embeds_shape
    if len(model.text.modules) > 1:
        return XL if width == XL_WIDTH else f"{XL}'s layout"
    return EARLIER_WIDTHS.get(width, "Stable Diffusion's layout")


def is_published(model: LatentDiffusion) -> bool:
    """Whether its family's published figures hold for it."""
    return family_name(model) in (XL, *EARLIER_WIDTHS.values())


def bound_range(model: LatentDiffusion, one_colour: float) -> Range:
    """Of the autoencoder's round trip, in dB.

    Args:
        one_colour: PSNR of a picture that has the photo's mean colour everywhere.
    """
    wrong = (
        "the autoencoder does not fit these weights, or its files are damaged; get the vae folder "
        "of this checkpoint again"
    )
    if family_name(model) == XL:
        return Range("psnr_bound", 20.8, math.inf, XL_VAE, wrong)
    if is_published(model):
        return Range("psnr_bound", 19.6, math.inf, KL_F8, wrong)
    source = "the photo's mean colour everywhere, and 3 dB more"
    return Range("psnr_bound", one_colour + 3.0, math.inf, source, wrong)


LATENTS_STD = Range(
    "latents_std",
    0.4,
    2.0,
    "the scaling factor makes latents of unit variance over the training set (Rombach et al. 2022, "
    "app. G); one photo may differ by half",
    "the scaling_factor of vae/config.json is not this autoencoder's (0.18215 for 1.x and 2.x, "
    "0.13025 for XL); get that file again",
)

WORDS = Range(
    "prompts_distance",
    1e-3,
    math.inf,
    "relative distance of two prompts that differ in a colour; 0 if they are read alike",
    "the text encoder does not tell the words apart; get the text_encoder and tokenizer folders "
    "again",
)

GUESS = Range(
    "noise_over_guess",
    0.0,
    0.8,
    "error of the predicted noise over that of the best guess from the noisy latents alone, "
    "geometric mean; 1 is what a network without knowledge reaches, the bundled model has 0.29",
    "the UNet predicts noise no better than without a network; its weights are random, damaged or "
    "of another model",
)

LOST_W1 = Range(
    "psnr_lost_w1",
    -1.0,
    10.0,
    "DDIM inversion and replay at w = 1 differ from the round trip by the steps' discretisation "
    "alone (Mokady et al. 2023, sec. 3.2); the bundled model loses 3.0 dB at 20 steps; "
    "no figure is published, so the range is wide",
    "the noise schedule or the prediction type in scheduler_config.json may be another one's; get "
    "that file again",
)

LOST_DEFAULT = Range(
    "psnr_lost_default",
    -1.0,
    6.0,
    "null-text inversion comes near the round trip (Mokady et al. 2023, sec. 4); the bundled model "
    "loses 1.2 dB at 20 steps; no figure is published for so few, so the range is wide",
    "the optimisation does not reach the photo; attach this report to a bug report",
)

EDIT_CHANGE = Range(
    "edit_change",
    0.2,
    80.0,
    "mean distance of edit and reconstruction in levels of 0 to 255; the bundled model has 21",
    "the changed word does nothing, or the edit is no picture; attach this report to a bug report",
)

LOST_PER_MISSING_STEP = 0.5
"""dB that are added to the upper limits of LOST_W1 and LOST_DEFAULT for each step below 20,
since coarse grids follow the trajectory less well."""


def widened(expected: Range, num_steps: int, usual: int) -> Range:
    """The range of a loss at fewer steps than usual."""
    missing = max(0, usual - num_steps)
    return Range(
        expected.figure,
        expected.least,
        expected.most + LOST_PER_MISSING_STEP * missing,
        expected.source,
        expected.wrong,
    )


def schedule_note(model: LatentDiffusion) -> str | None:
    """What is unusual about a published family's schedule; None where nothing is."""
    name, config = next(iter(SCHEDULES.items()))
    if not is_published(model) or same_levels(model.schedule, Schedule.from_config(config)):
        return None
    return (
        f"The noise schedule is not the one of {family_name(model)} ({name}); fine-tunes with "
        "rescaled betas have another one, a wrong scheduler_config.json, too."
    )

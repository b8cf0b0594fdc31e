"""What a healthy checkpoint of a family shows on the example photo, and where that is known from.

A range is wide enough for any sound checkpoint; outside it something is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nulltext.diffusion.schedule import DiscreteSchedule
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.lora import TRANSFORMERS

EARLIER_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
"""Families of one text encoder, by its width (CLIP ViT-L, OpenCLIP ViT-H)."""

XL = "Stable Diffusion XL"
XL_WIDTH = 2048
T5_WIDTH = 4096
"""Of the prompts of Stable Diffusion 3 and FLUX.1."""

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

SAME_LOG_LEVEL = 0.01
"""Schedules whose log alpha-bars differ by no more than this at every timestep are one."""

LOST_PER_MISSING_STEP = 0.5
"""dB that are added to the upper limits of LOST_W1 and LOST_DEFAULT for each step below 20,
since coarse grids follow the trajectory less well."""


@dataclass(frozen=True)
class Range:
    """The values of a figure if all is well."""

    figure: str
    least: float
    most: float
    source: str
    """Where the range is known from."""
    wrong: str
    """What is wrong outside it, ending in what to do."""

    def as_json(self, value: float) -> dict[str, Any]:
        """Return a value beside the range; None for an end that is open."""
        least, most = (rounded(e) if math.isfinite(e) else None for e in (self.least, self.most))
        return {
            "figure": self.figure,
            "value": rounded(value),
            "least": least,
            "most": most,
            "holds": self.finding(value) is None,
            "source": self.source,
        }

    def finding(self, value: float) -> str | None:
        if self.least <= value <= self.most:
            return None
        limit = f"at least {self.least:.3g}" if value < self.least else f"at most {self.most:.3g}"
        return f"{self.figure} is {rounded(value, 3):g}, expected {limit}: {self.wrong}."

    def at_steps(self, num_steps: int, usual: int) -> Range:
        """Return the range of a loss at fewer steps than usual."""
        return replace(self, most=self.most + LOST_PER_MISSING_STEP * max(0, usual - num_steps))


LATENTS_STD = Range(
    "latents_std",
    0.4,
    2.0,
    "the scaling factor makes latents of unit variance over the training set (Rombach et al. 2022, "
    "app. G); one photo may differ by half",
    "the scaling_factor of vae/config.json is not this autoencoder's (0.18215 for 1.x and 2.x, "
    "0.13025 for XL, 1.5305 for 3, 0.3611 for FLUX.1); get that file again",
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
    "the network predicts noise no better than without one; its weights are random, damaged or "
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

VAE_ON_COCO = (
    "{} on COCO 2017 at 256 px, more on larger and smoother pictures (model card of stabilityai/{}"
    "); the least here is one deviation below"
)


def psnr_bound_range(model: LatentDiffusion, one_colour: float) -> Range:
    """Return the range of the autoencoder's round trip, in dB.

    Args:
        one_colour: PSNR of a picture that has the photo's mean colour everywhere.
    """
    least, source = one_colour + 3.0, "the photo's mean colour everywhere, and 3 dB more"
    if family_name(model) == XL:
        least, source = 20.8, VAE_ON_COCO.format("24.7 +/- 3.9 dB", "sdxl-vae")
    elif is_published(model):
        least, source = 19.6, VAE_ON_COCO.format("23.4 +/- 3.8 dB", "sd-vae-ft-mse")
    wrong = (
        "the autoencoder does not fit these weights, or its files are damaged; get the vae folder "
        "of this checkpoint again"
    )
    return Range("psnr_bound", least, math.inf, source, wrong)


def family_name(model: LatentDiffusion) -> str:
    if model.text.network != "unet":
        kind = type(model.network).__name__
        published = getattr(model.network.config, "joint_attention_dim", None) == T5_WIDTH
        name = TRANSFORMERS.get(kind, kind)
        return name if published else f"{name}'s layout"
    _, width = model.embeds_shape
    if len(model.text.modules) > 1:
        return XL if width == XL_WIDTH else f"{XL}'s layout"
    return EARLIER_WIDTHS.get(width, "Stable Diffusion's layout")


def is_published(model: LatentDiffusion) -> bool:
    return family_name(model) in (XL, *EARLIER_WIDTHS.values())


def same_levels(one: DiscreteSchedule, other: DiscreteSchedule) -> bool:
    if one.train_steps != other.train_steps:
        return False
    difference = np.log(one.alphas_cumprod) - np.log(other.alphas_cumprod)
    return bool(np.abs(difference).max() <= SAME_LOG_LEVEL)


def schedule_note(model: LatentDiffusion) -> str | None:
    """Say that a model of a published family has another noise schedule; None if it does not."""
    name, config = next(iter(SCHEDULES.items()))
    if not is_published(model) or not isinstance(model.schedule, DiscreteSchedule):
        return None
    if same_levels(model.schedule, DiscreteSchedule.from_config(config)):
        return None
    return (
        f"The noise schedule is not the one of {family_name(model)} ({name}); fine-tunes with "
        "rescaled betas have another one, a wrong scheduler_config.json, too."
    )


def rounded(value: float, digits: int = 4) -> float:
    """Round to significant digits; infinities and NaN stay."""
    return float(f"{value:.{digits}g}")

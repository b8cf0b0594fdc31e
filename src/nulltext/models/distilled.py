"""Checkpoints that were distilled to a few steps: what they are, and how much guidance they bear.

Distillation folds guidance into the weights, so at w = 7.5 such a model burns. It can be inverted
all the same: the prompt's branch alone needs no guidance, and null-text inversion, which needs
w > 1, works at a small one. The number of steps stays that of any inversion, as its error grows
with the step; between the few timesteps that it was distilled at, a model is weaker for it.

Published schedulers say most of them: LCM's and TCD's classes, and Euler's with "trailing"
timesteps and predicted noise (SDXL Turbo, SD Turbo, SDXL Lightning). Where velocity is predicted,
or the last level has no signal left, "trailing" has another reason, and the model is an ordinary
one. Single files have no scheduler, and merged ones often that of their base model, so that names
count too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import Any


@dataclass(frozen=True)
class Distilled:
    """What is known of a distilled checkpoint."""

    kind: str
    """The published kind that it is of."""
    steps: tuple[int, int]
    """The fewest and the most that it was distilled to."""
    guidance_scale: float
    """Suggested w: above 1, as null-text inversion needs, and such models bear it."""
    reason: str
    """How it was recognised."""

    @property
    def note(self) -> str:
        """What to say before it is used."""
        low, high = self.steps
        return (
            f"Note: this model seems to be distilled to {low} to {high} steps ({self.kind}: "
            f"{self.reason}); it bears little guidance, so --guidance is {self.guidance_scale:g} "
            "unless you say otherwise, and at the many steps of an inversion it is weaker than the "
            "model that it was distilled from."
        )


KINDS: Mapping[str, tuple[tuple[int, int], float]] = {
    "Turbo": ((1, 4), 1.5),
    "Lightning": ((1, 8), 1.5),
    "LCM": ((2, 8), 1.5),
    "TCD": ((2, 8), 1.5),
    "Hyper-SD": ((1, 12), 1.5),
    "DMD2": ((1, 4), 1.5),
    "PCM": ((2, 16), 1.5),
    "Flash": ((4, 9), 3.0),
    "Turbo or Lightning": ((1, 8), 1.5),
}
"""Steps and guidance. Their authors sample most of them without guidance; merged checkpoints and
LCM are recommended at 1 to 2, SDXL Flash at 2.5 to 3.5."""

NAMES: Mapping[str, str] = {
    "turbo": "Turbo",
    "lightning": "Lightning",
    "lcm": "LCM",
    "tcd": "TCD",
    "hyper": "Hyper-SD",
    "dmd": "DMD2",
    "pcm": "PCM",
}
"""Words in names of files, folders and hub ids."""

SCHEDULERS: Mapping[str, str] = {"LCMScheduler": "LCM", "TCDScheduler": "TCD"}
EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")

WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
"""In a name, however it is joined: sdxl-turbo, RealVisXL_Lightning, hyperVAE."""
OTHER_HYPER = ("real", "detail", "network", "style")
"""Beginnings of what follows "hyper" where it means something else."""
BASES = ("sd", "sdxl", "xl")
"""What stands beside "flash" where it means the distillation."""
CACHED = "models--"
"""Beginning of the name of a model's folder in the hub's cache."""


def recognise(name: str, scheduler: Mapping[str, Any]) -> Distilled | None:
    """What a checkpoint was distilled by; None where nothing says that it was.

    Args:
        name: the path or the hub id that it is loaded from.
        scheduler: its scheduler's config; empty where it has none.
    """
    named = _by_name(name)
    kind, reason = named, "its name says so"
    if scheduler.get("_class_name") in SCHEDULERS:
        kind = named or SCHEDULERS[str(scheduler["_class_name"])]
        reason = f"its scheduler is of class {scheduler['_class_name']}"
    elif _is_trailing(scheduler):
        kind = named or "Turbo or Lightning"
        reason = "its scheduler takes the last timesteps, as SDXL Turbo's does"
    if kind is None:
        return None
    steps, guidance_scale = KINDS[kind]
    return Distilled(kind, steps, guidance_scale, reason)


def _is_trailing(scheduler: Mapping[str, Any]) -> bool:
    return (
        scheduler.get("_class_name") in EULER
        and scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type", "epsilon") != "v_prediction"
        and not scheduler.get("rescale_betas_zero_snr")
    )


def _by_name(name: str) -> str | None:
    parts = PurePath(name).parts
    cached = [part for part in parts if part.startswith(CACHED)]
    words = [word.lower() for word in WORDS.findall((cached or parts or ("",))[-1])]
    for word, after in pairwise([*words, ""]):
        if word == "hyper" and after.startswith(OTHER_HYPER):
            continue
        bare = next(
            (word.removeprefix(base) for base in ("sdxl", "sd") if word.startswith(base)), word
        )
        if bare in NAMES:
            return NAMES[bare]
    pairs = pairwise(words)
    if any("flash" in pair and set(pair) & set(BASES) for pair in pairs):
        return "Flash"
    return None

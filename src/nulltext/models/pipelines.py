"""Find the family of a checkpoint by its pipeline, and tell what other pipelines are.

A class name is looked up by its beginning, which says the architecture; what begins as Stable
Diffusion does is looked up by the part that says what its UNet takes beside latents and prompt.

Checkpoints that were distilled to a few steps are recognised by their names and schedulers.
Distillation folds guidance into the weights, so at w = 7.5 such a model burns. It can be inverted
all the same: the prompt's branch alone needs no guidance, and null-text inversion, which needs
w > 1, works at a small one. Published schedulers say most of them: LCM's and TCD's classes, and
Euler's with "trailing" timesteps and predicted noise (SDXL Turbo, SD Turbo, SDXL Lightning). Where
velocity is predicted, or the last level has no signal left, "trailing" has another reason. Single
files have no scheduler, and merged ones often that of their base model, so that names count too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from nulltext.errors import ModelError, OptionError, shorten
from nulltext.models.families import Family
from nulltext.models.mmdit import FLUX, STABLE_DIFFUSION_3
from nulltext.models.tensor_files import WORKS, known_kinds
from nulltext.models.unet import STABLE_DIFFUSION, STABLE_DIFFUSION_XL

FAMILIES: list[Family] = [STABLE_DIFFUSION, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_3, FLUX]

LATENT_CHANNELS = 4

ANOTHER = "another kind of model"
ONLY_SAMPLES = "another way to sample Stable Diffusion"

BESIDE = {
    "scheduler",
    "inverse_scheduler",
    "safety_checker",
    "feature_extractor",
    "image_encoder",
}
"""Parts of a pipeline that do not change what its network computes."""


def register_family(family: Family) -> Family:
    """Add a family for this process, before its models are loaded.

    Raises:
        OptionError: a pipeline of that name is in another family.
    """
    taken = {name for other in FAMILIES for name in other.pipelines} & {*family.pipelines}
    if taken:
        raise OptionError(f"The pipeline {min(taken)} is in a family; register another name.")
    FAMILIES.append(family)
    return family


def family_of(
    kind: object,
    model: str,
    index: Mapping[str, Any],
    unet: Callable[[], Mapping[str, Any]] = dict,
) -> Family:
    """Find the family of a pipeline: by its class name, or else by its parts.

    Args:
        kind: `_class_name` of model_index.json.
        index: model_index.json, which names the classes of the parts.
        unet: reads the UNet's config, where that can be read.

    Raises:
        ModelError: it is of none, or the second stage of SDXL; names what it is.
    """
    named = {name: family for family in FAMILIES for name in family.pipelines}
    family = named.get(kind) if isinstance(kind, str) else None
    family = family or _family_by_parts(kind, index, unet)
    if family is None:
        raise ModelError(explain_pipeline(kind, model))
    if index.get("requires_aesthetics_score"):
        raise ModelError(
            f"The model '{model}' is the SDXL refiner, which only finishes what the base model "
            f"began; {WORKS}."
        )
    return family.present(index)


def explain_pipeline(class_name: object, model: str) -> str:
    """Say in one sentence what a pipeline is that nulltext cannot edit with, and what to do."""
    name = _plain(class_name)
    return (
        f"The model '{model}' is of class {shorten(name)} ({_what(name)}), which nulltext cannot "
        f"edit with; {WORKS}."
    )


def _family_by_parts(
    kind: object, index: Mapping[str, Any], unet: Callable[[], Mapping[str, Any]]
) -> Family | None:
    """Find the family whose parts a pipeline of another name has, with nothing beside them."""
    what = _what(_plain(kind))
    tables = known_kinds()
    # The classes and channels of these do not tell them from Stable Diffusion.
    if what in (tables["tasks"]["GLIGEN"], tables["pipelines"]["LatentConsistency"]):
        return None
    parts = {
        name: entry[1]
        for name, entry in index.items()
        if not name.startswith("_")  # `_class_name` may be such a list, too
        and (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str))
    }
    family = STABLE_DIFFUSION_XL if "text_encoder_2" in parts else STABLE_DIFFUSION
    if "transformer" in parts:
        family = FLUX if parts["transformer"] == FLUX.modules["transformer"] else STABLE_DIFFUSION_3
        family = family.present(index)
    wanted: dict[str, tuple[str, ...]] = {name: (kind,) for name, kind in family.modules.items()}
    wanted |= {name: family.tokenizer_classes(name) for name in family.tokenizers}
    if any(parts.get(name) not in kinds for name, kinds in wanted.items()):
        return None
    if parts.keys() - wanted.keys() - BESIDE:
        return None
    by_name = what in (ONLY_SAMPLES, ANOTHER)
    if "transformer" in parts:  # channels do not tell FLUX.1 Kontext from FLUX.1
        same = [tables["pipelines"][name] for name in ("StableDiffusion3", "Flux")]
        return family if by_name or what in same else None
    return family if by_name or unet().get("in_channels") == LATENT_CHANNELS else None


def _plain(class_name: object) -> str:
    """Drop the file of code that some pipelines name before their class."""
    return str(class_name[-1]) if isinstance(class_name, list) and class_name else str(class_name)


def _what(name: str) -> str:
    architectures, tasks = known_kinds()["pipelines"], known_kinds()["tasks"]
    begins = [beginning for beginning in architectures if name.startswith(beginning)]
    if begins:
        return str(architectures[max(begins, key=len)])
    holds = [part for part in tasks if part in name]
    return str(tasks[max(holds, key=len)]) if holds else ANOTHER


@dataclass(frozen=True)
class Distilled:
    """A kind of distilled checkpoints."""

    kind: str
    steps: tuple[int, int]
    """The fewest and the most that it was distilled to."""
    guidance_scale: float
    """Suggested w: above 1, as null-text inversion needs, and such models bear it."""
    reason: str
    """How it was recognised."""

    @property
    def note(self) -> str:
        low, high = self.steps
        return (
            f"Note: this model seems to be distilled to {low} to {high} steps ({self.kind}: "
            f"{self.reason}); it bears little guidance, so --guidance is {self.guidance_scale:g} "
            "unless you say otherwise, and at the many steps of an inversion it is weaker than the "
            "model that it was distilled from."
        )


EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
"""In a name, however it is joined: sdxl-turbo, RealVisXL_Lightning, hyperVAE."""
OTHER_HYPER = ("real", "detail", "network", "style")
"""Beginnings of what follows "hyper" where it means something else."""
BASES = {"sd", "sdxl", "xl"}
"""What stands beside "flash" where it means the distillation."""
CACHED = "models--"
"""Beginning of the name of a model's folder in the hub's cache."""


def recognise_distilled(name: str, scheduler: Mapping[str, Any]) -> Distilled | None:
    """Tell what a checkpoint was distilled by; None where nothing says that it was.

    Args:
        name: the path or the hub id that it is loaded from.
        scheduler: its scheduler's config; empty where it has none.
    """
    tables = known_kinds()["distilled"]
    kind, reason = _distilled_by_name(name, tables["names"]), "its name says so"
    scheduler_class = scheduler.get("_class_name")
    trailing = (
        scheduler_class in EULER
        and scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type", "epsilon") != "v_prediction"
        and not scheduler.get("rescale_betas_zero_snr")
    )
    if isinstance(scheduler_class, str) and scheduler_class in tables["schedulers"]:
        kind = kind or tables["schedulers"][scheduler_class]
        reason = f"its scheduler is of class {scheduler_class}"
    elif trailing:
        kind = kind or "Turbo or Lightning"
        reason = "its scheduler takes the last timesteps, as SDXL Turbo's does"
    if kind is None:
        return None
    known = tables["kinds"][kind]
    low, high = known["steps"]
    return Distilled(kind, (low, high), known["guidance_scale"], reason)


def _distilled_by_name(name: str, known: Mapping[str, str]) -> str | None:
    parts = PurePath(name).parts
    cached = [part for part in parts if part.startswith(CACHED)]
    words = [word.lower() for word in WORDS.findall((cached or parts or ("",))[-1])]
    for word, after in pairwise([*words, ""]):
        if word == "hyper" and after.startswith(OTHER_HYPER):
            continue
        bare = word.removeprefix("sdxl") if word.startswith("sdxl") else word.removeprefix("sd")
        if bare in known:
            return known[bare]
    if any("flash" in pair and BASES & set(pair) for pair in pairwise(words)):
        return "Flash"
    return None

"""The line that makes the same picture in a terminal."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePath

from nulltext import constants
from nulltext.models.choice import ModelChoice
from nulltext.studio.forms import EditForm, InvertForm


@dataclass(frozen=True)
class Place:
    """What a command line has to name beside the forms."""

    photo: str
    """The photo's file name."""
    inversion: str | None
    """File name of a saved inversion that was brought along; None for one that was made here."""
    chosen: ModelChoice
    """The model and where it runs."""


def edit_command(place: Place, invert: InvertForm, edit: EditForm, *, masked: bool) -> str:
    """`nulltext edit …`, to be run in the folder where the photo is."""
    stem = PurePath(place.photo).stem
    words = ["nulltext", "edit", _file(place.photo)]
    words += _origin(invert) if place.inversion is None else ["--inversion", place.inversion]
    words += ["--target", edit.target]
    numbers = {
        "strength": edit.strength,
        "cross-steps": edit.cross_steps,
        "self-steps": edit.self_steps,
        "target-guidance": edit.target_guidance,
    }
    for name, value in numbers.items():
        words += [] if value is None else [f"--{name}", repr(value)]
    for word, factor in edit.weights.items():
        words += ["--weight", f"{word}={factor!r}"]
    for word in edit.blend:
        words += ["--blend", word]
    if edit.blend and edit.threshold != constants.BLEND_THRESHOLD:
        words += ["--blend-threshold", repr(edit.threshold)]
    words += ["--mask", f"{stem}-mask.png"] if masked else []
    words += [] if edit.detail == "auto" else ["--detail", edit.detail]
    words += place.chosen.as_arguments()
    return shlex.join([*words, "--full", "-o", f"{stem}-edited.png"])


def _origin(form: InvertForm) -> list[str]:
    """Source, crop, and how to invert."""
    words = ["--source", form.source, "--crop", str(form.crop)]
    words += [] if form.method == constants.METHOD else ["--method", form.method]
    words += [] if form.budget in (None, constants.BUDGET) else ["--budget", form.budget]
    words += [] if form.steps is None else ["--steps", str(form.steps)]
    words += [] if form.guidance is None else ["--guidance", repr(form.guidance)]
    return words + ([] if form.seed == 0 else ["--seed", str(form.seed)])


def _file(name: str) -> str:
    """A file name that no program takes for an option."""
    return f"./{name}" if name.startswith("-") else name

"""PIE-Bench: its edits on disk, and the same Prompt-to-Prompt edit after every inversion.

    mapping_file.json     {key: {"image_path", "original_prompt", "editing_prompt",
                           "editing_instruction", "editing_type_id", "blended_word", "mask"}}
    annotation_images/    what image_path is relative to

Square brackets in a prompt mark the words that differ and are removed. A mask is a flat list
of (start, length) pairs over the 512 x 512 pixels, row by row; they are 1, where the edit belongs,
and so is the outermost pixel on every side, "to avoid annotation errors" there.

The protocol: 50 DDIM steps, w = 7.5; cross-attention injected for 0.4 of the steps and
self-attention for 0.6, refinement alignment; where words to blend are given, the edit stays where
their maps are, and the target's word has twice its weight.
Source: Ju et al. 2024 (Direct Inversion), sec. 5 and 5.3; format, border and numbers as in its
published code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nulltext.attention.blend import LocalBlend
from nulltext.constants import GUIDANCE_SCALE, NUM_STEPS
from nulltext.diffusion.guidance import guided_evaluations
from nulltext.editing.editors import PromptToPrompt
from nulltext.editing.loop import edit
from nulltext.editing.spec import EditSpec
from nulltext.errors import DataError, OptionError, reason_of, shorten
from nulltext.evaluation.pie_metrics import Networks, pie_metrics
from nulltext.evaluation.plan import VARIANTS
from nulltext.evaluation.rows import Measurement, Progress, Schedule, Task, run_tasks
from nulltext.image.images import from_uint8
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.invert import invert
from nulltext.inversion.registry import method_named, with_options
from nulltext.jobs.ledger import Book
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text, resolve_inside
from nulltext.words.prompts import clean, has_word

MAPPING, PICTURES = "mapping_file.json", "annotation_images"

MAX_MAPPING_BYTES = 256 * MEGABYTE
"""Of the mapping file; 700 masks as runs take a few megabytes."""

SIDE = 512
"""Side in pixels of the pictures that masks are drawn on."""

CATEGORIES = {
    "0": "random",
    "1": "change object",
    "2": "add object",
    "3": "delete object",
    "4": "change content",
    "5": "change pose",
    "6": "change colour",
    "7": "change material",
    "8": "change background",
    "9": "change style",
}
"""Types of edits by their `editing_type_id`."""


PUBLISHED_BLEND_START = 0.2
"""Fraction of the steps before the published editor's local blend begins."""


@dataclass(frozen=True)
class PieItem:
    """One edit of the benchmark."""

    key: str
    """Name in the mapping file and in rows of results."""
    path: Path
    source: str
    """Prompt of the photo."""
    target: str
    """Prompt of the edit."""
    category: str
    """A key of `CATEGORIES`."""
    blend: tuple[str, ...] = ()
    """Up to two words whose places the edit stays in, of the source and of the target."""
    runs: Sequence[Any] = field(default=(), repr=False)
    """The mask as published; see `decode_mask`."""


def read_pie(folder: Path) -> list[PieItem]:
    """Read all edits of the benchmark, in the file's order; pictures and masks are not opened.

    Raises:
        DataError: a file is missing or malformed, or leads out of its folder.
    """
    path = folder / MAPPING
    if not folder.is_dir() or not path.is_file():
        raise DataError(
            f"'{folder}' holds no {MAPPING}; give the folder of PIE-Bench that has it and "
            f"{PICTURES}/ in it (docs/pie.md says where to get it)."
        )
    try:
        mapping = parse_json(read_text(path, MAX_MAPPING_BYTES))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read ({reason_of(error)}).") from error
    if not isinstance(mapping, dict) or not mapping:
        raise DataError(f"'{path}' is no JSON object of edits; get PIE-Bench again.")
    return [_read_item(key, entry, path) for key, entry in mapping.items()]


def select_categories(items: Sequence[PieItem], categories: Sequence[str]) -> list[PieItem]:
    """Select the edits of some categories, by their keys in `CATEGORIES`.

    Raises:
        OptionError: a category is unknown, or has no edit.
    """
    for name in categories:
        if name not in CATEGORIES:
            listed = ", ".join(f"{key} ({title})" for key, title in CATEGORIES.items())
            raise OptionError(f"There is no category '{name}'; choose among {listed}.")
        if not any(item.category == name for item in items):
            raise OptionError(f"There is no edit of category {name} here; leave it out.")
    return [item for item in items if item.category in categories]


def items_digest(items: Sequence[PieItem]) -> str:
    """Hash prompts, words and masks of edits (not the pictures' bytes)."""
    content = [(i.key, i.source, i.target, i.category, i.blend, i.runs) for i in items]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _read_item(key: str, entry: Any, path: Path) -> PieItem:
    if not isinstance(entry, dict):
        raise DataError(f"'{path}': the entry '{shorten(key)}' is no JSON object.")

    def text(name: str) -> str:
        value = entry.get(name)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"'{path}': the entry '{shorten(key)}' has no {name}.")
        return value

    try:
        picture = resolve_inside(path.parent / PICTURES, text("image_path"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"'{path}': the image_path of '{shorten(key)}' leads out of {PICTURES}/, or nowhere "
            f"({reason_of(error)})."
        ) from error
    category = str(entry.get("editing_type_id"))
    if category not in CATEGORIES:
        raise DataError(
            f"'{path}': the editing_type_id of '{shorten(key)}' is {shorten(category)}, not 0 to 9."
        )
    if not isinstance(entry.get("mask"), list):
        raise DataError(f"'{path}': the mask of '{shorten(key)}' is no list of runs.")
    blended = entry.get("blended_word", "")
    if not isinstance(blended, str):
        raise DataError(f"'{path}': the blended_word of '{shorten(key)}' is no text.")
    return PieItem(
        key=key,
        path=picture,
        source=without_brackets(text("original_prompt")),
        target=without_brackets(text("editing_prompt")),
        category=category,
        blend=tuple(clean(blended).split()[:2]),
        runs=entry["mask"],
    )


def without_brackets(prompt: str) -> str:
    return " ".join(clean(prompt).replace("[", "").replace("]", "").split())


def decode_mask(runs: Sequence[Any]) -> Tensor:
    """Decode a mask: [512, 512], bool, 1 where the edit belongs, its border not yet set.

    A run that goes on beyond the last pixel ends there.

    Raises:
        DataError: the list does not consist of pairs of whole numbers from 0 up.
    """
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in runs)
    if len(runs) % 2 or not whole:
        raise DataError(
            f"The mask is no list of (start, length) pairs of whole numbers: it has {len(runs)} "
            "entries" + ("." if whole else ", and one is no whole number from 0 up.")
        )
    flat = torch.zeros(SIDE * SIDE, dtype=torch.bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + length] = True
    return flat.view(SIDE, SIDE)


METHODS = ("fixed-point", "ddim", "null-text", "negative-prompt", "direct")
"""The methods that are compared by default: nulltext's own default, and those of the paper that
nulltext has."""


@dataclass(frozen=True)
class Protocol:
    """The numbers of a run; the defaults are the published ones."""

    num_steps: int = NUM_STEPS
    """T."""
    guidance_scale: float = GUIDANCE_SCALE
    """w of every replay and edit."""
    cross_steps: float = 0.4
    """Fraction of the steps with the source's cross-attention."""
    self_steps: float = 0.6
    """Fraction of the steps with the source's self-attention."""
    word_weight: float = 2.0
    """Factor on the target's word to blend."""
    inner_steps: int | None = None
    """N of the methods that optimise; None for each method's own default."""
    seed: int = 0
    """For the methods that draw noise."""

    def __post_init__(self) -> None:
        if self.inner_steps is not None and self.inner_steps < 1:
            raise OptionError(f"--inner-steps is {self.inner_steps}; choose 1 or more.")

    @property
    def deviations(self) -> list[str]:
        found = []
        if self.num_steps != NUM_STEPS:
            found.append(f"{self.num_steps} steps instead of {NUM_STEPS}")
        if self.inner_steps is not None:
            found.append(f"N = {self.inner_steps} instead of each method's own")
        return found

    def method(self, name: str) -> InversionMethod:
        method = method_named(name)
        if self.inner_steps is None or not VARIANTS[name].optimises:
            return method
        return with_options(method, inner_steps=self.inner_steps)

    def evaluations(self, name: str) -> int:
        n = getattr(self.method(name), "inner_steps", 0)
        variant = VARIANTS[name]
        scales = (variant.source_guidance(self.guidance_scale), self.guidance_scale)
        edited = self.num_steps * sum(guided_evaluations(1, scale) for scale in scales)
        return variant.evaluations(self.num_steps, n) + edited


def spec_of(model: LatentDiffusion, item: PieItem, protocol: Protocol) -> tuple[EditSpec, str]:
    """Build the edit, and a remark on words to blend that cannot be used ("" where all can).

    Raises:
        PromptError: a prompt cannot be read.
    """
    source, target = model.tokenize(item.source), model.tokenize(item.target)
    usable = [w for w in dict.fromkeys(item.blend) if has_word(source, w) or has_word(target, w)]
    last = item.blend[-1] if item.blend else ""
    weighted = bool(last) and has_word(target, last)
    editor = PromptToPrompt(
        cross_steps=protocol.cross_steps,
        self_steps=protocol.self_steps,
        weights={last: protocol.word_weight} if weighted else {},
        alignment="refine",
    )
    blend = LocalBlend(tuple(usable), start=PUBLISHED_BLEND_START) if usable else None
    unused = [word for word in item.blend if word not in usable]
    notes = [f"{', '.join(unused)} is in neither prompt, so not blended"] if unused else []
    if last and last not in unused and not weighted:
        notes.append(f"{last} is not in the target, so not weighted")
    return EditSpec(item.target, editor=editor, blend=blend), "; ".join(notes)


def plan_pie(
    items: Sequence[PieItem],
    methods: Sequence[str],
    protocol: Protocol,
    done: Collection[Hashable],
) -> Schedule[PieItem]:
    tasks = [
        [
            Task(
                "pie",
                item.key,
                method,
                {"category": f"{item.category} {CATEGORIES[item.category]}"},
                partial(_measure, method=method, protocol=protocol),
                evaluations=protocol.evaluations(method),
            )
            for method in methods
        ]
        for item in items
    ]
    return Schedule(zip(items, tasks, strict=True), done)


def pie_steps(
    model: LatentDiffusion, schedule: Schedule[PieItem], book: Book, networks: Networks
) -> Generator[Progress, None, None]:
    shown = {row["image"] for row in book.rows if "photo" in row.get("pictures", {})}
    return run_tasks(
        schedule, book, lambda item: EditedPhoto(model, networks, item, item.key not in shown)
    )


@dataclass
class EditedPhoto:
    """An edit of the benchmark with what measures it."""

    model: LatentDiffusion
    networks: Networks
    item: PieItem
    show_photo: bool
    """Whether the next row keeps the photo; one row of each edit does."""


def _measure(photo: EditedPhoto, method: str, protocol: Protocol) -> Measurement:
    model, item = photo.model, photo.item
    mask = decode_mask(item.runs)
    spec, remark = spec_of(model, item, protocol)
    inversion = invert(
        model,
        item.path,
        item.source,
        method=protocol.method(method),
        num_steps=protocol.num_steps,
        guidance_scale=protocol.guidance_scale,
        seed=protocol.seed,
    )
    edited = edit(model, inversion, spec).images[0]
    crop = from_uint8(inversion.photo)[0]
    values = pie_metrics(crop, edited, mask, item.source, item.target, photo.networks)
    notes = {"source": item.source, "target": item.target}
    pictures = {"picture": edited}
    if remark:
        notes["remark"] = remark
    if photo.show_photo:
        pictures["photo"] = crop
        photo.show_photo = False
    return Measurement(values, pictures, inversion, notes)

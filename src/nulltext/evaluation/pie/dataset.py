"""PIE-Bench on disk, as published: a mapping file, pictures, and masks as runs.

    mapping_file.json     {key: {"image_path", "original_prompt", "editing_prompt",
                           "editing_instruction", "editing_type_id", "blended_word", "mask"}}
    annotation_images/    what image_path is relative to

Square brackets in a prompt mark the words that differ and are removed. A mask is a flat list
of (start, length) pairs over the 512 x 512 pixels, row by row; they are 1, where the edit belongs,
and so is the outermost pixel on every side, "to avoid annotation errors" there.
Source: Ju et al. 2024 (Direct Inversion), sec. 5; format and border as in its published evaluation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from nulltext.errors import DataError, OptionError, reason_of, shorten
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text, resolve_inside
from nulltext.words.prompts import clean

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

    Args:
        folder: holds mapping_file.json and annotation_images/.

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


def with_border(mask: Tensor) -> Tensor:
    """Add the outermost pixels of a mask [H, W] to the edit, as published."""
    framed = mask.clone()
    framed[0] = framed[-1] = True
    framed[:, 0] = framed[:, -1] = True
    return framed


def resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask [512, 512] to (height, width), bool.

    A pixel belongs to the edit if any part of it does, so that the outside has no edited part.
    """
    return adaptive_max_pool2d(mask[None, None].float(), size)[0, 0] > 0

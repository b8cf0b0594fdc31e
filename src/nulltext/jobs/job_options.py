"""Options of a job: their keys, what each must be, and how a cell of a table says it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from nulltext.constants import (
    Alignment,
    Budget,
    Detail,
    EditorName,
    Method,
    NullStart,
    SourceBranch,
)
from nulltext.errors import closest_name
from nulltext.jobs.order import WORDS
from nulltext.models.choice import ModelChoice
from nulltext.words.prompts import clean

LONGEST_TEXT = 4096
"""Characters of a text: above every prompt and path, below what a tokenizer would chew on."""

MOST_TEXTS = 64
"""Texts in a list: above every use, below what fills a device with targets."""

LARGEST_COUNT = 10_000
LARGEST_SEED = 2**63

OURS = {
    "output": "a batch names its pictures itself",
    "save_inversion": "a batch keeps every inversion itself",
    "fresh": "it is the whole batch's: nulltext batch --fresh",
    "as_json": "it is the whole batch's: nulltext batch --json",
    "quiet": "it is the whole batch's: nulltext batch --quiet",
    **{
        one.name: f"it is the whole batch's: nulltext batch --{one.name.replace('_', '-')}"
        for one in fields(ModelChoice)
    },
}
"""Options of `edit` that a job has not, and why."""


OTHER_NAMES = {
    **dict.fromkeys(("prompt", "targetprompt", "editingprompt"), ("target", "source")),
    **dict.fromkeys(("caption", "sourceprompt", "originalprompt", "description"), ("source",)),
    **dict.fromkeys(("file", "filename", "imagepath", "img", "path", "photo"), ("image",)),
    **dict.fromkeys(("cfg", "cfgscale", "guidancescale"), ("guidance",)),
    **dict.fromkeys(("numsteps", "numinferencesteps", "inferencesteps"), ("steps",)),
    **dict.fromkeys(("maskimage", "maskpath"), ("mask",)),
    "weights": ("weight",),
}
"""What other tools call options of a job; see `errors.meant`."""


def checked(value: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a job as they are meant.

    Raises:
        ValueError: a key or a value is none of a job's; the rest of a sentence about its line.
    """
    check_keys(value)
    options = {}
    for name, given in value.items():
        if given is None:
            continue
        if isinstance(given, Mistake):
            raise ValueError(given.reason)
        try:
            options[name] = OPTIONS[name](given)
        except ValueError as error:
            raise ValueError(f'has a "{name}" that is {error}.') from error
    if "target" not in options:
        raise ValueError('has no "target"; say what the photo shall show.')
    return {name: _cleaned(given) if name in WORDS else given for name, given in options.items()}


def _cleaned(given: str | list[str]) -> str | list[str]:
    return clean(given) if isinstance(given, str) else [clean(one) for one in given]


@dataclass(frozen=True)
class Mistake:
    """What is wrong with a value of JSON, in its place, until it is known whose value it is."""

    reason: str


def check_keys(keys: Collection[str]) -> None:
    """Refuse keys that a job has not, saying which are meant.

    Raises:
        ValueError: there is one; the rest of a sentence.
    """
    for name in keys:
        if name in OURS:
            raise ValueError(f'has "{name}", which a job has not: {OURS[name]}.')
        if name in OPTIONS:
            continue
        said = f'has "{name[:40]}", which is no option of `nulltext edit`; '
        absent = [one for one in (*OPTIONS, *OURS) if one not in keys]
        likely = closest_name(name, absent, OTHER_NAMES)
        if likely is None:
            raise ValueError(f"{said}see its --help.")
        if likely in OURS:
            raise ValueError(f'{said}"{likely}" is none of a job either: {OURS[likely]}.')
        raise ValueError(f'{said}perhaps "{likely}" is meant.')


def of_cells(cells: Mapping[str, str]) -> dict[str, Any]:
    """A job's options from the texts of a table's row; an empty cell is none."""
    return {name: _of_cell(name, cell.strip()) for name, cell in cells.items() if cell.strip()}


def _of_cell(name: str, cell: str) -> Any:
    """What a cell says: a text where the option takes one, else a number, or true or false.

    A list is written as JSON, or with each entry on a line of the cell.
    """
    if OPTIONS.get(name) is _texts:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(listed := json.loads(cell), list):
                return listed
        return [line.strip() for line in cell.splitlines() if line.strip()]
    for read in (str, int, float, lambda text: float(text.replace(",", ".")), _said_flag):
        with contextlib.suppress(ValueError, KeyError):
            value = read(cell)
            OPTIONS[name](value)
            return value
    return cell


def _said_flag(text: str) -> bool:
    return {"true": True, "false": False}[text.casefold()]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("no text")
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"longer than {LONGEST_TEXT} characters")
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("no text that can be written")
    return value


def _path(value: object) -> str:
    text = _text(value)
    if not text.strip():
        raise ValueError("empty")
    return text


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not 1 <= len(values) <= MOST_TEXTS:
        raise ValueError(f"a list of {len(values)}; give 1 to {MOST_TEXTS}")
    return [_text(one) for one in values]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("no finite number")
    return number


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false; write one of these")
    return value


def _whole(low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 3.0, as spreadsheets and pandas write a 3
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
            raise ValueError(f"no whole number from {low} to {high - 1}")
        return value

    return check


def _choice(*names: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"none of {', '.join(names)}")
        return str(value)

    return check


OPTIONS: dict[str, Callable[[object], Any]] = {
    **dict.fromkeys(("image", "mask", "inversion"), _path),
    **dict.fromkeys(("source", "captioner", "crop", "size"), _text),
    **dict.fromkeys(("target", "then", "weight", "over"), _texts),
    **dict.fromkeys(("masa_word", "blend", "blend_except"), _texts),
    **dict.fromkeys(("then_strength", "strength", "target_guidance", "guidance"), _number),
    **dict.fromkeys(("cross_steps", "self_steps", "masa_start", "masa_layer"), _number),
    "blend_threshold": _number,
    **dict.fromkeys(("full", "keep_gps", "strip", "sweep"), _flag),
    "steps": _whole(1, LARGEST_COUNT),
    "inner_steps": _whole(0, LARGEST_COUNT),
    "seed": _whole(-LARGEST_SEED, LARGEST_SEED),
    "editor": _choice(*EditorName),
    "method": _choice(*Method),
    "budget": _choice(*Budget),
    "null_start": _choice(*get_args(NullStart)),
    "align": _choice(*get_args(Alignment)),
    "detail": _choice(*get_args(Detail)),
    "source_branch": _choice(*get_args(SourceBranch)),
}
"""What each option of a job must be; `strip` and `sweep` are wishes here, not names of files."""

PATHS = {"image", "mask", "inversion"}

"""Job files: one edit per line, as JSON, read strictly.

    {"image": "a.jpg", "source": "a photo of a rose", "target": "a photo of a tulip", "steps": 20}

A line holds any option of `nulltext edit` by its long name, with underscores; what is the whole
batch's (model, device, …) is an option of `nulltext batch`, and outputs get names of ours. Nothing
is opened here but the job file, and whatever stands in a line leads to a job or to one sentence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, get_args

from nulltext.errors import DataError, reason_of
from nulltext.execution.order import Order
from nulltext.models.choice import ModelChoice
from nulltext.names import (
    Align,
    Budget,
    Detail,
    EditorName,
    Method,
    NullStart,
    Solver,
    SourceBranch,
)
from nulltext.untrusted import repeated_key

LONGEST_LINE = 1 << 16
"""Bytes of a line."""

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


@dataclass(frozen=True)
class Job:
    """A line that can be understood."""

    line: int
    """Its number, from 1."""
    options: Mapping[str, Any]
    """As `Order.of` takes them, but with paths as they are written."""
    base: Path
    """The folder that relative paths are relative to."""

    def order(self) -> Order:
        """The edit, with paths that can be opened."""
        options = dict(self.options)
        for name in PATHS & options.keys():
            options[name] = self.base / options[name]
        captioner = options.get("captioner")
        if captioner is not None and (self.base / captioner).is_dir():
            options["captioner"] = str(self.base / captioner)
        return Order.of(options)


@dataclass(frozen=True)
class Refused:
    """A line that cannot."""

    line: int
    text: bytes
    """Its beginning."""
    reason: str
    """One sentence, with its number."""


def read_jobs(path: Path) -> Iterator[Job | Refused]:
    """All lines that are not blank, one after the other; nothing is kept.

    Raises:
        DataError: the file cannot be read, or is no regular file.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"'{path}' is no regular file; give a file with one job per line.")
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(_lines(stream.readline), start=1):
                if line.strip():
                    yield parse_job(line, number, path.parent)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({reason_of(error)}).") from error


def _lines(readline: Callable[[int], bytes]) -> Iterator[bytes]:
    """Lines, the too long ones cut to one byte over the limit; never more than that in memory."""
    while line := readline(LONGEST_LINE + 1):
        rest = line
        while rest and not rest.endswith(b"\n") and len(rest) > LONGEST_LINE:
            rest = readline(LONGEST_LINE + 1)
        yield line


def parse_job(line: bytes, number: int, base: Path) -> Job | Refused:
    """One line as a job, or why not."""
    try:
        return Job(number, _checked(_object(line)), base)
    except ValueError as error:
        return Refused(number, line[:LONGEST_LINE], f"Line {number} {error}")


def _object(line: bytes) -> dict[str, Any]:
    if len(line.rstrip(b"\r\n")) > LONGEST_LINE:
        raise ValueError(f"has more than {LONGEST_LINE} bytes; write one job per line.")
    try:
        value = json.loads(line, object_pairs_hook=_once, parse_constant=_no_number)
    except _SaidError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({reason_of(error)}).") from error
    if not isinstance(value, dict):
        raise ValueError('is no JSON object; write {"image": …, "source": …, "target": …}.')
    return value


class _SaidError(ValueError):
    """A sentence of ours from within the parser."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = repeated_key(pairs)
    if twice is not None:
        raise _SaidError(f'has "{twice}" twice; leave one of them out.')
    return dict(pairs)


def _no_number(text: str) -> NoReturn:
    raise _SaidError(f"holds {text}, which is no number in JSON.")


def _checked(value: Mapping[str, Any]) -> dict[str, Any]:
    for name in value:
        if name in OURS:
            raise ValueError(f'has "{name}", which a job has not: {OURS[name]}.')
        if name not in OPTIONS:
            raise ValueError(
                f'has "{name[:40]}", which is no option of `nulltext edit`; see its --help.'
            )
    options = {}
    for name, given in value.items():
        if given is None:
            continue
        try:
            options[name] = OPTIONS[name](given)
        except ValueError as error:
            raise ValueError(f'has a "{name}" that is {error}.') from error
    if "target" not in options:
        raise ValueError('has no "target"; say what the photo shall show.')
    return options


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
        raise ValueError("neither true nor false")
    return value


def _whole(low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
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
    "solver": _choice(*Solver),
    "null_start": _choice(*get_args(NullStart)),
    "align": _choice(*get_args(Align)),
    "detail": _choice(*get_args(Detail)),
    "source_branch": _choice(*get_args(SourceBranch)),
}
"""What each option of a job must be; `strip` and `sweep` are wishes here, not names of files."""

PATHS = {"image", "mask", "inversion"}

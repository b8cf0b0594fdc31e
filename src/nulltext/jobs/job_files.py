"""Job files: JSON with one edit per line, a JSON array of them, or a table; read strictly.

    {"image": "a.jpg", "source": "a photo of a rose", "target": "a photo of a tulip", "steps": 20}

    image,source,target,steps
    a.jpg,a photo of a rose,a photo of a tulip,20

A job holds any option of `nulltext edit` by its long name, with underscores (`options.OPTIONS`);
those that hold for the whole batch (model, device, …) are options of `nulltext batch`, and the
batch names the outputs. Nothing is opened here but the job file, and every line leads to a job or
to one sentence. Which of the three a file is follows from its first lines; one that is none of them
is one error.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from nulltext.errors import DataError, closest_name, reason_of
from nulltext.jobs.options import OPTIONS, REMOVED, EditOptions, Kind, Option, flag_of
from nulltext.models.choice import ModelChoice
from nulltext.storage.untrusted import (
    MEGABYTE,
    decode_text,
    open_text,
    read_lines,
    read_text,
    repeated_key,
)

KEYS = {option.name: option for option in OPTIONS.values() if option.about.no_job is None}

_WHOLE_BATCH = ("as_json", "quiet", *(one.name for one in fields(ModelChoice)))
NO_KEYS = {
    **{name: option.about.no_job for name, option in OPTIONS.items() if name not in KEYS},
    **{
        name: f"it is the whole batch's: nulltext batch {flag_of(name.removeprefix('as_'))}"
        for name in _WHOLE_BATCH
    },
    **REMOVED,
}
"""Options of `edit` that a job cannot have, and why."""

PATHS = {option.name for option in KEYS.values() if option.kind is Kind.FILE}

LONGEST_TEXT = 4096
"""Characters of a text: above every prompt and path, below what a tokenizer would chew on."""

MOST_TEXTS = 64
"""Texts in a list: above every use, below what fills a device with targets."""

LARGEST_INTEGER = 2**63 - 1

OTHER_NAMES = {
    **dict.fromkeys(("prompt", "targetprompt", "editingprompt"), ("target", "source")),
    **dict.fromkeys(("caption", "sourceprompt", "originalprompt", "description"), ("source",)),
    **dict.fromkeys(("file", "filename", "imagepath", "img", "path", "photo"), ("image",)),
    **dict.fromkeys(("cfg", "cfgscale", "guidancescale"), ("guidance",)),
    **dict.fromkeys(("numsteps", "numinferencesteps", "inferencesteps"), ("steps",)),
    **dict.fromkeys(("maskimage", "maskpath"), ("mask",)),
    **dict.fromkeys(("negativeprompt", "negprompt"), ("negative",)),
    "weights": ("weight",),
}
"""What other tools call options of a job; see `errors.closest_name`."""


LONGEST_LINE = 1 << 16
"""Bytes of a line."""

LARGEST = 64 * MEGABYTE
"""Bytes of a JSON text of several lines, which is read whole."""

HEAD = 100
"""Lines by which a file is told."""

DELIMITERS = ",;\t"
"""Of a table's cells; Excel writes what the country's numbers leave free."""

SEPARATOR = re.compile("sep=.", re.IGNORECASE)
"""The line before a table's header by which Excel is told the delimiter, and which it hides."""

MOST_COLUMNS = 100

BLANKS = re.compile(r"\s*")

EXAMPLE = (
    'write lines such as {"image": "a.jpg", "source": "a photo of …", "target": "a photo of …"}, a '
    "JSON array of these, or CSV below a line such as image,source,target"
)


@dataclass(frozen=True)
class Job:
    """A line or row that can be understood."""

    line: int
    place: str
    """What it is called: "Line 3" of JSON Lines, "Row 3" of an array or a table."""
    options: Mapping[str, Any]
    """Values of JSON by key, with paths as they are written."""
    base: Path
    """The folder that relative paths are relative to."""

    def edit_options(self) -> EditOptions:
        """Options of the edit, with paths that can be opened."""
        options = dict(self.options)
        for name in PATHS & options.keys():
            options[name] = self.base / options[name]
        captioner = options.get("captioner")
        if captioner is not None and (self.base / captioner).is_dir():
            options["captioner"] = str(self.base / captioner)
        return EditOptions.of(options)


@dataclass(frozen=True)
class Refused:
    """A line or row that cannot."""

    line: int
    place: str
    text: bytes
    reason: str
    """One sentence, with its number."""


def read_jobs(path: Path) -> Iterator[Job | Refused]:
    """All jobs of a file, one after the other; of lines and tables, nothing is kept.

    Raises:
        DataError: the file cannot be read, is no regular file, or holds something else.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"'{path}' is no regular file; give a file with one job per line.")
    try:
        yield from _layout_of(path)(path)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({reason_of(error)}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is no job file ({reason_of(error)}); {EXAMPLE}.") from error


def _layout_of(path: Path) -> Callable[[Path], Iterator[Job | Refused]]:
    lines = (line.strip() for _, line in islice(read_lines(path, LONGEST_LINE), HEAD))
    head = [line for line in lines if line]
    objects = [line for line in head if line.startswith(b"{") and line.endswith(b"}")]
    if not head or head[0] in objects:
        return _of_lines
    if head[0][:1] not in (b"{", b"["):
        return _of_lines if objects else _of_table
    try:
        values = _values(read_text(path, LARGEST))
    except (ValueError, RecursionError):
        if objects and (head[0].startswith(b"{") or head[0].endswith(b"]")):
            return _of_lines  # of which the first is malformed
        raise
    return lambda path: _of_values(values, path)


def _of_lines(path: Path) -> Iterator[Job | Refused]:
    for number, line in read_lines(path, LONGEST_LINE):
        if line.strip():
            yield parse_job(line, number, path.parent)


def parse_job(line: bytes, number: int, base: Path) -> Job | Refused:
    return _job(lambda: _value(line), number, f"Line {number}", line, base)


def _value(line: bytes) -> Any:
    if len(line.rstrip(b"\r\n")) > LONGEST_LINE:
        raise ValueError(f"has more than {LONGEST_LINE} bytes; write one job per line.")
    try:
        return DECODER.decode(decode_text(line))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({reason_of(error)}).") from error


def _values(text: str) -> list[Any]:
    """The entries of arrays, and the objects between them."""
    values, at = [], 0
    while (at := BLANKS.match(text, at).end()) < len(text):  # type: ignore[union-attr]
        value, at = DECODER.raw_decode(text, at)
        values += value if isinstance(value, list) else [value]
    return values


def _of_values(values: Sequence[Any], path: Path) -> Iterator[Job | Refused]:
    for number, value in enumerate(values, start=1):
        text = repr(value).encode("utf-8", "replace")
        read = partial(values.__getitem__, number - 1)
        yield _job(read, number, f"Row {number}", text, path.parent)


def _of_table(path: Path) -> Iterator[Job | Refused]:
    """The rows below a header, which is row 1 as spreadsheets count."""
    with open_text(path, newline="") as text:
        lines = _table_lines(text)
        heads = (line for line in lines if line.strip() and not SEPARATOR.fullmatch(line.strip()))
        names, delimiter = _header(next(heads, ""))
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        number = 1
        try:
            for number, cells in enumerate(rows, start=2):
                if any(cell.strip() for cell in cells):
                    whole = delimiter.join(cells).encode()[:LONGEST_LINE]
                    read = partial(_job_from_cells, names, cells)
                    yield _job(read, number, f"Row {number}", whole, path.parent)
        except csv.Error as error:
            if str(error) == "unexpected end of data":
                error = csv.Error(f"the quote that opens in row {number + 1} is not closed")
            raise ValueError(f"line {rows.line_num + 1}: {error}") from error


def _table_lines(text: IO[str]) -> Iterator[str]:
    while line := text.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"a line has more than {LONGEST_LINE} characters")
        decode_text(line.encode("utf-8", "surrogateescape"))
        yield line


def _header(line: str) -> tuple[list[str], str]:
    """The keys of a table's columns, and what stands between its cells."""
    split = {sign: next(csv.reader([line], delimiter=sign)) for sign in DELIMITERS}
    names, sign = max(
        ((split[sign], sign) for sign in DELIMITERS), key=lambda it: len(_known(it[0]))
    )
    names = [name.strip() for name in names]
    if not 1 < len(names) <= MOST_COLUMNS or not _known(names):
        raise ValueError(f"it begins with {line.strip()[:40]!r}")
    twice = repeated_key([(name, None) for name in names if name])
    if twice is not None:
        raise ValueError(f'its header has "{twice}" twice')
    try:
        _check_keys([name for name in names if name])
    except ValueError as error:
        raise ValueError(f"its header {error}") from None
    return names, sign


def _known(names: Sequence[str]) -> list[str]:
    return [
        name for name in names[:MOST_COLUMNS] if closest_name(name, (*KEYS, *NO_KEYS), OTHER_NAMES)
    ]


def _job_from_cells(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    places = [*names, *[""] * (len(cells) - len(names))]
    if any(cell.strip() for name, cell in zip(places, cells, strict=False) if not name):
        raise ValueError(
            "has a cell below no key of the header; put texts with commas into quotes."
        )
    named = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if name}
    return {name: _of_cell(name, cell) for name, cell in named.items() if cell}


def _job(
    read: Callable[[], Any], number: int, place: str, text: bytes, base: Path
) -> Job | Refused:
    try:
        value = read()
        if isinstance(value, Mistake):
            raise ValueError(value.reason)
        if not isinstance(value, dict):
            raise ValueError('is no JSON object; write {"image": …, "source": …, "target": …}.')
        return Job(number, place, _checked(value), base)
    except ValueError as error:
        return Refused(number, place, text[:LONGEST_LINE], f"{place} {error}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Mistake:
    twice = repeated_key(pairs)
    return dict(pairs) if twice is None else Mistake(f'has "{twice}" twice; leave one of them out.')


DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_constant=lambda text: Mistake(f"holds {text}, which is no number in JSON."),
)


def _checked(value: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a job as they are meant."""
    _check_keys(value)
    options = {}
    for name, given in value.items():
        if given is None:
            continue
        if isinstance(given, Mistake):
            raise ValueError(given.reason)
        try:
            options[name] = read_value(KEYS[name], given)
        except ValueError as error:
            raise ValueError(f'has a "{name}" that is {error}.') from error
    if "target" not in options:
        raise ValueError('has no "target"; say what the photo shall show.')
    return {name: KEYS[name].cleaned(given) for name, given in options.items()}


@dataclass(frozen=True)
class Mistake:
    """What is wrong with a value of JSON, in its place, until it is known whose value it is."""

    reason: str


def _check_keys(keys: Collection[str]) -> None:
    """Refuse keys that a job has not, saying which are meant."""
    for name in keys:
        if name in NO_KEYS:
            raise ValueError(f'has "{name}", which a job has not: {NO_KEYS[name]}.')
        if name in KEYS:
            continue
        said = f'has "{name[:40]}", which is no option of `nulltext edit`; '
        absent = [one for one in (*KEYS, *NO_KEYS) if one not in keys]
        likely = closest_name(name, absent, OTHER_NAMES)
        if likely is None:
            raise ValueError(f"{said}see its --help.")
        if likely in NO_KEYS:
            raise ValueError(f'{said}"{likely}" is none of a job either: {NO_KEYS[likely]}.')
        raise ValueError(f'{said}perhaps "{likely}" is meant.')


def _of_cell(name: str, cell: str) -> Any:
    """What a cell says: a text where the option takes one, else a number, or true or false.

    A list is written as JSON, or with each entry on a line of the cell.
    """
    option = KEYS.get(name)
    if option is None:
        return cell  # refused by its key
    if option.kind is Kind.TEXTS:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(listed := json.loads(cell), list):
                return listed
        return [line.strip() for line in cell.splitlines() if line.strip()]
    truth = {"true": True, "false": False}.__getitem__
    for read in (
        str,
        int,
        float,
        lambda text: float(text.replace(",", ".")),
        lambda text: truth(text.casefold()),
    ):
        with contextlib.suppress(ValueError, KeyError):
            value = read(cell)
            read_value(option, value)
            return value
    return cell


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("no text")
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"longer than {LONGEST_TEXT} characters")
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("no text that can be written")
    return value


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


def _integer(value: object, option: Option) -> int:
    low = -LARGEST_INTEGER - 1 if option.about.low is None else int(option.about.low)
    high = LARGEST_INTEGER if option.about.high is None else int(option.about.high)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 3.0, as spreadsheets and pandas write a 3
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"no whole number from {low} to {high}")
    return value


def read_value(option: Option, value: Any) -> Any:
    """Return a value of JSON as an option means it; ranges of numbers are not checked.

    Raises:
        ValueError: it is another kind of value; the rest of a sentence.
    """
    match option.kind:
        case Kind.TEXT:
            return _text(value)
        case Kind.TEXTS:
            return _texts(value)
        case Kind.FILE:
            if not _text(value).strip():
                raise ValueError("empty")
        case Kind.CHOICE:
            if not isinstance(value, str) or value not in option.choices:
                raise ValueError(f"none of {', '.join(option.choices)}")
        case Kind.NUMBER:
            return _number(value)
        case Kind.INTEGER:
            return _integer(value, option)
        case _:
            if not isinstance(value, bool):
                raise ValueError("neither true nor false; write one of these")
    return value

"""Job files: JSON with one edit per line, a JSON array of them, or a table; read strictly.

    {"image": "a.jpg", "source": "a photo of a rose", "target": "a photo of a tulip", "steps": 20}

    image,source,target,steps
    a.jpg,a photo of a rose,a photo of a tulip,20

A job holds any option of `nulltext edit` by its long name, with underscores; what is the whole
batch's (model, device, …) is an option of `nulltext batch`, and outputs get names of ours. Nothing
is opened here but the job file, and whatever stands in a line leads to a job or to one sentence.
Which of the three a file is, its first lines say; one that is none of them is one error.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from nulltext.errors import DataError, closest_name, reason_of
from nulltext.jobs.job_options import (
    OPTIONS,
    OTHER_NAMES,
    OURS,
    PATHS,
    Mistake,
    check_keys,
    checked,
    of_cells,
)
from nulltext.jobs.order import Order
from nulltext.storage.untrusted import (
    MEGABYTE,
    decode_text,
    open_text,
    read_lines,
    read_text,
    repeated_key,
)

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
    """Its number, from 1."""
    place: str
    """What it is called: "Line 3" of JSON Lines, "Row 3" of an array or a table."""
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
    """A line or row that cannot."""

    line: int
    place: str
    text: bytes
    """Its beginning."""
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
    """How to read a file, by its first lines."""
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
    """One line of JSON as a job, or why not."""
    return _job(lambda: _value(line), number, f"Line {number}", line, base)


def _value(line: bytes) -> Any:
    if len(line.rstrip(b"\r\n")) > LONGEST_LINE:
        raise ValueError(f"has more than {LONGEST_LINE} bytes; write one job per line.")
    try:
        return DECODER.decode(decode_text(line))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({reason_of(error)}).") from error


def _values(text: str) -> list[Any]:
    """The entries of arrays, and the objects between them.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
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
                    read = partial(_of_row, names, cells)
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
    """The keys of a table's columns, and what stands between its cells.

    Raises:
        ValueError: it is no header of jobs, or has a key that a job has not.
    """
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
        check_keys([name for name in names if name])
    except ValueError as error:
        raise ValueError(f"its header {error}") from None
    return names, sign


def _known(names: Sequence[str]) -> list[str]:
    return [
        name for name in names[:MOST_COLUMNS] if closest_name(name, (*OPTIONS, *OURS), OTHER_NAMES)
    ]


def _of_row(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    places = [*names, *[""] * (len(cells) - len(names))]
    if any(cell.strip() for name, cell in zip(places, cells, strict=False) if not name):
        raise ValueError(
            "has a cell below no key of the header; put texts with commas into quotes."
        )
    return of_cells({name: cell for name, cell in zip(names, cells, strict=False) if name})


def _job(
    read: Callable[[], Any], number: int, place: str, text: bytes, base: Path
) -> Job | Refused:
    """What was read as a job, or why not."""
    try:
        value = read()
        if isinstance(value, Mistake):
            raise ValueError(value.reason)
        if not isinstance(value, dict):
            raise ValueError('is no JSON object; write {"image": …, "source": …, "target": …}.')
        return Job(number, place, checked(value), base)
    except ValueError as error:
        return Refused(number, place, text[:LONGEST_LINE], f"{place} {error}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Mistake:
    twice = repeated_key(pairs)
    return dict(pairs) if twice is None else Mistake(f'has "{twice}" twice; leave one of them out.')


DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_constant=lambda text: Mistake(f"holds {text}, which is no number in JSON."),
)

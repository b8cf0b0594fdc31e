"""A folder of results: rows that survive a kill, and settings that must not change midway.

    settings.json     what every row was made with
    results.jsonl     one row per line: experiment, image, variant, setting, figures, cost
    pictures/         what the rows show
    summary.csv, *.png, *.svg, report.html     made from the rows, again and again

A row is appended by a single write of a whole line and flushed to disk, its pictures first; a line
that a kill tore off has no end of line, and is cut away when the folder is opened again. A lock
that ends with its process keeps a second run out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

from nulltext.errors import OptionError, OutputError, reason_of
from nulltext.evaluation.tasks import Key, row_key
from nulltext.files import hold, replace_file, unwritable

Row: TypeAlias = dict[str, Any]

SETTINGS, ROWS, PICTURES = "settings.json", "results.jsonl", "pictures"


class Book:
    """The open folder of a study or a benchmark."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], rows: IO[bytes]) -> None:
        self.folder, self.settings, self._file = folder, dict(settings), rows
        self.rows: list[Row] = []

    @property
    def keys(self) -> set[Key]:
        """Rows that there are."""
        return {key_of(row) for row in self.rows}

    def add(self, row: Row) -> None:
        """Append a row; on return it is on disk, whole.

        Raises:
            OutputError: there is no room for it.
        """
        line = json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.folder / ROWS, error) from error
        self.rows.append(row)

    def forget_failed(self) -> int:
        """Count the rows that failed as open again; says how many. The file keeps its lines: of
        two lines of one row, the later one holds."""
        failed = sum(row["status"] == "failed" for row in self.rows)
        self.rows = [row for row in self.rows if row["status"] != "failed"]
        return failed


@contextlib.contextmanager
def open_book(folder: Path, settings: Mapping[str, Any], *, fresh: bool) -> Iterator[Book]:
    """Open or make a folder of results.

    Args:
        fresh: throw away what an earlier run left in it.

    Raises:
        OptionError: it holds results with other settings.
        OutputError: it cannot be written, another run is writing to it, or it holds files that
            nobody here wrote.
    """
    _check_own(folder, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ROWS).open("a+b", buffering=0)
    except OSError as error:
        raise unwritable(folder, error) from error
    with stream:
        hold(stream.fileno(), folder)
        if fresh:
            stream.truncate(0)
            (folder / SETTINGS).unlink(missing_ok=True)
            shutil.rmtree(folder / PICTURES, ignore_errors=True)
        _agree_on_settings(folder, settings)
        (folder / PICTURES).mkdir(exist_ok=True)
        book = Book(folder, settings, stream)
        book.rows = _read_rows(stream, folder / ROWS)
        yield book


def _check_own(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder with something in it that is no results.

    Raises:
        OutputError: so it is.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names <= {ROWS} and (not names or (folder / ROWS).stat().st_size == 0):
        return  # empty, or a run that was killed as it began
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not found.keys() & settings.keys():
        raise OutputError(
            f"'{folder}' holds files that are not nulltext's results; choose an empty or a new "
            "folder."
        )


def key_of(row: Row) -> Key:
    """Which task a row is of."""
    return row_key(row["experiment"], row["image"], row["variant"], row["setting"])


def read_book(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Settings and rows of a finished or broken-off study; changes nothing.

    Raises:
        OutputError: there is none.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        data = (folder / ROWS).read_bytes()
    except (OSError, ValueError) as error:
        raise OutputError(f"'{folder}' holds no study ({reason_of(error)}).") from error
    return settings, _parse(data[: data.rfind(b"\n") + 1], folder / ROWS)


def _agree_on_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / SETTINGS
    if not path.is_file():
        if (folder / ROWS).stat().st_size:
            raise OutputError(
                f"'{folder}' has a {ROWS} without {SETTINGS}; choose another folder, or pass "
                "--fresh to start over."
            )
        replace_file(path, json.dumps(settings, indent=1, ensure_ascii=False).encode())
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(found, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise OutputError(
            f"'{path}' is damaged ({reason_of(error)}); pass --fresh to start over."
        ) from error
    differing = [k for k in {**found, **settings} if found.get(k) != settings.get(k)]
    if differing:
        said = ", ".join(f"{k} {found.get(k)} (now {settings.get(k)})" for k in sorted(differing))
        raise OptionError(
            f"'{folder}' holds results with other settings: {said}; choose another folder, or "
            "pass --fresh to start over."
        )


def _read_rows(stream: IO[bytes], path: Path) -> list[Row]:
    """All whole rows; a torn last line is cut off the file."""
    stream.seek(0)
    data = stream.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        stream.truncate(whole)
    return _parse(data[:whole], path)


def _parse(data: bytes, path: Path) -> list[Row]:
    rows: dict[Key, Row] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            row = json.loads(line)
            rows[key_of(row)] = row
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"'{path}', line {number}, is damaged; delete that line to have it made again, "
                "or pass --fresh to start over."
            ) from error
    return list(rows.values())


def finite(value: float) -> float:
    """A figure that JSON can hold."""
    assert math.isfinite(value), value
    return value

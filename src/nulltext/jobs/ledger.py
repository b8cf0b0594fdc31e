"""A folder of results that survives a kill, and settings that stay the same for all its rows.

    settings.json     what every row was made with
    results.jsonl     one row per line

A row is appended by a single write of a whole line and flushed to disk, its files first; a line
that a kill cut short has no end of line, and is removed when the folder is opened again. A lock,
released when its process ends, excludes a second writer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from nulltext.errors import NulltextError, OptionError, OutputError, UserError, reason_of
from nulltext.storage.files import lock_file, output_error, replace_file

Row: TypeAlias = dict[str, Any]

SETTINGS, ROWS = "settings.json", "results.jsonl"


@dataclass(frozen=True)
class Kind:
    """A kind of folder."""

    name: str
    """In words: "study", "batch"."""
    key_of: Callable[[Row], Hashable]
    """Identity of a row; raises KeyError or TypeError for what is no row."""
    folders: tuple[str, ...]
    """Folders of the files that rows name, made and deleted with it."""


def failure(error: Exception) -> Row:
    """Make the part of a row that says why the work failed; `input`: by a user's mistake."""
    said = str(error)
    if not isinstance(error, NulltextError):
        said = " ".join(f"{type(error).__name__}: {error}".split())
    return {"status": "failed", "reason": said, "input": isinstance(error, UserError)}


def finite(values: Mapping[str, Any]) -> Row:
    """Replace what JSON does not have, infinity (the PSNR of equal pictures), by null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


class Book:
    """An open folder and its rows."""

    def __init__(
        self, kind: Kind, folder: Path, settings: Mapping[str, Any], rows: IO[bytes]
    ) -> None:
        self.kind, self.folder, self.settings, self._file = kind, folder, dict(settings), rows
        self.rows: list[Row] = []

    @property
    def keys(self) -> set[Hashable]:
        return {self.kind.key_of(row) for row in self.rows}

    def add(self, row: Row) -> None:
        """Append a row, and flush it to disk.

        Raises:
            OutputError: it cannot be written.
        """
        line = json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            raise output_error(self.folder / ROWS, error) from error
        self.rows.append(row)

    def forget(self, unwanted: Callable[[Row], bool]) -> None:
        """Drop rows, so that they are made again.

        The file keeps their lines: of two lines with one key, the later one holds.
        """
        self.rows = [row for row in self.rows if not unwanted(row)]

    def forget_failed(self) -> None:
        self.forget(lambda row: bool(row["status"] == "failed"))


@contextlib.contextmanager
def open_book(
    kind: Kind,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    fresh: bool,
    older: Sequence[Mapping[str, Any]] = (),
) -> Iterator[Book]:
    """Open or make a folder.

    Args:
        older: settings as earlier releases wrote them, which count as the same.
        fresh: delete the rows and files of earlier runs.

    Raises:
        OptionError: it has other settings.
        OutputError: it cannot be written, another process is writing it, it holds files of
            another kind, or a part of it is a symbolic link.
    """
    _check_own(kind, folder, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ROWS).open("a+b", buffering=0)
    except OSError as error:
        raise output_error(folder, error) from error
    with stream:
        lock_file(stream.fileno(), folder)
        try:
            if fresh:
                stream.truncate(0)
                (folder / SETTINGS).unlink(missing_ok=True)
                for name in kind.folders:
                    shutil.rmtree(folder / name, ignore_errors=True)
            _agree_on_settings(kind, folder, settings, older)
            for name in kind.folders:
                (folder / name).mkdir(exist_ok=True)
            book = Book(kind, folder, settings, stream)
            book.rows = _read_rows(kind, stream, folder / ROWS)
        except OSError as error:
            raise output_error(folder, error) from error
        yield book


def _check_own(kind: Kind, folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder with something in it that is not of the kind."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    for name in (ROWS, SETTINGS, *kind.folders):
        if (folder / name).is_symlink():
            raise OutputError(
                f"'{folder / name}' is a symbolic link, through which results would leave their "
                "folder; remove it, or choose another folder."
            )
    if names <= {ROWS} and (not names or (folder / ROWS).stat().st_size == 0):
        return  # empty, or killed as it began
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not found.keys() & settings.keys():
        raise OutputError(
            f"'{folder}' holds files that are not a {kind.name}'s; choose an empty or a new folder."
        )


def read_book(kind: Kind, folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read settings and rows; changes nothing.

    Raises:
        OutputError: the folder holds none.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        data = (folder / ROWS).read_bytes()
    except (OSError, ValueError) as error:
        raise OutputError(f"'{folder}' holds no {kind.name} ({reason_of(error)}).") from error
    return settings, _parse(kind, data[: data.rfind(b"\n") + 1], folder / ROWS)


def rows_alike(
    kind: Kind, folder: Path, settings: Mapping[str, Any], older: Sequence[Mapping[str, Any]]
) -> list[Row]:
    """Return the rows that `open_book` would find; none if it would refuse or make the folder.

    Changes nothing, and takes no lock.
    """
    try:
        found, rows = read_book(kind, folder)
    except OutputError:
        return []
    alike = isinstance(found, dict) and (found in older or not _differing(found, settings))
    return rows if alike else []


def _differing(found: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    return [k for k in {**found, **settings} if found.get(k) != settings.get(k)]


def _agree_on_settings(
    kind: Kind, folder: Path, settings: Mapping[str, Any], older: Sequence[Mapping[str, Any]]
) -> None:
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
    if found in older:
        return
    differing = _differing(found, settings)
    if differing:
        said = ", ".join(f"{k} {found.get(k)} (now {settings.get(k)})" for k in sorted(differing))
        raise OptionError(
            f"'{folder}' holds a {kind.name} with other settings: {said}; choose another folder, "
            "or pass --fresh to start over."
        )


def _read_rows(kind: Kind, stream: IO[bytes], path: Path) -> list[Row]:
    """Read all whole rows, and cut an unfinished last line off the file."""
    stream.seek(0)
    data = stream.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        stream.truncate(whole)
    return _parse(kind, data[:whole], path)


def _parse(kind: Kind, data: bytes, path: Path) -> list[Row]:
    rows: dict[Hashable, Row] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            row = json.loads(line)
            rows[kind.key_of(row)] = row
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"'{path}', line {number}, is damaged; delete that line to have it made again, "
                "or pass --fresh to start over."
            ) from error
    return list(rows.values())

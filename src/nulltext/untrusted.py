"""Text, JSON and file names that somebody else wrote: bounded before they are read.

A file's size is looked at before a byte of it is read. JSON is refused where a key stands twice
(readers disagree on which one holds), where it is nested deeper than any file of ours, and where a
string holds half a character, which no terminal and no file takes. A name leads nowhere outside
its folder, by dots or by a symbolic link.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

MEGABYTE = 1 << 20
DEPTH = 64
"""Most levels of lists and objects; files that nulltext reads have at most a handful."""

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_text(path: Path, most: int) -> str:
    """A text file in UTF-8 of at most `most` bytes.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is no regular file, larger, or no UTF-8.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than the {most / MEGABYTE:g} MiB that are read")
    return data.decode("utf-8")


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is no JSON, has a key twice, is nested too deeply, or holds half a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEPTH} levels") from None
    _check_depth(value)
    if LONE_SURROGATE.search(text) or ("\\u" in text and _has_lone_surrogate(value)):
        raise ValueError("it holds half a character (a lone surrogate)")
    return value


def inside(folder: Path, name: str) -> Path:
    """The file of this name in a folder, or below it.

    Raises:
        ValueError: the name is no relative path, or leads out of the folder.
        OSError: it is too long, or its links run in a circle.
    """
    if "\0" in name or LONE_SURROGATE.search(name):
        raise ValueError("it is no file name")
    path = folder / name
    if PurePath(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("it is outside the folder")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.stat()
    return path


def repeated_key(pairs: Sequence[tuple[str, Any]]) -> str | None:
    """The first key that stands twice in a JSON object, as far as a message can hold it."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) == len(keys):
        return None
    return next(key[:40] for key in keys if keys.count(key) > 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = repeated_key(pairs)
    if twice is not None:
        raise ValueError(f"the key {twice!r} stands twice")
    return dict(pairs)


def _levels(value: Any) -> Iterator[list[Any]]:
    """The values at each depth, outermost first."""
    level = [value]
    while level:
        yield level
        level = [entry for each in level for entry in _entries(each)]


def _entries(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else []


def _check_depth(value: Any) -> None:
    for depth, _ in enumerate(_levels(value)):
        if depth > DEPTH:
            raise ValueError(f"it is nested deeper than {DEPTH} levels")


def _has_lone_surrogate(value: Any) -> bool:
    return any(
        isinstance(each, str) and LONE_SURROGATE.search(each)
        for level in _levels(value)
        for each in level
    )

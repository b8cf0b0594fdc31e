"""Captions on disk: lines of JSON, and text files beside pictures.

What `evaluation.datasets` and `training.collection` have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nulltext.errors import DataError, reason_of, shortened
from nulltext.untrusted import MEGABYTE, inside, parse_json, read_text

LONGEST_LINE = MEGABYTE
"""Bytes of a line of JSON."""
LONGEST_TEXT = MEGABYTE
"""Bytes of a .txt with captions."""
LABELS = ("kind", "colour", "background")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif")


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    for number, line in _lines(path):
        try:
            text = line.decode("utf-8")
            if not text.strip():
                continue
            value = parse_json(text)
        except ValueError as error:
            raise DataError(f"'{path}', line {number}, is no JSON: {reason_of(error)}.") from error
        if not isinstance(value, dict):
            raise DataError(f"'{path}', line {number}, is no JSON object.")
        yield number, value


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line, one at a time: the file may be larger than memory."""
    try:
        if not path.is_file():
            what = "is no regular file" if path.exists() else "does not exist"
            raise DataError(f"'{path}' {what}.")
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise DataError(
                        f"'{path}', line {number}, is longer than the "
                        f"{LONGEST_LINE // MEGABYTE} MiB that are read."
                    )
                yield number, line
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({reason_of(error)}).") from error


def text_field(line: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    """A field that must be text.

    Raises:
        DataError: it is missing, blank, or something else.
    """
    value = line.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"'{path}', line {number}, has no \"{key}\".")
    return value


def captions_field(line: Mapping[str, Any], path: Path, number: int) -> tuple[str, ...]:
    """The captions of a line of captions.jsonl, under "captions" or "caption".

    Raises:
        DataError: there is none.
    """
    captions = line.get("captions", [line.get("caption")])
    captions = [captions] if isinstance(captions, str) else captions
    if (
        not isinstance(captions, list)
        or not captions
        or not all(isinstance(c, str) and c.strip() for c in captions)
    ):
        raise DataError(f'\'{path}\', line {number}, has no "caption" (or "captions").')
    return tuple(captions)


def label_fields(line: Mapping[str, Any], path: Path, number: int) -> dict[str, str | None]:
    """The words of a line of labels.jsonl; None where one is not known.

    Raises:
        DataError: one of them is no word.
    """
    words: dict[str, str | None] = {key: line.get(key) for key in LABELS}
    if not all(value is None or isinstance(value, str) for value in words.values()):
        raise DataError(f"'{path}', line {number}: kind, colour and background are words or null.")
    return words


def file_field(line: Mapping[str, Any], key: str, path: Path, number: int) -> Path:
    """The file that a line names, in the folder of the file that the line is in.

    Raises:
        DataError: there is none, or the name leads out of the folder.
    """
    name = text_field(line, key, path, number)
    try:
        return inside(path.parent, name)
    except (OSError, ValueError) as error:
        raise DataError(
            f"'{path}', line {number}, names {shortened(name)!r}, which cannot be used: "
            f"{reason_of(error)}."
        ) from error


def captions_beside(folder: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Pictures anywhere in a folder with the lines of the .txt beside each, by name.

    Raises:
        DataError: a .txt cannot be read.
    """
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES):
        text = path.with_suffix(".txt")
        if not text.is_file():
            continue
        try:
            lines = read_text(text, LONGEST_TEXT).splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f"'{text}' cannot be read ({reason_of(error)}).") from error
        captions = tuple(line.strip() for line in lines if line.strip())
        if captions:
            yield path, captions

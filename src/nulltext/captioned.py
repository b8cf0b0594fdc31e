"""Captions on disk: lines of JSON, and text files beside pictures.

What `evaluation.datasets` and `training.collection` have in common.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nulltext.errors import DataError, reason_of

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif")


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read ({reason_of(error)}).") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"'{path}', line {number}, is no JSON: {reason_of(error)}.") from error
        if not isinstance(value, dict):
            raise DataError(f"'{path}', line {number}, is no JSON object.")
        yield number, value


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
    if not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise DataError(f'\'{path}\', line {number}, has no "caption" (or "captions").')
    return tuple(captions)


def captions_beside(folder: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Pictures anywhere in a folder with the lines of the .txt beside each, by name."""
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES):
        text = path.with_suffix(".txt")
        if not text.is_file():
            continue
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        captions = tuple(line.strip() for line in lines if line.strip())
        if captions:
            yield path, captions

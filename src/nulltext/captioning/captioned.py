"""Captions on disk: lines of JSON, and text files beside pictures.

What `evaluation.datasets` and `training.collection` have in common.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from nulltext.errors import DataError, closest_name, reason_of, shorten
from nulltext.storage.untrusted import (
    MEGABYTE,
    decode_text,
    parse_json,
    read_lines,
    read_text,
    resolve_inside,
)
from nulltext.words.prompts import clean

LONGEST_LINE = MEGABYTE
"""Bytes of a line of JSON."""
LONGEST_TEXT = MEGABYTE
"""Bytes of a .txt with captions."""
LABELS = ("kind", "colour", "background")
FIELDS = {*LABELS, "file", "split", "caption", "captions", "target", "mask"}
"""Of lines of labels.jsonl, captions.jsonl and edits.jsonl."""
OTHER_NAMES = {
    **dict.fromkeys(("filename", "image", "imagepath", "img", "path", "photo"), ("file",)),
    **dict.fromkeys(("description", "prompt", "text"), ("caption", "target")),
    "editingprompt": ("target",),
}
"""What other tools call them; see `errors.meant`."""
TABLES = ("labels.jsonl", "captions.jsonl", "edits.jsonl")
TEXTS = (".txt", ".caption")
"""Endings of texts beside pictures, in the order in which they are looked for."""
PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif"),
    *(".heic", ".heif"),
)
NOT_READ = (
    *(".jxl", ".jp2", ".psd", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
    *(".raf", ".orf", ".rw2"),
)
"""Endings of pictures in formats that are not read."""
MOST_KEYS = 100
"""Keys of a line that are looked at for one that may be meant."""
SHOWN = 3
"""Pictures that a message names of many."""


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    try:
        for number, line in read_lines(path, LONGEST_LINE):
            value = _object(line, path, number)
            if value is not None:
                yield number, value
    except FileNotFoundError as error:
        raise DataError(f"'{path}' does not exist.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read ({reason_of(error)}).") from error


def _object(line: bytes, path: Path, number: int) -> dict[str, Any] | None:
    """The object of a line; None where it is blank."""
    try:
        if len(line) > LONGEST_LINE:
            raise ValueError(f"it is longer than the {LONGEST_LINE // MEGABYTE} MiB that are read")
        text = decode_text(line)
        value = parse_json(text) if text.strip() else None
    except ValueError as error:
        raise DataError(f"'{path}', line {number}, is no JSON: {reason_of(error)}.") from error
    if value is not None and not isinstance(value, dict):
        raise DataError(f"'{path}', line {number}, is no JSON object.")
    return value


def text_field(line: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    """A field that must be text.

    Raises:
        DataError: it is missing, blank, or something else.
    """
    value = line.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"'{path}', line {number}, has no \"{key}\"{_instead(line, key)}.")
    return value


def captions_field(line: Mapping[str, Any], path: Path, number: int) -> tuple[str, ...]:
    """The captions of a line of captions.jsonl, under "captions" or "caption".

    Raises:
        DataError: there is none.
    """
    captions = line.get("captions", [line.get("caption")])
    captions = [captions] if isinstance(captions, str) else captions
    said = captions if isinstance(captions, list) else []
    cleaned = [clean(one) for one in said if isinstance(one, str)]
    if not cleaned or len(cleaned) < len(said) or not all(one.strip() for one in cleaned):
        raise DataError(
            f'\'{path}\', line {number}, has no "caption" (or "captions")'
            f"{_instead(line, 'caption')}."
        )
    return tuple(cleaned)


def label_fields(line: Mapping[str, Any], path: Path, number: int) -> dict[str, str | None]:
    """The words of a line of labels.jsonl; None where one is not known.

    Raises:
        DataError: one of them is no word, or is called otherwise.
    """
    words: dict[str, str | None] = {}
    for key in LABELS:
        value = line.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"'{path}', line {number}: kind, colour and background are words or null."
            )
        if value is None and key not in line and (instead := _instead(line, key)):
            raise DataError(f"'{path}', line {number}, has no \"{key}\"{instead}.")
        words[key] = None if value is None else clean(value)
    return words


def _instead(line: Mapping[str, Any], key: str) -> str:
    """What a line has in a field's place, for the end of a sentence."""
    others = {*line} - {key, *FIELDS}
    found = [
        other
        for other in sorted(others)[:MOST_KEYS]
        if closest_name(other, [key], OTHER_NAMES) == key
    ]
    return f'; it has "{shorten(found[0])}": call that "{key}"' if found else ""


def file_field(line: Mapping[str, Any], key: str, path: Path, number: int) -> Path:
    """The file that a line names, in the folder of the file that the line is in.

    Raises:
        DataError: there is none, or the name leads out of the folder.
    """
    name = text_field(line, key, path, number)
    try:
        return resolve_inside(path.parent, name)
    except (OSError, ValueError) as error:
        raise DataError(
            f"'{path}', line {number}, names {shorten(name)!r}, which cannot be used: "
            f"{reason_of(error)}."
        ) from error


def captions_beside(folder: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Pictures anywhere in a folder with the lines of the text beside each, by name.

    Beside a.jpg, that is a.txt, a.caption, a.jpg.txt or a.jpg.caption, in capitals too; the first
    of them that is there.

    Raises:
        DataError: a text cannot be read.
    """
    texts: dict[Path, Path] = {}
    for path in sorted(_files(folder, TEXTS), key=_order_of_text):
        if path.is_file():
            texts.setdefault(path.with_suffix(""), path)
    for path in sorted(_files(folder, PICTURES)):
        text = texts.get(path.with_suffix("")) or texts.get(path)
        if text is None:
            continue
        try:
            lines = read_text(text, LONGEST_TEXT).split("\n")
        except (OSError, ValueError) as error:
            raise DataError(f"'{text}' cannot be read ({reason_of(error)}).") from error
        captions = tuple(said for line in lines if (said := clean(line).strip()))
        if captions:
            yield path, captions


def _order_of_text(path: Path) -> tuple[int, Path]:
    return TEXTS.index(path.suffix.lower()), path


def note_on_left_out(folder: Path) -> str:
    """What to tell of a folder's pictures that no caption belongs to; empty where there are none.

    Raises:
        DataError: a file of captions cannot be read.
    """
    named: set[Path] = set()
    for table in (folder / name for name in TABLES):
        for number, line in read_json_lines(table) if table.is_file() else ():
            keys = [key for key in ("file", "mask") if line.get(key) is not None]
            named.update(file_field(line, key, table, number) for key in keys)
    named = named or {path for path, _ in captions_beside(folder)}
    said = left_out(folder, named) if named else ""
    return f"Note: left out of '{folder}': {said}." if said else ""


def left_out(folder: Path, named: Collection[Path] = ()) -> str:
    """The pictures of a folder that are not among those named: how many, the first, and why."""
    said = []
    for endings, one, why in (
        (PICTURES, "picture", "without a caption"),
        (NOT_READ, "file", "of a format that is not read"),
    ):
        names = [p.relative_to(folder).as_posix() for p in _files(folder, endings) - {*named}]
        if names:
            more = ", …" if len(names) > SHOWN else ""
            shown = ", ".join(map(shorten, sorted(names)[:SHOWN]))
            said.append(f"{len(names)} {one}{'s' * (len(names) > 1)} {why} ({shown}{more})")
    return ", ".join(said)


def _files(folder: Path, endings: Collection[str]) -> set[Path]:
    """Files below a folder; hidden ones (macOS's ._a.txt, .ipynb_checkpoints) are left alone."""
    return {
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }

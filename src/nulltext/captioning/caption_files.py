"""Captions on disk: labels.jsonl and captions.jsonl, and text files beside pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
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

MAX_BYTES = MEGABYTE
"""Of a line of JSON, and of a text file with captions."""
LABELS = ("kind", "colour", "background")
FIELDS = {*LABELS, "file", "split", "caption", "captions", "target", "mask"}
"""Of lines of labels.jsonl, captions.jsonl and edits.jsonl."""
OTHER_NAMES = {
    **dict.fromkeys(("filename", "image", "imagepath", "img", "path", "photo"), ("file",)),
    **dict.fromkeys(("description", "prompt", "text"), ("caption", "target")),
    "editingprompt": ("target",),
}
"""Names of other tools for these fields; see `errors.closest_name`."""
TABLES = ("labels.jsonl", "captions.jsonl", "edits.jsonl")
TEXTS = (".txt", ".caption")
"""Suffixes of texts beside pictures, in the order in which they are looked for."""
PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif"),
    *(".heic", ".heif"),
)
NOT_READ = (
    *(".jxl", ".jp2", ".psd", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
    *(".raf", ".orf", ".rw2"),
)
"""Suffixes of pictures in formats that are not read."""
MOST_KEYS = 100
"""Unknown keys of a line that are compared with a missing field's name."""
SHOWN = 3
"""Pictures that a message names."""


@dataclass(frozen=True)
class CaptionLine:
    """A line of labels.jsonl, captions.jsonl or edits.jsonl; its methods raise DataError."""

    path: Path
    number: int
    fields: Mapping[str, Any]

    def __str__(self) -> str:
        return f"'{self.path}', line {self.number}"

    def has(self, key: str) -> bool:
        return self.fields.get(key) is not None

    def text(self, key: str) -> str:
        """Return a field that must be text, and not blank."""
        value = self.fields.get(key)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f'{self}, has no "{key}"{self._instead(key)}.')
        return value

    def captions(self) -> tuple[str, ...]:
        """Return the captions under "captions" or "caption", at least one."""
        captions = self.fields.get("captions", [self.fields.get("caption")])
        captions = [captions] if isinstance(captions, str) else captions
        values = captions if isinstance(captions, list) else []
        texts = [clean(value) for value in values if isinstance(value, str)]
        if not texts or len(texts) < len(values) or not all(text.strip() for text in texts):
            instead = self._instead("caption")
            raise DataError(f'{self}, has no "caption" (or "captions"){instead}.')
        return tuple(texts)

    def labels(self) -> dict[str, str | None]:
        """Return kind, colour and background; None where unknown."""
        words: dict[str, str | None] = {}
        for key in LABELS:
            value = self.fields.get(key)
            if value is not None and not isinstance(value, str):
                raise DataError(f"{self}: kind, colour and background are words or null.")
            if key not in self.fields and (instead := self._instead(key)):
                raise DataError(f'{self}, has no "{key}"{instead}.')
            words[key] = None if value is None else clean(value)
        return words

    def file(self, key: str) -> Path:
        """Return the file that a field names, inside the folder of `path`."""
        name = self.text(key)
        try:
            return resolve_inside(self.path.parent, name)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self}, names {shorten(name)!r}, which cannot be used: {reason_of(error)}."
            ) from error

    def _instead(self, key: str) -> str:
        """Suggest a rename, for the end of a sentence, where the field has another name."""
        for other in sorted({*self.fields} - {key, *FIELDS})[:MOST_KEYS]:
            if closest_name(other, [key], OTHER_NAMES) == key:
                return f'; it has "{shorten(other)}": call that "{key}"'
        return ""


def read_json_lines(path: Path) -> Iterator[CaptionLine]:
    """Yield the lines that are not blank.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    try:
        for number, line in read_lines(path, MAX_BYTES):
            place = f"'{path}', line {number},"
            try:
                if len(line) > MAX_BYTES:
                    most = MAX_BYTES // MEGABYTE
                    raise ValueError(f"it is longer than the {most} MiB that are read")
                text = decode_text(line)
                value = parse_json(text) if text.strip() else None
            except ValueError as error:
                raise DataError(f"{place} is no JSON: {reason_of(error)}.") from error
            if isinstance(value, dict):
                yield CaptionLine(path, number, value)
            elif value is not None:
                raise DataError(f"{place} is no JSON object.")
    except FileNotFoundError as error:
        raise DataError(f"'{path}' does not exist.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read ({reason_of(error)}).") from error


def captions_beside(folder: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the pictures anywhere in a folder with the lines of the text beside each, by name.

    The text of a.jpg is the first of a.txt, a.caption, a.jpg.txt and a.jpg.caption that exists, in
    capitals too.

    Raises:
        DataError: a text cannot be read.
    """
    texts: dict[Path, Path] = {}
    by_suffix = sorted(_files(folder, TEXTS), key=lambda p: (TEXTS.index(p.suffix.lower()), p))
    for path in by_suffix:
        if path.is_file():
            texts.setdefault(path.with_suffix(""), path)
    for path in sorted(_files(folder, PICTURES)):
        beside = texts.get(path.with_suffix("")) or texts.get(path)
        if beside is None:
            continue
        try:
            lines = read_text(beside, MAX_BYTES).split("\n")
        except (OSError, ValueError) as error:
            raise DataError(f"'{beside}' cannot be read ({reason_of(error)}).") from error
        captions = tuple(text for line in lines if (text := clean(line).strip()))
        if captions:
            yield path, captions


def note_on_left_out(folder: Path) -> str:
    """Describe a folder's pictures without captions in one sentence; empty if there are none.

    Raises:
        DataError: a file of captions cannot be read.
    """
    named: set[Path] = set()
    for table in (folder / name for name in TABLES):
        for line in read_json_lines(table) if table.is_file() else ():
            named.update(line.file(key) for key in ("file", "mask") if line.has(key))
    named = named or {path for path, _ in captions_beside(folder)}
    found = left_out(folder, named) if named else ""
    return f"Note: left out of '{folder}': {found}." if found else ""


def left_out(folder: Path, named: Collection[Path] = ()) -> str:
    """Describe a folder's pictures that are not among `named`: how many, the first, and why."""
    parts = []
    for suffixes, noun, why in (
        (PICTURES, "picture", "without a caption"),
        (NOT_READ, "file", "of a format that is not read"),
    ):
        names = [p.relative_to(folder).as_posix() for p in _files(folder, suffixes) - {*named}]
        if names:
            more = ", …" if len(names) > SHOWN else ""
            shown = ", ".join(map(shorten, sorted(names)[:SHOWN]))
            parts.append(f"{len(names)} {noun}{'s' * (len(names) > 1)} {why} ({shown}{more})")
    return ", ".join(parts)


def _files(folder: Path, suffixes: Collection[str]) -> set[Path]:
    """Find files below a folder, without hidden ones (macOS's ._a.txt, .ipynb_checkpoints)."""
    return {
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }

"""Photos with captions, from whatever a folder holds.

    captions_*.json     COCO, as published; pictures in a folder beside it (see `coco`)
    labels.jsonl        {"file", "kind", "colour", "background", "split"}: captions by template
    captions.jsonl      {"file", "caption" or "captions", "target"?, "mask"?}
    NAME.txt            beside each picture, one caption per line

An `edits.jsonl` of {"file", "target", "mask"?} says what edits ask for, where the rest does not.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nulltext.captioning.captioned import (
    captions_beside,
    captions_field,
    file_field,
    label_fields,
    left_out,
    read_json_lines,
    text_field,
)
from nulltext.errors import DataError, shorten
from nulltext.words.captions import caption, recoloured
from nulltext.words.prompts import clean

EDITS = "edits.jsonl"


@dataclass(frozen=True)
class Item:
    """A photo, what it shows, and what an edit shall make of it."""

    name: str
    """The file relative to the folder: what rows of results call the photo."""
    path: Path
    captions: tuple[str, ...]
    """At least one; the first is the photo's own, the others say the same differently."""
    target: str | None = None
    """What an edit asks for, in place of the first caption."""
    mask: Path | None = None
    """White where that edit belongs."""


def read_items(folder: Path, *, split: str = "validation", edits: Path | None = None) -> list[Item]:
    """All captioned photos of a folder, in its order; a picture itself is not opened.

    Args:
        split: which part of a labels.jsonl.
        edits: a file like edits.jsonl; the folder's own by default.

    Raises:
        DataError: the folder is missing or holds no captioned photo, or a file of it is malformed.
    """
    if not folder.is_dir():
        raise DataError(f"'{folder}' is no folder; give one with photos and captions.")
    from nulltext.evaluation.coco import annotation_file, read_coco

    annotations = annotation_file(folder)
    if (folder / "labels.jsonl").is_file():
        items = _labelled(folder, split)
    elif (folder / "captions.jsonl").is_file():
        items = _captioned(folder)
    elif annotations is not None:
        items = read_coco(annotations)
    else:
        items = _with_text_files(folder)
    if not items:
        found = left_out(folder)
        has = f", but {found}" if found else ""
        raise DataError(
            f"'{folder}' has no captioned photo{has}; it needs a captions.jsonl, a "
            f"labels.jsonl with the split '{split}', COCO's captions_val2017.json, or a NAME.txt "
            "beside each picture."
        )
    wanted = edits or (folder / EDITS)
    if edits is None and not wanted.is_file():
        return items
    return _with_edits(items, wanted)


def sample_items(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """Draw photos without repetition, and for each one of its captions as its own.

    Raises:
        DataError: there are not that many.
    """
    if not 1 <= count <= len(items):
        raise DataError(f"There are {len(items)} photos; choose --sample from 1 to {len(items)}.")
    draw = random.Random(seed)
    drawn = []
    for item in draw.sample(list(items), count):
        own = draw.randrange(len(item.captions))
        others = item.captions[:own] + item.captions[own + 1 :]
        drawn.append(replace(item, captions=(item.captions[own], *others)))
    return drawn


def digest(items: Sequence[Item]) -> str:
    """Identifies names, captions and edits (not the pictures' bytes)."""
    said = [(i.name, i.captions, i.target, i.mask and i.mask.name) for i in items]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _labelled(folder: Path, split: str) -> list[Item]:
    """Photos of the split whose colour and kind are both known."""
    items, path = [], folder / "labels.jsonl"
    for number, line in read_json_lines(path):
        label = label_fields(line, path, number)
        if line.get("split", split) != split or not (label["colour"] and label["kind"]):
            continue
        photo = file_field(line, "file", path, number)
        items.append(Item(line["file"], photo, (caption(label),), recoloured(label)))
    return items


def _captioned(folder: Path) -> list[Item]:
    items, path = [], folder / "captions.jsonl"
    for number, line in read_json_lines(path):
        photo = file_field(line, "file", path, number)
        item = Item(line["file"], photo, captions_field(line, path, number))
        items.append(_edited(item, number, line, path))
    return items


def _with_text_files(folder: Path) -> list[Item]:
    return [
        Item(path.relative_to(folder).as_posix(), path, captions)
        for path, captions in captions_beside(folder)
    ]


def _with_edits(items: Sequence[Item], path: Path) -> list[Item]:
    lines = {text_field(line, "file", path, n): (n, line) for n, line in read_json_lines(path)}
    unknown = lines.keys() - {item.name for item in items}
    if unknown:
        raise DataError(f"'{path}' names {shorten(min(unknown))!r}, which is none of the photos.")
    for number, line in lines.values():
        text_field(line, "target", path, number)
    return [
        _edited(item, *lines[item.name], path) if item.name in lines else item for item in items
    ]


def _edited(item: Item, number: int, line: dict[str, Any], path: Path) -> Item:
    """The photo with the edit of a line, if the line has one."""
    if line.get("target") is not None:
        item = replace(item, target=clean(text_field(line, "target", path, number)))
    if line.get("mask") is not None:
        item = replace(item, mask=file_field(line, "mask", path, number))
    return item

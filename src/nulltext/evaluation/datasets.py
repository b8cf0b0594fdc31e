"""Photos with captions, read from a folder.

    captions_*.json     COCO captions as published, in the folder or its annotations/
    labels.jsonl        {"file", "kind", "colour", "background", "split"}: captions by template
    captions.jsonl      {"file", "caption" or "captions", "target"?, "mask"?}
    NAME.txt            beside each picture, one caption per line

An `edits.jsonl` of {"file", "target", "mask"?} adds the prompts of edits.

COCO's file has "images" {"id", "file_name"} and "annotations" {"image_id", "caption"}, about five
captions per image. Its pictures lie in a folder named like the split (val2017), in images/, or
beside the file; with COCO's own layout, annotations/ is a sister of val2017/.
Source: Chen et al. 2015 (Microsoft COCO Captions); cocodataset.org, "data format".
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nulltext.captioning.caption_files import (
    CaptionLine,
    captions_beside,
    left_out,
    read_json_lines,
)
from nulltext.errors import DataError, reason_of, require, shorten
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text, resolve_inside
from nulltext.words.captions import caption, recoloured
from nulltext.words.prompts import clean

MAX_COCO_BYTES = 512 * MEGABYTE
"""Of an annotation file; COCO's own have up to 92 MB."""


@dataclass(frozen=True)
class CaptionedPhoto:
    """A photo, what it shows, and what an edit shall make of it."""

    name: str
    """The file relative to the folder: what rows of results call the photo."""
    path: Path
    captions: tuple[str, ...]
    """At least one; the first is the photo's own, the others say the same differently."""
    target: str | None = None
    """Prompt of the edit, in place of the first caption."""
    mask: Path | None = None
    """White where that edit belongs."""


def read_photos(
    folder: Path, *, split: str = "validation", edits: Path | None = None
) -> list[CaptionedPhoto]:
    """Read all captioned photos of a folder, in its order; a picture itself is not opened.

    Args:
        split: which part of a labels.jsonl.
        edits: a file like edits.jsonl; the folder's own by default.

    Raises:
        DataError: the folder is missing or holds no captioned photo, or a file of it is malformed.
        ExtraError: the folder holds COCO, and pycocotools is not installed.
    """
    if not folder.is_dir():
        raise DataError(f"'{folder}' is no folder; give one with photos and captions.")
    annotations = [*folder.glob("captions_*.json"), *folder.glob("annotations/captions_*.json")]
    if (folder / "labels.jsonl").is_file():
        photos = _read_labels(folder / "labels.jsonl", split)
    elif (folder / "captions.jsonl").is_file():
        photos = _read_captions(folder / "captions.jsonl")
    elif annotations:
        photos = _read_coco(max(annotations, key=lambda path: "val" in path.name))
    else:
        photos = [
            CaptionedPhoto(path.relative_to(folder).as_posix(), path, captions)
            for path, captions in captions_beside(folder)
        ]
    if not photos:
        has = f", but {found}" if (found := left_out(folder)) else ""
        raise DataError(
            f"'{folder}' has no captioned photo{has}; it needs a captions.jsonl, a "
            f"labels.jsonl with the split '{split}', COCO's captions_val2017.json, or a NAME.txt "
            "beside each picture."
        )
    wanted = edits or (folder / "edits.jsonl")
    return _add_edits(photos, wanted) if edits or wanted.is_file() else photos


def sample_photos(photos: Sequence[CaptionedPhoto], count: int, seed: int) -> list[CaptionedPhoto]:
    """Draw photos without repetition, and for each one of its captions as its own.

    Raises:
        DataError: there are fewer photos.
    """
    if not 1 <= count <= len(photos):
        raise DataError(f"There are {len(photos)} photos; choose --sample from 1 to {len(photos)}.")
    draw = random.Random(seed)
    drawn = []
    for photo in draw.sample(list(photos), count):
        own = draw.randrange(len(photo.captions))
        others = photo.captions[:own] + photo.captions[own + 1 :]
        drawn.append(replace(photo, captions=(photo.captions[own], *others)))
    return drawn


def captions_of_others(photos: Sequence[CaptionedPhoto], seed: int) -> dict[str, str | None]:
    """Draw for each photo the caption of another one that differs from its own; None without one.

    Each draw depends on the seed, the photo and the whole list alone, so that studying fewer
    photos changes nothing.
    """
    drawn: dict[str, str | None] = {}
    for photo in photos:
        others = [o.captions[0] for o in photos if o.captions[0] not in photo.captions]
        draw = random.Random(f"{seed} {photo.name}")
        drawn[photo.name] = draw.choice(others) if others else None
    return drawn


def photos_digest(photos: Sequence[CaptionedPhoto]) -> str:
    """Hash names, captions and edits (not the pictures' bytes)."""
    content = [(p.name, p.captions, p.target, p.mask and p.mask.name) for p in photos]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _read_labels(path: Path, split: str) -> list[CaptionedPhoto]:
    photos = []
    for line in read_json_lines(path):
        label = line.labels()
        if line.fields.get("split", split) == split and label["colour"] and label["kind"]:
            name, file = line.text("file"), line.file("file")
            photos.append(CaptionedPhoto(name, file, (caption(label),), recoloured(label)))
    return photos


def _read_captions(path: Path) -> list[CaptionedPhoto]:
    return [
        _with_edit(CaptionedPhoto(line.text("file"), line.file("file"), line.captions()), line)
        for line in read_json_lines(path)
    ]


def _read_coco(annotations: Path) -> list[CaptionedPhoto]:
    coco_class = require("pycocotools.coco", "coco", "Reading COCO").COCO
    try:
        coco = coco_class()
        coco.dataset = parse_json(read_text(annotations, MAX_COCO_BYTES))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            coco.createIndex()
        if not coco.imgs:
            raise ValueError("it names no images")
        names = {image_id: _coco_text(coco.imgs[image_id], "file_name") for image_id in coco.imgs}
        folder = _coco_pictures(annotations, names.values())
        photos = []
        for image_id, name in sorted(names.items()):
            annotated = coco.imgToAnns.get(image_id, [])
            captions = tuple(clean(_coco_text(entry, "caption")).strip() for entry in annotated)
            if captions:
                photos.append(CaptionedPhoto(name, resolve_inside(folder, name), captions))
        return photos
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{annotations}' is no COCO caption file ({reason_of(error)}); "
            "fetch annotations_trainval2017.zip from cocodataset.org again."
        ) from error


def _coco_text(entry: Mapping[str, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str):
        raise ValueError(f"a {key} is {shorten(repr(value))}")
    return value


def _coco_pictures(annotations: Path, names: Collection[str]) -> Path:
    split = annotations.stem.removeprefix("captions_")
    for folder in (split, "images", "."):
        for root in (annotations.parent, annotations.parent.parent):
            if any(resolve_inside(root / folder, name).is_file() for name in names):
                return root / folder
    raise DataError(
        f"None of the pictures of '{annotations}' is there; unpack {split}.zip into "
        f"'{annotations.parent / split}'."
    )


def _add_edits(photos: Sequence[CaptionedPhoto], path: Path) -> list[CaptionedPhoto]:
    lines = {line.text("file"): line for line in read_json_lines(path)}
    if unknown := lines.keys() - {photo.name for photo in photos}:
        raise DataError(f"'{path}' names {shorten(min(unknown))!r}, which is none of the photos.")
    edited = []
    for photo in photos:
        if photo.name in lines:
            lines[photo.name].text("target")
            photo = _with_edit(photo, lines[photo.name])
        edited.append(photo)
    return edited


def _with_edit(photo: CaptionedPhoto, line: CaptionLine) -> CaptionedPhoto:
    if line.has("target"):
        photo = replace(photo, target=clean(line.text("target")))
    return replace(photo, mask=line.file("mask")) if line.has("mask") else photo

"""Captioned photos on disk, as somebody keeps them.

A folder holds one of
    labels.jsonl     {"file", "split", "kind", "colour", "background"}; the last three may be null
    captions.jsonl   {"file", "caption" or "captions", "split"}
    NAME.txt         one caption a line, beside NAME.jpg (or .png, .webp, …); so do NAME.jpg.txt
                     and NAME.caption
"split" is "train" where it is missing. Photos are squared at their centre and shrunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nulltext.captioning.captioned import (
    captions_beside,
    captions_field,
    file_field,
    label_fields,
    left_out,
    read_json_lines,
)
from nulltext.errors import DataError, shorten
from nulltext.image.images import from_uint8, largest_centred, to_tensor, to_uint8
from nulltext.image.photos import load_photo

TRAIN = "train"


@dataclass(frozen=True)
class Example:
    """One photo and what is known about it."""

    path: Path
    split: str
    captions: tuple[str, ...] = ()
    """Whole captions; empty where they are composed from the words below."""
    kind: str | None = None
    colour: str | None = None
    background: str | None = None


def read_collection(folder: Path) -> list[Example]:
    """All captioned photos of a folder, in a fixed order.

    Raises:
        DataError: the folder is missing, has no captions, or names a photo that is not there.
    """
    if not folder.is_dir():
        raise DataError(f"'{folder}' is no folder: give one with photos and their captions.")
    if (folder / "labels.jsonl").is_file():
        examples = list(_labelled(folder / "labels.jsonl"))
    elif (folder / "captions.jsonl").is_file():
        examples = list(_captioned(folder / "captions.jsonl"))
    else:
        examples = [Example(path, TRAIN, texts) for path, texts in captions_beside(folder)]
    if not examples:
        found = left_out(folder)
        has = f", but {found}" if found else ""
        raise DataError(
            f"'{folder}' has no captioned photo{has}: it needs labels.jsonl, captions.jsonl, "
            "or a .txt with the caption beside each photo."
        )
    return examples


def _labelled(path: Path) -> Iterator[Example]:
    for number, line in read_json_lines(path):
        words = label_fields(line, path, number).values()
        yield Example(_photo(line, path, number), _split(line), (), *words)


def _captioned(path: Path) -> Iterator[Example]:
    for number, line in read_json_lines(path):
        captions = captions_field(line, path, number)
        yield Example(_photo(line, path, number), _split(line), captions)


def _split(line: Mapping[str, Any]) -> str:
    return str(line.get("split", TRAIN))


def _photo(line: Mapping[str, Any], path: Path, number: int) -> Path:
    """The photo that a line names, inside the folder and really there."""
    photo = file_field(line, "file", path, number)
    if not photo.is_file():
        raise DataError(
            f"'{path}', line {number}, names {shorten(line['file'])!r}, which is not there."
        )
    return photo


def load_pixels(examples: Sequence[Example], side: int) -> Tensor:
    """The photos, squared and shrunk: [N, 3, side, side], uint8.

    Raises:
        ImageError: a photo cannot be read.
    """
    pixels = torch.empty(len(examples), 3, side, side, dtype=torch.uint8)
    for row, example in enumerate(examples):
        photo = load_photo(example.path)
        box = largest_centred(*photo.size)
        pixels[row] = to_uint8(to_tensor(photo, box, (side, side)))
    return pixels


def as_floats(pixels: Tensor) -> Tensor:
    """Pixels uint8 [N, 3, H, W] as float32 in [-1, 1]."""
    return torch.cat([from_uint8(row) for row in pixels])


def digest(pixels: Tensor) -> str:
    """Identifies the photos that a checkpoint was trained on."""
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16]

"""Captioned photos on disk, as somebody keeps them.

A folder holds one of
    labels.jsonl     {"file", "split", "kind", "colour", "background"}; the last three may be null
    captions.jsonl   {"file", "caption" or "captions", "split"}
    NAME.txt         one caption a line, beside NAME.jpg (or .png, .webp, …)
"split" is "train" where it is missing. Photos are squared at their centre and shrunk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nulltext.errors import ImageError
from nulltext.images import from_uint8, largest_centred_square, to_tensor, to_uint8
from nulltext.photos import load_photo

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
TRAIN = "train"
VALIDATION = "validation"


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
        ImageError: the folder is missing, has no captions, or names a photo that is not there.
    """
    if not folder.is_dir():
        raise ImageError(f"'{folder}' is no folder: give one with photos and their captions.")
    if (folder / "labels.jsonl").is_file():
        examples = _from_lines(folder / "labels.jsonl", _labelled)
    elif (folder / "captions.jsonl").is_file():
        examples = _from_lines(folder / "captions.jsonl", _captioned)
    else:
        examples = _from_texts(folder)
    if not examples:
        raise ImageError(
            f"'{folder}' has no captioned photo: it needs labels.jsonl, captions.jsonl, or a .txt "
            "with the caption beside each photo."
        )
    return examples


def _from_lines(path: Path, parse: Callable[[Path, Mapping[str, Any]], Example]) -> list[Example]:
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            example = parse(path.parent, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImageError(
                f"Line {number} of '{path}' cannot be read ({error!r}): each line is one JSON "
                'object with "file" and what the photo shows.'
            ) from error
        if not example.path.is_file():
            raise ImageError(
                f"Line {number} of '{path}' names '{example.path}', which is not there."
            )
        examples.append(example)
    return examples


def _labelled(folder: Path, row: Mapping[str, Any]) -> Example:
    words = [row.get(key) for key in ("kind", "colour", "background")]
    if not all(value is None or isinstance(value, str) for value in words):
        raise ValueError("kind, colour and background are words or null")
    return Example(_inside(folder, row["file"]), row.get("split", TRAIN), (), *words)


def _captioned(folder: Path, row: Mapping[str, Any]) -> Example:
    captions = row.get("captions", row.get("caption"))
    captions = [captions] if isinstance(captions, str) else captions
    if not captions or not all(isinstance(text, str) for text in captions):
        raise ValueError("there is no caption")
    return Example(_inside(folder, row["file"]), row.get("split", TRAIN), tuple(captions))


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"'{name}' is outside the folder")
    return path


def _from_texts(folder: Path) -> list[Example]:
    examples = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES):
        text = path.with_suffix(".txt")
        if text.is_file():
            lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines()]
            captions = tuple(line for line in lines if line)
            if captions:
                examples.append(Example(path, TRAIN, captions))
    return examples


def load_pixels(examples: Sequence[Example], side: int) -> Tensor:
    """The photos, squared and shrunk: [N, 3, side, side], uint8.

    Raises:
        ImageError: a photo cannot be read.
    """
    pixels = torch.empty(len(examples), 3, side, side, dtype=torch.uint8)
    for row, example in enumerate(examples):
        photo = load_photo(example.path)
        box = largest_centred_square(*photo.size)
        pixels[row] = to_uint8(to_tensor(photo, box, (side, side)))
    return pixels


def as_floats(pixels: Tensor) -> Tensor:
    """Pixels uint8 [N, 3, H, W] as float32 in [-1, 1]."""
    return torch.cat([from_uint8(row) for row in pixels])


def digest(pixels: Tensor) -> str:
    """Identifies the photos that a checkpoint was trained on."""
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16]

"""Captioned photos for the benchmarks: a folder with `labels.jsonl`, see `evaluation.datasets`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nulltext.errors import DataError
from nulltext.evaluation.datasets import read_photos
from nulltext.words.captions import caption as caption


@dataclass(frozen=True)
class CaptionedPhoto:
    """A file and what it shows."""

    path: Path
    caption: str


def captioned_photos(folder: Path, split: str, limit: int) -> list[CaptionedPhoto]:
    """The first `limit` photos of a split that have both a colour and a kind, evenly spread.

    Raises:
        SystemExit: the folder has no labels.jsonl, or no such photo.
    """
    try:
        items = read_photos(folder, split=split)
    except DataError as error:
        raise SystemExit(str(error)) from error
    photos = [CaptionedPhoto(item.path, item.captions[0]) for item in items]
    count = min(limit, len(photos))
    return [photos[i * len(photos) // count] for i in range(count)]

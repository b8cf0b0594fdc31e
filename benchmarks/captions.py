"""Captioned photos for the benchmarks: a folder with `labels.jsonl`.

Each line is {"file", "split", "kind", "colour", "background"}; the last three may be null. The
caption is composed as the bundled model was taught: "a photo of a COLOUR KIND with a BACKGROUND
background".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VOWELS = "aeiou"


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
    labels = folder / "labels.jsonl"
    if not labels.is_file():
        raise SystemExit(f"There is no {labels}; pass --data a folder of photos with labels.jsonl.")
    photos = list(_read(labels, split))
    if not photos:
        raise SystemExit(f"{labels} has no photo of the split '{split}' with colour and kind.")
    count = min(limit, len(photos))
    return [photos[i * len(photos) // count] for i in range(count)]


def _read(labels: Path, split: str) -> Iterator[CaptionedPhoto]:
    for line in labels.read_text(encoding="utf-8").splitlines():
        label = json.loads(line)
        if label["split"] == split and label["colour"] and label["kind"]:
            yield CaptionedPhoto(labels.parent / label["file"], caption(label))


def caption(label: dict[str, str | None]) -> str:
    """Compose a label's caption by the template."""
    colour, kind, background = label["colour"], label["kind"], label["background"]
    thing = f"{colour} {kind}" if colour else str(kind)
    article = "an" if thing[0] in VOWELS else "a"
    scene = f" with a {background} background" if background else ""
    return f"a photo of {article} {thing}{scene}"

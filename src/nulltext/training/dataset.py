"""Captioned photos: files, captions that are composed from labels, and the words of all captions.

A folder holds one of
    labels.jsonl     {"file", "split", "kind", "colour", "background"}; the last three may be null
    captions.jsonl   {"file", "caption" or "captions", "split"}
    NAME.txt         one caption a line, beside NAME.jpg (or .png, .webp, …); so do NAME.jpg.txt
                     and NAME.caption
"split" is "train" where it is missing. Photos are squared at their centre and shrunk. From labels,

    [a close-up of | a photo of | …] a [small] COLOUR KIND [with a BACKGROUND background | …]

is composed anew each time, with each part left out now and then, so that the model learns what each
word stands for, and with fillers ("small", any word of plain English), so that it learns to ignore
them. A tenth of all captions is empty, which guidance needs (Ho and Salimans 2022, sec. 3.2).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from nulltext.captioning.caption_files import (
    LABELS,
    captions_beside,
    left_out,
    read_json_lines,
)
from nulltext.errors import DataError, shorten
from nulltext.image.images import from_uint8, largest_centred, to_tensor, to_uint8
from nulltext.image.photos import load_photo
from nulltext.models.side_files import KnownWords
from nulltext.training.recipe import CaptionSettings
from nulltext.words.captions import FRAMES, OPENINGS, article, caption
from nulltext.words.prompts import plain_words

TRAIN = "train"
Role = Literal["flower", "background"]
"""Part of the picture that a word speaks of."""
GENERAL_KIND = "flower"
"""A word for every kind."""
SCENES = (
    "with a {} background",
    "with a {} background",
    "with a {} background",
    "on a {} background",
    "in front of a {} background",
    "against a {} background",
)
IRREGULAR = {"daisy": "daisies"}
DRAWS = 3
"""Captions that are composed of each view to find its words."""
MIN_PHOTOS, MIN_SHARE = 3, 0.1
"""A word is learnt from so many photos, or from that share of fewer than 30."""


@dataclass(frozen=True)
class Example:
    """A photo and its captions or labels."""

    path: Path
    split: str
    captions: tuple[str, ...] = ()
    """Whole captions; empty where they are composed from the labels below."""
    kind: str | None = None
    colour: str | None = None
    background: str | None = None

    @property
    def labels(self) -> dict[str, str | None]:
        return {name: getattr(self, name) for name in LABELS}


def read_dataset(folder: Path) -> list[Example]:
    """Read all captioned photos of a folder, in a fixed order.

    Raises:
        DataError: the folder is missing, has no captions, or names a photo that does not exist.
    """
    if not folder.is_dir():
        raise DataError(f"'{folder}' is no folder: give one with photos and their captions.")
    tables = [folder / name for name in ("labels.jsonl", "captions.jsonl")]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        examples = [Example(path, TRAIN, texts) for path, texts in captions_beside(folder)]
    else:
        examples = list(_read_table(table))
    if not examples:
        has = f", but {found}" if (found := left_out(folder)) else ""
        raise DataError(
            f"'{folder}' has no captioned photo{has}: it needs labels.jsonl, captions.jsonl, "
            "or a .txt with the caption beside each photo."
        )
    return examples


def _read_table(path: Path) -> Iterator[Example]:
    known: dict[str, Any]
    for line in read_json_lines(path):
        known = line.labels() if path.name == "labels.jsonl" else {"captions": line.captions()}
        photo = line.file("file")
        if not photo.is_file():
            raise DataError(f"{line}, names {shorten(line.text('file'))!r}, which is not there.")
        yield Example(photo, str(line.fields.get("split", TRAIN)), **known)


def load_pixels(examples: Sequence[Example], side: int) -> Tensor:
    """Load the photos, squared and shrunk: [N, 3, side, side], uint8.

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
    """Convert pixels [N, 3, H, W], uint8, to float32 in [-1, 1]."""
    return torch.cat([from_uint8(row) for row in pixels])


def resize(pixels: Tensor, side: int) -> Tensor:
    """Resize floating-point pictures [N, 3, H, W] to [N, 3, side, side], bicubic, antialiased."""
    return functional.interpolate(
        pixels, (side, side), mode="bicubic", antialias=True, align_corners=False
    )


def shrink(pixels: Tensor, side: int) -> Tensor:
    """Resize pictures [N, 3, S, S], uint8, some at a time."""
    if pixels.shape[-1] == side:
        return pixels
    parts = (resize(part.float(), side) for part in pixels.split(256))
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def chance(probability: float, rng: torch.Generator) -> bool:
    return float(torch.rand((), generator=rng)) < probability


def below(limit: int, rng: torch.Generator) -> int:
    """Draw an integer from 0 to `limit` - 1."""
    return int(torch.randint(limit, (), generator=rng))


@dataclass(frozen=True)
class Caption:
    """A caption, word by word."""

    words: tuple[str, ...]
    roles: tuple[Role | None, ...]
    """Part of the picture that each word speaks of."""

    @property
    def text(self) -> str:
        return " ".join(self.words)


def compose(
    example: Example, settings: CaptionSettings, fillers: Sequence[str], rng: torch.Generator
) -> Caption:

    def one_of(options: Sequence[str]) -> str:
        return options[below(len(options), rng)]

    if chance(settings.empty, rng):
        return Caption((), ())
    if example.captions:
        words = one_of(example.captions).split()
        return Caption(tuple(words), (None,) * len(words))
    parts: list[tuple[str, Role | None]] = [(word, None) for word in one_of(OPENINGS).split()]
    colour = None if chance(settings.without_colour, rng) else example.colour
    general = example.kind is None or chance(settings.general, rng)
    kind = GENERAL_KIND if general else str(example.kind)
    filler = [one_of(fillers)] if fillers and chance(settings.filler, rng) else []
    several = chance(settings.plural, rng)
    noun = IRREGULAR.get(kind, f"{kind}s") if several else kind
    named = [colour, noun] if colour else [noun]
    if not several:
        parts.append((article([*filler, *named][0]), None))
    parts += [(word, None) for word in filler]
    parts += [(word, "flower") for word in named]
    if example.background and not chance(settings.without_background, rng):
        for word in one_of(SCENES).format(example.background).split():
            scenery = word in (example.background, "background")
            parts.append((word, "background" if scenery else None))
    return Caption(tuple(word for word, _ in parts), tuple(role for _, role in parts))


def plain_caption(example: Example) -> str:
    if example.captions:
        return example.captions[0]
    return caption({**example.labels, "kind": example.kind or GENERAL_KIND})


def known_words(
    examples: Sequence[Example], settings: CaptionSettings, rng: torch.Generator
) -> KnownWords:
    """Collect the words that a model learns from its captions, those of its labels first.

    Words that are labels are in groups, too, by the label that they are of in enough photos. Words
    of fewer than min(MIN_PHOTOS, max(1, MIN_SHARE * photos)) photos are left out.

    Args:
        examples: one per view, with the labels that its caption was composed of.
    """
    photos: defaultdict[str, set[Path]] = defaultdict(set)
    labelled: defaultdict[tuple[str, str], set[Path]] = defaultdict(set)
    ranks: dict[str, int] = {}
    settings = replace(settings, empty=0.0, filler=0.0)
    for example in examples:
        texts: Sequence[str] = example.captions
        if texts:
            named = [
                (0, word) for text in texts for word in plain_words(text) if word not in FRAMES
            ]
        else:
            texts = [compose(example, settings, (), rng).text for _ in range(DRAWS)]
            labels = {**example.labels, "kind": f"{example.kind or ''} {GENERAL_KIND}"}
            said = [(name, word) for name in LABELS for word in plain_words(labels[name] or "")]
            named = [(LABELS.index(name), word) for name, word in said]
            for pair in said:
                labelled[pair].add(example.path)
        for text in texts:
            for word in plain_words(text):
                photos[word].add(example.path)
        for rank, word in named:
            ranks[word] = min(rank, ranks.get(word, rank))
    total = len({example.path for example in examples})
    least = min(MIN_PHOTOS, max(1, int(total * MIN_SHARE)))
    common = [word for word in photos if len(photos[word]) >= least]
    common.sort(key=lambda word: (ranks.get(word, len(LABELS)), -len(photos[word]), word))
    groups = {
        name: tuple(word for word in common if len(labelled[name, word]) >= least)
        for name in LABELS
    }
    return KnownWords(
        tuple(word for word in common if word in ranks),
        tuple(word for word in common if word not in ranks),
        {name: words for name, words in groups.items() if words},
    )

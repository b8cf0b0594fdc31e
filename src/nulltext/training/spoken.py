"""The words that captions really spoke of: what a model trained on them can be asked for.

Composed captions are composed once more, without the fillers that a model learns to read past;
whole captions are read as they are. A word of too few photos is hardly learnt, and left out:

    known = words of at least min(LEAST_PHOTOS, max(1, photos / FEW)) photos
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nulltext.models.side_files import KnownWords
from nulltext.training.captions import GENERAL_KIND, OPENINGS, CaptionSettings, compose
from nulltext.training.collection import Example
from nulltext.words.alignment import ARTICLES, OPENERS
from nulltext.words.prompts import plain_words

LEAST_PHOTOS, FEW = 3, 10

DRAWS = 3
"""Captions that are composed of each view."""

FIELDS = ("kind", "colour", "background")
"""Labels, in the order in which their words are worth naming."""

FRAMES = ARTICLES | OPENERS | {word for opening in OPENINGS for word in plain_words(opening)}
"""Words of whole captions that frame what they show."""


def known_words(
    examples: Sequence[Example], settings: CaptionSettings, rng: torch.Generator
) -> KnownWords:
    """The words of the captions of what a model has seen.

    Args:
        examples: one per view, with the words that its caption was made of.
    """
    photos: defaultdict[str, set[Path]] = defaultdict(set)
    telling: dict[str, int] = {}
    said = replace(settings, empty=0.0, filler=0.0)
    for example in examples:
        for word in _words(example, said, rng):
            photos[word].add(example.path)
        for word, rank in _telling(example):
            telling[word] = min(rank, telling.get(word, rank))
    least = min(LEAST_PHOTOS, max(1, len({example.path for example in examples}) // FEW))
    common = [word for word in photos if len(photos[word]) >= least]
    common.sort(key=lambda word: (telling.get(word, len(FIELDS)), -len(photos[word]), word))
    return KnownWords(
        tuple(word for word in common if word in telling),
        tuple(word for word in common if word not in telling),
    )


def _words(example: Example, settings: CaptionSettings, rng: torch.Generator) -> Iterator[str]:
    if example.captions:
        texts = list(example.captions)
    else:
        texts = [compose(example, settings, (), rng).text for _ in range(DRAWS)]
    for text in texts:
        yield from plain_words(text)


def _telling(example: Example) -> Iterator[tuple[str, int]]:
    """Words that name what the picture shows, and how early they are worth naming."""
    if example.captions:
        for text in example.captions:
            yield from ((word, 0) for word in plain_words(text) if word not in FRAMES)
        return
    yield GENERAL_KIND, 0
    for rank, field in enumerate(FIELDS):
        yield from ((word, rank) for word in plain_words(getattr(example, field) or ""))

"""What a photo is called: one caption of many, composed anew each time it is seen.

From a kind, a colour and a background,

    [a close-up of | a photo of | …] a [small] COLOUR KIND [with a BACKGROUND background | …]

with each part left out now and then, so that the model learns what each word stands for. Words that
say nothing ("small", any word of plain English) are strewn in: it learns to read past them. A
tenth of all captions is empty, which is what guidance needs (Ho and Salimans 2022, sec. 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from nulltext.training.collection import Example
from nulltext.words.captions import article, caption

Role = Literal["flower", "background"]
"""Which part of the picture a word speaks of."""

GENERAL_KIND = "flower"
"""What every kind may be called."""

OPENINGS = ("a photo of", "a photo of", "a photo of", "a picture of", "a close photo of", "")
SCENES = (
    "with a {} background",
    "with a {} background",
    "with a {} background",
    "on a {} background",
    "in front of a {} background",
    "against a {} background",
)
IRREGULAR = {"daisy": "daisies"}


@dataclass(frozen=True)
class CaptionSettings:
    """How freely captions are composed; each field is a probability."""

    empty: float = 0.1
    """No caption at all."""
    without_colour: float = 0.12
    """The colour is not named though it is known."""
    general: float = 0.2
    """"flower" stands for the kind."""
    plural: float = 0.1
    """Several are named."""
    without_background: float = 0.25
    """The background is not named though it is known."""
    filler: float = 0.12
    """A word of plain English is strewn in."""


@dataclass(frozen=True)
class Caption:
    """A caption, word by word."""

    words: tuple[str, ...]
    roles: tuple[Role | None, ...]
    """What each word speaks of."""

    @property
    def text(self) -> str:
        """The caption as one string."""
        return " ".join(self.words)


def compose(
    example: Example, settings: CaptionSettings, fillers: Sequence[str], rng: torch.Generator
) -> Caption:
    """A caption for a photo, drawn with `rng`; a whole caption of its own where it has some."""

    def chance(probability: float) -> bool:
        return float(torch.rand((), generator=rng)) < probability

    def one_of(options: Sequence[str]) -> str:
        return options[int(torch.randint(len(options), (), generator=rng))]

    if chance(settings.empty):
        return Caption((), ())
    if example.captions:
        words = one_of(example.captions).split()
        return Caption(tuple(words), (None,) * len(words))
    parts: list[tuple[str, Role | None]] = [(word, None) for word in one_of(OPENINGS).split()]
    colour = None if chance(settings.without_colour) else example.colour
    kind = GENERAL_KIND if example.kind is None or chance(settings.general) else example.kind
    filler = [one_of(fillers)] if fillers and chance(settings.filler) else []
    several = chance(settings.plural)
    thing = [*filler, *([colour] if colour else []), plural(kind) if several else kind]
    if not several:
        parts.append((article(thing[0]), None))
    parts += [(word, None) for word in filler]
    parts += [(word, "flower") for word in thing[len(filler) :]]
    if example.background and not chance(settings.without_background):
        for word in one_of(SCENES).format(example.background).split():
            scenery = word in (example.background, "background")
            parts.append((word, "background" if scenery else None))
    return Caption(tuple(word for word, _ in parts), tuple(role for _, role in parts))


def plain(example: Example) -> str:
    """The plainest full caption of a photo: what `study` and the benchmarks call it."""
    if example.captions:
        return example.captions[0]
    kind = example.kind or GENERAL_KIND
    return caption({"kind": kind, "colour": example.colour, "background": example.background})


def plural(word: str) -> str:
    """Several of a kind."""
    return IRREGULAR.get(word, f"{word}s")

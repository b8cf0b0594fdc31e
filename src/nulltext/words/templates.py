"""Captions and edits by template, for photos that are labelled instead of described.

A label is {"kind", "colour", "background"}, each a word or null, and its caption what the bundled
model was taught:

    a photo of a COLOUR KIND with a BACKGROUND background
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Label: TypeAlias = Mapping[str, str | None]

VOWELS = "aeiou"

SWAPPED_COLOURS = {
    "red": "yellow",
    "orange": "purple",
    "yellow": "purple",
    "purple": "yellow",
    "pink": "yellow",
    "white": "red",
}
"""The colour that an edit asks for: one far away on the colour circle; red for any other."""


def caption(label: Label) -> str:
    """Compose a label's caption; its kind must be known."""
    colour, kind, background = label["colour"], label["kind"], label["background"]
    thing = f"{colour} {kind}" if colour else str(kind)
    scene = f" with a {background} background" if background else ""
    return f"a photo of {article(thing)} {thing}{scene}"


def article(word: str) -> str:
    """The indefinite article before a word."""
    return "an" if word[:1] in VOWELS else "a"


def recoloured(label: Label) -> str:
    """The caption of the same flower in another colour: the target of an edit."""
    return caption({**label, "colour": SWAPPED_COLOURS.get(str(label["colour"]), "red")})

"""Words as handles: each word of the source prompt can be retyped, weighed, removed, added to.

Chips and the target prompt are one text in two forms, and the page alone turns the one into the
other (`front/spelling.js`): a round trip in between would be late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nulltext.errors import OptionError
from nulltext.words.alignment import ARTICLES, align_words
from nulltext.words.prompts import TokenizedPrompt, clean, word_key

LIGHTEST, HEAVIEST = -2.0, 4.0
"""Weights that a chip can have."""
MOST_CHIPS = 100
LETTERS = 1000
"""Most of a chip, and of the gap before it."""


@dataclass(frozen=True)
class Chip:
    """One word of the target in the making."""

    source: int | None
    """Index of the source's word that it stands for; None for an added one."""
    text: str
    """What it says now; blank: nothing."""
    weight: float = 1.0
    gap: str = " "
    """What stands between it and the word before."""


def chips_of(prompt: TokenizedPrompt) -> list[Chip]:
    """A chip for each word of the source prompt, untouched."""
    ends = [0, *(word.end for word in prompt.words)]
    gaps = [prompt.text[end : word.start] for end, word in zip(ends, prompt.words, strict=False)]
    pairs = zip(prompt.words, gaps, strict=True)
    return [Chip(index, word.text, gap=gap) for index, (word, gap) in enumerate(pairs)]


def difference(source: Sequence[str], target: Sequence[str]) -> str:
    """What a target changes, in short: "orange → red, + snow, − dark"."""
    said = []
    for i, j in align_words(source, target):
        before = None if i is None else source[i]
        after = None if j is None else target[j]
        if (before or "a").lower() in ARTICLES and (after or "a").lower() in ARTICLES:
            continue
        if before is None:
            said.append(f"+ {after}")
        elif after is None:
            said.append(f"− {before}")
        elif word_key(before) != word_key(after):
            said.append(f"{before} → {after}")
    return ", ".join(said)


def weights_of(chips: Sequence[Chip]) -> dict[str, float]:
    """The weights that differ from 1, by word."""
    said = [(chip.text.strip(), chip.weight) for chip in chips]
    return {word: weight for word, weight in said if word and weight != 1}


def read_chips(values: object, words: int) -> list[Chip]:
    """Chips as a page sends them: a list of {source, text, weight, gap}.

    Args:
        words: how many the source has.

    Raises:
        OptionError: they are something else.
    """
    if not isinstance(values, list) or len(values) > MOST_CHIPS:
        raise OptionError(f"The words are no list of at most {MOST_CHIPS}; load the page again.")
    return [_read_chip(value, words) for value in values]


def _read_chip(value: Any, words: int) -> Chip:
    fields: Mapping[str, Any] = value if isinstance(value, dict) else {}
    source, weight = fields.get("source"), fields.get("weight", 1)
    text, gap = fields.get("text"), fields.get("gap", " ")
    known = source is None or (type(source) is int and 0 <= source < words)
    weighed = isinstance(weight, int | float) and LIGHTEST <= weight <= HEAVIEST
    written = all(isinstance(said, str) and len(said) <= LETTERS for said in (text, gap))
    if not (known and written and weighed):
        raise OptionError(
            f"A word cannot be read; its weight goes from {LIGHTEST:g} to {HEAVIEST:g}."
        )
    return Chip(source, clean(str(text)), float(weight), str(gap))

"""Words as handles: each word of the source prompt can be retyped, weighed, removed, added to.

With words w_1 … w_n between the gaps g_0 … g_n of the source prompt, the target is

    g_0 c_1 g c_2 g … c_m g_n,   g = g_i between the neighbours i and i + 1, else one space

where c are the chips in their order, so untouched chips give the source back, character for
character.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nulltext.errors import OptionError
from nulltext.invisible import clean
from nulltext.prompts import TokenizedPrompt, Word, word_key
from nulltext.word_pairing import ARTICLES, align_words

LIGHTEST, HEAVIEST = -2.0, 4.0
"""Weights that a chip can have."""
MOST_CHIPS = 100
INDEFINITE = ("a", "an")
VOWELS = "aeiou"


@dataclass(frozen=True)
class Chip:
    """One word of the target in the making."""

    source: int | None
    """Index of the source's word that it stands for; None for an added one."""
    text: str
    """What it says now; blank: nothing."""
    weight: float = 1.0


def chips_of(prompt: TokenizedPrompt) -> list[Chip]:
    """A chip for each word of the source prompt, untouched."""
    return [Chip(index, word.text) for index, word in enumerate(prompt.words)]


def target_of(prompt: TokenizedPrompt, chips: Sequence[Chip]) -> str:
    """The target prompt that chips make."""
    words = prompt.words
    said = [chip for chip in chips if chip.text.strip()]
    if not said or not words:
        return " ".join(chip.text.strip() for chip in said)
    first, last = said[0].source == 0, said[-1].source == len(words) - 1
    parts = [prompt.text[: words[0].start] if first else ""]
    for before, chip in zip([None, *said], said, strict=False):
        parts += [_gap(prompt.text, words, before, chip), chip.text.strip()]
    parts.append(prompt.text[words[-1].end :] if last else "")
    return "".join(parts)


def with_articles(prompt: TokenizedPrompt, chips: Sequence[Chip]) -> list[Chip]:
    """The chips with "a" or "an" as the word behind it wants; the source's own where it stays."""
    fitted = []
    for index, chip in enumerate(chips):
        following = next((after for after in chips[index + 1 :] if after.text.strip()), None)
        text = chip.text
        if chip.source is not None and text.lower() in INDEFINITE and following is not None:
            text = _article(prompt.words, chip.source, following)
        fitted.append(replace(chip, text=text))
    return fitted


def _article(words: Sequence[Word], index: int, following: Chip) -> str:
    own, neighbour = words[index].text, index + 1
    beside = following.source == neighbour < len(words)
    if beside and following.text == words[neighbour].text:
        return own
    return own[:1] + ("n" if following.text.strip()[0].lower() in VOWELS else "")


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


def _gap(text: str, words: Sequence[Word], before: Chip | None, chip: Chip) -> str:
    if before is None:
        return ""
    if before.source is not None and chip.source == before.source + 1:
        return text[words[before.source].end : words[chip.source].start]
    follows = chip.source is not None and chip.source > 0
    touching = follows and words[chip.source - 1].end == words[chip.source].start  # type: ignore[operator,index]
    return "" if touching else " "


def weights_of(chips: Sequence[Chip]) -> dict[str, float]:
    """The weights that differ from 1, by word."""
    said = {chip.text.strip(): chip.weight for chip in chips}
    return {word: weight for word, weight in said.items() if word and weight != 1}


def read_chips(values: object, words: int) -> list[Chip]:
    """Chips as a page sends them: a list of {source, text, weight}.

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
    source, text, weight = fields.get("source"), fields.get("text"), fields.get("weight", 1)
    known = source is None or (type(source) is int and 0 <= source < words)
    weighed = isinstance(weight, int | float) and LIGHTEST <= weight <= HEAVIEST
    if not (known and isinstance(text, str) and weighed):
        raise OptionError(
            f"A word cannot be read; its weight goes from {LIGHTEST:g} to {HEAVIEST:g}."
        )
    return Chip(source, clean(text), float(weight))

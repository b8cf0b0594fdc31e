"""What an edit is about: the words that differ between two prompts, and the nouns they belong to.

English phrases end in their noun: of "a large orange flower with a dark background" the nouns are
"flower" and "background". A word that differs speaks of its phrase's noun, so "orange" -> "red" is
about the flower. Three kinds of change are told apart:

    things       a thing gets another colour, kind or attribute, comes or goes
    background   what lies behind the things: they are what stays
    picture      all of it: its kind ("a painting of"), style, light, season or weather; things and
                 background at once; or nothing that can be told

A prompt with articles of another European language is not read as English: there a word that
differs is taken for itself.
Source: our own rule, beside those of `alignment`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nulltext.words.alignment import ARTICLES, OPENERS, align_words
from nulltext.words.prompts import (
    TokenizedPrompt,
    find_words,
    has_word,
    is_punctuation,
    word_key,
)

About = Literal["things", "background", "picture"]

# fmt: off
BACKDROPS = frozenset(("backdrop", "backdrops", "background", "backgrounds", "scenery"))
"""Nouns for all that lies behind the things."""
PICTURES = frozenset((
    "animation", "anime", "art", "artwork", "cartoon", "comic", "drawing", "engraving", "etching",
    "illustration", "image", "mosaic", "painting", "photo", "photograph", "picture", "portrait",
    "poster", "print", "render", "rendering", "sculpture", "selfie", "shot", "sketch", "snapshot",
    "stencil", "watercolor", "watercolour",
))
"""Nouns for the picture itself."""
LIGHTS = frozenset(("brightness", "contrast", "exposure", "light", "lighting", "shade"))
"""Nouns that change the whole picture; before another noun ("light blue") they do not."""
LOOKS = frozenset((
    "4k", "autumn", "bokeh", "canvas", "cinematic", "closeup", "cloudy", "dawn", "daylight",
    "dusk", "evening", "fog", "foggy", "hdr", "mist", "misty", "monochrome", "moonlight",
    "morning", "night", "nighttime", "noir", "noon", "quality", "rain", "rainy", "sepia",
    "snow", "snowy", "spring", "storm", "stormy", "style", "summer", "sunlight", "sunny",
    "sunrise", "sunset", "underwater", "vintage", "winter",
))
"""Words for style, light, season and weather, which change the whole picture."""
NOUNS_IN_ING = PICTURES | LIGHTS | LOOKS | frozenset((
    "awning", "bedding", "building", "ceiling", "clothing", "duckling", "earring", "lightning",
    "pudding", "railing", "seedling", "stocking", "string", "wedding",
))
"""Nouns that end as "sitting" does."""
FOREIGN = frozenset((
    "avec", "con", "das", "de", "del", "der", "des", "di", "die", "du", "ein", "eine", "einem",
    "einen", "einer", "el", "et", "la", "le", "les", "mit", "om", "un", "una", "und", "une", "uno",
))
"""Articles and prepositions of other European languages."""
COLOURLESS = frozenset(("black", "white"))
"""Together, as nouns, they are a look."""
# fmt: on
SHORT = 5
"""Letters up to which a word in "ing" is a noun: "ring", "king", "swing"."""


@dataclass(frozen=True)
class Change:
    """What an edit is about."""

    about: About
    source: tuple[int, ...] = ()
    """Words of the source prompt, by index: the nouns of the things that change; for a background,
    of the things that stay."""
    added: tuple[int, ...] = ()
    """Words of the target prompt, by index: nouns that no word of the source is paired with."""
    attributes: tuple[str, ...] = ()
    """Words before their nouns that are new in the target, folded, whatever is weighted."""
    reshaped: bool = False
    """Whether a noun or what a thing does comes, goes or changes, so that an outline may be
    another one."""


def read_change(
    source: TokenizedPrompt, target: TokenizedPrompt, weights: Mapping[str, float] | None = None
) -> Change:
    """Read off two prompts what an edit is about.

    Args:
        weights: factors of words of the target, by name (see `find_words`), of which the later
            wins; words whose factor is not 1 count as changed.

    Returns: `Change("picture")` where nothing else can be told.
    """
    old, new = ([word_key(word.name) for word in prompt.words] for prompt in (source, target))
    pairs = align_words(old, new)
    changed_old = {i for i, j in pairs if i is not None and (j is None or old[i] != new[j])}
    changed_new = {j for i, j in pairs if j is not None and (i is None or old[i] != new[j])}
    new_words = set(changed_new)
    factors: dict[int, float] = {}
    for name, factor in (weights or {}).items():
        if has_word(target, name):
            factors |= dict.fromkeys(find_words(target, name), factor)
    weighted = {at for at, factor in factors.items() if factor != 1}
    changed_new |= {j for j, word in enumerate(target.words) if weighted.intersection(word.tokens)}
    being_old, being_new = _without_doing(old, changed_old), _without_doing(new, changed_new)
    if _nouns(old, being_old) or _nouns(new, being_new):
        changed_old, changed_new = being_old, being_new  # "wearing a hat" is about the hat
    deeds = changed_old - being_old or changed_new - being_new
    heads_old, heads_new = _nouns(old, changed_old), _nouns(new, changed_new)
    if FOREIGN.intersection(old, new):
        heads_old, heads_new = _content(old, changed_old), _content(new, changed_new)
    said = {old[i] for i in changed_old} | {new[j] for j in changed_new}
    nouns = {old[i] for i in heads_old} | {new[j] for j in heads_new}
    if said & LOOKS or nouns & (PICTURES | LIGHTS) or nouns >= COLOURLESS or not nouns:
        return Change("picture")
    if nouns & BACKDROPS:
        if not nouns <= BACKDROPS:
            return Change("picture")
        things = tuple(sorted(_things(old)))
        return Change("background", source=things) if things else Change("picture")
    before = {j: i for i, j in pairs if i is not None and j is not None}
    kept = {before[j] for j in heads_new if j in before}
    return Change(
        "things",
        source=tuple(sorted(heads_old | kept)),
        added=tuple(sorted(j for j in heads_new if j not in before)),
        attributes=tuple(new[j] for j in sorted(_described(new) & new_words)),
        reshaped=bool(deeds or heads_old & changed_old or heads_new & changed_new),
    )


def _nouns(keys: Sequence[str], of: Iterable[int]) -> set[int]:
    """Return the nouns of the phrases that hold some words."""
    of = set(of)
    return {_noun(phrase, keys) for phrase in _phrases(keys) if of.intersection(phrase)}


def _described(keys: Sequence[str]) -> set[int]:
    """Return the words that stand in a phrase before its noun."""
    phrases = _phrases(keys)
    return {i for phrase in phrases for i in phrase if i < _noun(phrase, keys)}


def _without_doing(keys: Sequence[str], changed: set[int]) -> set[int]:
    return {i for i in changed if not _is_doing(keys[i])}


def _content(keys: Sequence[str], of: set[int]) -> set[int]:
    """Return those of some words that are in phrases."""
    return {i for phrase in _phrases(keys) for i in phrase if i in of and keys[i] not in FOREIGN}


def _things(keys: Sequence[str]) -> set[int]:
    """Return the nouns of all phrases but those of the picture and its background."""
    nouns = {_noun(phrase, keys) for phrase in _phrases(keys)}
    return {i for i in nouns if keys[i] not in BACKDROPS | PICTURES | LIGHTS | LOOKS}


def _phrases(keys: Sequence[str]) -> list[list[int]]:
    """Cut a prompt at articles, prepositions and marks, and behind what a thing does ("a cat
    wearing | hats"): indices of the words of each phrase."""
    phrases: list[list[int]] = [[]]
    for index, key in enumerate(keys):
        if key in ARTICLES or key in OPENERS or is_punctuation(key):
            phrases.append([])
            continue
        does = bool(phrases[-1]) and _is_doing(key)
        phrases[-1].append(index)
        if does:
            phrases.append([])
    return [phrase for phrase in phrases if phrase]


def _noun(phrase: Sequence[int], keys: Sequence[str]) -> int:
    """Return a phrase's last word that does not say what a thing does, else its last one."""
    return next((i for i in reversed(phrase) if not _is_doing(keys[i])), phrase[-1])


def _is_doing(key: str) -> bool:
    return len(key) > SHORT and key.endswith("ing") and key not in NOUNS_IN_ING

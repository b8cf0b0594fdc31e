"""Instructions in the place of captions: found in a target, and turned into the caption that was
meant where that is safe.

A target says what the edited picture shows, in the words of the source with others where it
differs. "make it red" is no such caption. It is read by a small grammar:

    [please] make | turn | change | … THING [into | to] NEW
    [please] replace | swap | … THING with | by | for NEW
    [please] add | insert NEW [to THING],  put NEW on THING,  give THING NEW
    [please] remove | delete | … THING,  THING should be NEW

THING is a pronoun or words that the source has, which tells "turn the flower red" from the caption
"turn of the century house". The caption that was meant is the source with one phrase exchanged:
a colour, a noun, or what kind of picture it is. Where more than one could be meant there is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nulltext.prompts import spoken
from nulltext.templates import article
from nulltext.word_pairing import ARTICLES, OPENERS

# fmt: off
SEPARATORS = {
    **dict.fromkeys(("make", "render"), ("into", "")),
    **dict.fromkeys(("paint", "color", "colour", "dye", "recolor", "recolour"), ("in", "")),
    "turn": ("into", "to", "in", ""),
    "change": ("into", "to", "for", "with"),
    **dict.fromkeys(("convert", "transform"), ("into", "to")),
    **dict.fromkeys(("exchange", "replace", "substitute", "swap", "switch"),
                    ("with", "by", "for", "to")),
}
"""Verbs that make one thing of another, with the words between the two; "" for none."""
REMOVING = frozenset(("delete", "eliminate", "erase", "remove"))
ADDING = frozenset(("add", "insert"))
PUTTING = frozenset(("place", "put"))
ADJUSTING = frozenset((
    "blur", "brighten", "crop", "darken", "decrease", "enhance", "enlarge", "fix", "flip", "hide",
    "improve", "increase", "let", "move", "reduce", "rotate", "set", "sharpen", "shrink",
))
"""Verbs of which no caption is made."""
VERBS = REMOVING | ADDING | PUTTING | ADJUSTING | frozenset((*SEPARATORS, "give"))
SURE = frozenset((
    "change", "convert", "delete", "erase", "make", "recolor", "recolour", "remove", "replace",
    "transform", "turn",
))
"""Verbs that may stand before a bare word of the source; others begin captions: "color photo"."""

PRONOUNS = frozenset(("everything", "her", "him", "it", "that", "them", "this"))
DETERMINERS = ARTICLES | {
    "all", "another", "her", "his", "its", "my", "our", "some", "that", "their", "these", "this",
    "those", "two", "your",
}
GENERAL = frozenset((
    "background", "brightness", "color", "colors", "colour", "colours", "contrast", "image",
    "light", "lighting", "photo", "picture", "saturation", "sky", "style",
))
"""Things that a photo has whether or not its caption says so."""
COLOURS = frozenset((
    "beige", "black", "blue", "brown", "cream", "crimson", "cyan", "gold", "golden", "gray",
    "green", "grey", "indigo", "lilac", "magenta", "maroon", "mauve", "orange", "pink", "purple",
    "red", "scarlet", "silver", "teal", "turquoise", "violet", "white", "yellow",
))
TONES = frozenset(("bright", "dark", "deep", "light", "pale"))
SIZES = frozenset(("big", "large", "little", "old", "small", "tall", "young"))
PICTURES = frozenset((
    "anime", "cartoon", "drawing", "engraving", "etching", "image", "painting", "photo",
    "photograph", "picture", "print", "render", "rendering", "sculpture", "sketch", "watercolor",
    "watercolour",
))
# fmt: on
SHORT = 2
"""Words that "remove" stands before in no caption: "remove people", not "remove before flight"."""

POLITE = re.compile(
    r"(?i)^(?:(?:please|now|then|just|can you|could you|would you|i want(?: you)? to|"
    r"let's)[\s,]+)+"
)
SHOULD = re.compile(r"(?i)^(?P<thing>.+?) (?:should|must|shall|needs to|has to) (?:be|become) ")
LIKENESS = re.compile(r"(?i)^(?:look like|look|be|become|as|like) ")


@dataclass(frozen=True)
class Instruction:
    """An instruction that stands where a caption should."""

    caption: str | None
    """The target that was meant; None where that is not sure."""
    removes: bool = False
    """Whether it takes something away."""


class _Order(NamedTuple):
    """What an instruction asks for."""

    verb: str
    thing: list[str]
    """The words for what is there; none where something is added to the whole."""
    new: list[str]
    """The words for what shall be there."""


def read_instruction(source: str, target: str) -> Instruction | None:
    """An instruction, read against the caption that it is to change; None for a caption.

    Args:
        source: may be empty, which makes fewer targets instructions.
    """
    text = POLITE.sub("", target.strip()).rstrip(".!? ")
    words, known = text.split(), frozenset(spoken(source)) - ARTICLES - OPENERS
    if not words or spoken(source)[:1] == spoken(text)[:1]:
        return None
    order = _read(text, words, known)
    if order is None:
        return None
    caption = _Caption(source).changed(order)
    return Instruction(None if caption == source else caption, removes=order.verb in REMOVING)


def _read(text: str, words: list[str], known: frozenset[str]) -> _Order | None:
    should = SHOULD.match(text)
    if should and _is_known(should["thing"].split(), known):
        return _Order("make", should["thing"].split(), text[should.end() :].split())
    verb, rest = words[0].lower(), words[1:]
    if text.lower().startswith(("get rid of ", "take away ", "take out ", "cut out ")):
        verb, rest = "remove", words[3 if verb == "get" else 2 :]
    bare = rest[1:] if rest and rest[0].lower() in ("to", "into") else rest
    if verb in SEPARATORS and verb in SURE and _is_colour(bare):  # "make red"
        return _Order(verb, ["it"], bare)
    if not rest or rest[0].lower() in OPENERS:
        return None
    if verb in SEPARATORS:
        return _made(verb, rest, known)
    if verb in ADDING:
        return _Order(verb, [], rest)
    if verb in PUTTING:
        placed = _is_determined(rest) and any(word.lower() in OPENERS for word in rest)
        return _Order(verb, [], rest) if placed else None
    if verb == "give":
        return _given(rest, known)
    if verb in REMOVING and (_is_determined(rest) or len(rest) <= SHORT or _is_known(rest, known)):
        return _Order(verb, rest, [])
    adjusts = verb in ADJUSTING and _is_determined(rest)
    if adjusts and any(_is_known(rest[:k], known) for k in range(1, len(rest) + 1)):
        return _Order(verb, rest, [])
    return None


def _made(verb: str, rest: list[str], known: frozenset[str]) -> _Order | None:
    """Of "make THING NEW" and "replace THING with NEW": the longest thing that the source names."""
    lower = [word.lower() for word in rest]
    for separator in SEPARATORS[verb]:
        cuts = [k for k in range(len(rest) - 1, 0, -1) if separator in ("", lower[k])]
        for cut in sorted(cuts, key=lambda k: not _is_known(rest[:k], known)):
            thing, new = rest[:cut], rest[cut + (1 if separator else 0) :]
            sure = verb in SURE or _is_determined(thing)
            # "replace the lamp with …" asks for something, though the source has no lamp.
            clear = separator != "" or _is_colour(new)
            meant = _is_known(thing, known) or (clear and _is_determined(thing))
            if sure and meant and new and (separator or new[0].lower() not in OPENERS):
                return _Order(verb, thing, LIKENESS.sub("", " ".join(new)).split())
    whole = "" not in SEPARATORS[verb] and _is_determined(rest) and _is_known(rest, known)
    return _Order(verb, rest, []) if whole else None


def _given(rest: list[str], known: frozenset[str]) -> _Order | None:
    for cut in range(1, len(rest)):
        if _is_determined(rest[cut:]) and _is_known(rest[:cut], known):
            return _Order("add", [], rest[cut:])
    return None


def _is_colour(words: Sequence[str]) -> bool:
    lower = [word.lower() for word in words]
    return bool(lower) and lower[-1] in COLOURS and all(word in TONES for word in lower[:-1])


def _is_determined(words: Sequence[str]) -> bool:
    first = words[0].lower() if words else ""
    return first in PRONOUNS or (first in DETERMINERS and len(words) > 1)


def _is_known(thing: Sequence[str], known: frozenset[str]) -> bool:
    """Whether words name what the source does, by their last one, or it as a whole."""
    said = spoken(" ".join(thing))
    if not said:
        return False
    return (len(said) == 1 and said[0] in PRONOUNS) or said[-1] in known | GENERAL


class _Caption:
    """A caption of which one phrase is exchanged."""

    def __init__(self, text: str) -> None:
        self.words = text.strip().rstrip(".").split()
        self.keys = [word.lower().strip(",;:\"'") for word in self.words]

    def changed(self, order: _Order) -> str | None:
        """What an order makes of it; None where that is not sure."""
        several = any(word.lower() in VERBS or word[-1] in ",;" for word in order.new)
        if not self.words or several or '"' in " ".join(self.words):  # what a sign says stays
            return None
        if order.verb in REMOVING:
            return self._without(_bare(order.thing))
        if order.verb in ADDING | PUTTING:
            return self._with(order.new)
        if not order.new or order.verb in ADJUSTING:
            return None
        thing = _bare(order.thing)
        if _is_colour(order.new):
            return self._recoloured(thing, order.new)
        return self._swapped(thing, order.new, named=_is_determined(order.thing))

    def _recoloured(self, thing: list[str], new: list[str]) -> str | None:
        """With another colour of a thing, or with one."""
        if thing[-1] in ("color", "colour"):
            thing = ["it"]
        if thing[0] in PRONOUNS:
            colours = [k for k, key in enumerate(self.keys) if key in COLOURS]
            if len(colours) == 1:
                return self._put(colours[0], colours[0] + 1, new)
            if colours:
                return None
        head = self._head(thing)
        if head is None:
            return None
        first = head - 1 if head and self.keys[head - 1] in COLOURS | TONES else head
        return self._put(first, head, new)

    def _swapped(self, thing: list[str], new: list[str], *, named: bool) -> str | None:
        """With another noun in the place of a thing's."""
        keys = [word.lower() for word in new]
        determined, noun = keys[0] in DETERMINERS, [*new[1:]] if keys[0] in DETERMINERS else new
        if not noun or ("background" in thing and noun[-1].lower() != "background"):
            return None
        if thing[0] in PRONOUNS and any(word in PICTURES for word in keys):
            if "of" in keys:  # "make this a painting of a dog"
                return " ".join(new)
            is_picture = len(self.keys) > 2 and self.keys[1] in PICTURES and self.keys[2] == "of"
            return self._put(1, 2, noun) if is_picture else None
        plural = noun[-1].lower().endswith("s") and not noun[-1].lower().endswith("ss")
        head = self._head(thing)
        if head is None or (named and not determined and not plural):
            return None  # "make it happy": not sure to be a noun
        first = head - len(thing) + 1 if thing[0] not in PRONOUNS else head
        begin = first
        while begin and self.keys[begin - 1] in COLOURS | TONES | SIZES:
            begin -= 1
        if any(word in COLOURS for word in keys):
            first = begin
        kept = [] if not begin or self.keys[begin - 1] not in ARTICLES else [begin - 1]
        if determined and kept:
            return self._put(kept[0], head + 1, [new[0], *self.words[begin:first], *noun])
        if plural and kept and self.keys[kept[0]] != "the":
            return self._put(kept[0], head + 1, [*self.words[begin:first], *noun])
        return self._put(first, head + 1, noun)

    def _with(self, new: list[str]) -> str | None:
        """With something more, wherever it is said to go on what is there already."""
        there = next((k for k, word in enumerate(new) if word.lower() in OPENERS), len(new))
        place = [word.lower() for word in new[there + 1 :]]
        if not there or len(new[:there]) > 4:
            return None
        elsewhere = place and place[-1] not in PRONOUNS and place[-1] not in self.keys
        kept = new if elsewhere else new[:there]
        joint = "and" if "with" in self.keys else "with"
        return " ".join([*self.words, joint, *kept])

    def _without(self, thing: list[str]) -> str | None:
        """Without the "with …" that it ends in, if that is the thing."""
        if (
            "with" not in self.keys
            or thing[-1] in PRONOUNS | GENERAL
            or self.keys[-len(thing) :] != thing
        ):
            return None
        at = len(self.keys) - 1 - self.keys[::-1].index("with")
        others = set(self.keys[at + 1 : -len(thing)]) - ARTICLES - COLOURS - TONES - SIZES
        return None if others or not at else " ".join(self.words[:at])

    def _head(self, thing: list[str]) -> int | None:
        """Index of the last word of the one phrase that a thing is."""
        if thing[0] in PRONOUNS:
            return self._subject()
        size = len(thing)
        places = [k for k in range(len(self.keys)) if self.keys[k : k + size] == thing]
        return places[0] + size - 1 if len(places) == 1 else None

    def _subject(self) -> int | None:
        """Index of the noun in "a photo of a white NOUN …", if the caption begins so."""
        at = 3 if self.keys[1:2] and self.keys[1] in PICTURES and self.keys[2:3] == ["of"] else 0
        if self.keys[at : at + 1] and self.keys[at] in ARTICLES:
            at += 1
        while at < len(self.keys) and self.keys[at] in COLOURS | TONES | SIZES:
            at += 1
        ends = self.keys[at + 1 : at + 2]
        return at if at < len(self.keys) and (not ends or ends[0] in OPENERS) else None

    def _put(self, start: int, end: int, new: Sequence[str]) -> str:
        """With new words from start to end, and "a" or "an" before them as they ask."""
        marks = self.words[end - 1][len(self.words[end - 1].rstrip(",;:")) :] if end > start else ""
        words = [*self.words[:start], *new[:-1], new[-1] + marks, *self.words[end:]]
        for at in (start - 1, start):
            if 0 <= at < len(words) - 1 and words[at].lower() in ("a", "an"):
                words[at] = article(words[at + 1].lower())
        if self.words[0][0].isupper():
            words[0] = words[0][0].upper() + words[0][1:]
        return " ".join(words)


def _bare(thing: Sequence[str]) -> list[str]:
    """A thing in lower case, without "the", "all of", "colour of" before it."""
    words = [word.lower().strip("\"'") for word in thing]
    if len(words) > 1 and words[0] in DETERMINERS:
        words = words[1:]
    if len(words) > 2 and words[0] in ("color", "colour") and words[1] == "of":
        return _bare(words[2:])
    return words

"""Captions: composed from labels, and derived from instructions that were given instead.

A target says what the edited picture shows, in the words of the source with others where it
differs. An instruction such as "make it red" begins with a verb, and goes on with a pronoun or with
a determiner and a noun; verbs that also begin captions need a noun of the source, which tells "turn
the flower red" from "turn table with a red record". The intended caption is derived in three cases:
another colour of a thing, another noun, and another kind of picture than a photo.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from nulltext.words.alignment import ARTICLES, OPENERS
from nulltext.words.prompts import plain_words

Label: TypeAlias = Mapping[str, str | None]
"""The "kind", "colour" and "background" of a photo, each a word or None."""

EDITED_COLOURS = {
    "red": "yellow",
    "orange": "purple",
    "yellow": "purple",
    "purple": "yellow",
    "pink": "yellow",
    "white": "red",
}
"""The colour that an edit asks for: one far away on the colour circle; red for any other."""


OPENINGS = ("a photo of", "a photo of", "a photo of", "a picture of", "a close photo of", "")
"""How captions begin that are composed from labels; as often as they stand here."""
FRAMES = ARTICLES | OPENERS | {word for opening in OPENINGS for word in plain_words(opening)}
"""Words of captions that name nothing that is shown."""


def caption(label: Label) -> str:
    """Compose "a photo of a COLOUR KIND with a BACKGROUND background"; the kind must be known."""
    colour, kind, background = label["colour"], label["kind"], label["background"]
    thing = f"{colour} {kind}" if colour else str(kind)
    scene = f" with a {background} background" if background else ""
    return f"a photo of {article(thing)} {thing}{scene}"


def recoloured(label: Label) -> str:
    """Compose the caption of the same flower in another colour: the target of an edit."""
    return caption({**label, "colour": EDITED_COLOURS.get(str(label["colour"]), "red")})


def article(word: str) -> str:
    return "an" if word[:1] in "aeiou" else "a"


# --- instructions ---------------------------------------------------------------------------------

# fmt: off
REMOVING = frozenset((
    "cut out", "delete", "eliminate", "erase", "get rid of", "remove", "take away", "take out",
))
REPLACING = frozenset(("exchange", "replace", "substitute", "swap", "switch"))
TURNING = frozenset(("change", "convert", "transform", "turn"))
PUTTING = frozenset(("insert", "place", "put"))
CHANGING = TURNING | REPLACING | frozenset((
    "color", "colour", "dye", "give", "make", "paint", "recolor", "recolour", "render",
))
ADJUSTING = frozenset((
    "blur", "brighten", "crop", "darken", "decrease", "enhance", "enlarge", "fix", "flip", "hide",
    "improve", "increase", "let", "move", "reduce", "rotate", "set", "sharpen", "shrink",
))
SURE = REMOVING | frozenset(("add", "convert", "recolor", "recolour", "replace", "transform"))
"""Verbs that do not begin captions if a determiner follows."""

PRONOUNS = frozenset(("everything", "her", "him", "it", "them", "this"))
DEFINITE = frozenset((
    "all", "her", "his", "its", "my", "our", "that", "the", "their", "these", "this", "those",
    "your",
))
DETERMINERS = ARTICLES | DEFINITE | {"another", "more", "some", "two"}
GENERAL = frozenset((
    "background", "brightness", "color", "colors", "colour", "colours", "contrast", "image",
    "light", "lighting", "photo", "picture", "saturation", "sky", "style",
))
LABELS = frozenset(("album", "board", "button", "cover", "key", "logo", "poster", "sign"))
"""Things with an inscription: "remove shoes sign" is a caption."""
COLOURS = frozenset((
    "beige", "black", "blue", "brown", "cream", "crimson", "cyan", "gold", "golden", "gray",
    "green", "grey", "indigo", "lilac", "magenta", "maroon", "mauve", "orange", "pink", "purple",
    "red", "scarlet", "silver", "teal", "turquoise", "violet", "white", "yellow",
))
TONES = frozenset(("bright", "dark", "deep", "light", "pale"))
ACTIONS = frozenset((
    "holding", "is", "looking", "lying", "playing", "running", "sitting", "sleeping", "standing",
    "walking", "wearing",
))
# fmt: on
MAX_WORDS = 100

POLITE = re.compile(
    r"^(?:(?:please|now|then|just|can you|could you|would you|i want(?: you)? to|let's)[\s,]+)+"
)
VERB = re.compile(r"(get rid of|take away|take out|cut out|\S+) (.+)")
WISH = re.compile(
    r"(?:it|(?:the|this|that) (?P<noun>[^\W\d_]+)) (?:should|must|needs to) (?:be|become) ."
)

_COLOUR = rf"(?:(?:{'|'.join(TONES)}) )*(?:{'|'.join(COLOURS)})"
COLOURED = re.compile(
    r"(?:make|turn|paint|(?:re)?colou?r|dye|change) "
    r"(?:it|this|(?:the|its) colou?r|the (?:colou?r of the )?(?P<noun>[^\W\d_]+)(?: colou?r)?) "
    rf"(?:(?:to|into) )?(?P<new>{_COLOUR})"
)
EXCHANGED = re.compile(
    rf"(?:change|replace|swap|turn) (?P<old>{'|'.join(COLOURS)}) (?:to|with|for|into) "
    rf"(?P<new>{_COLOUR})"
)
SWAPPED = re.compile(
    r"(?:replace|swap|change|turn|convert|transform) the (?P<noun>[^\W\d_]+) "
    rf"(?:with|for|by|to|into) (?P<article>an?) (?:(?P<colour>{_COLOUR}) )?(?P<new>[^\W\d_]+)"
)
STYLED = re.compile(
    r"(?:make|turn|change|convert|transform) (?:it|(?:this|the)(?: photo| picture| image)?) "
    r"(?:(?:into|to|look like) )?(?P<new>an? (?:(?:oil|pencil|charcoal|ink) )?"
    r"(?:cartoon|drawing|engraving|etching|painting|sculpture|sketch|watercolou?r))"
)
BEFORE = re.compile(
    rf"(?:an? (?:photo|photograph|picture|image) of )?(?:(?:an?|the) )?(?:(?:{'|'.join(TONES)}) )*"
)
"""Words before the colour of a caption's subject."""
OF_PHOTO = re.compile(r"(?i)an? (?:photo|photograph|picture|image) of (?=\w)")


@dataclass(frozen=True)
class Instruction:
    """An instruction that was given instead of a caption."""

    caption: str | None
    """The intended target; None if it is not certain."""
    removes: bool = False


def read_instruction(source: str, target: str) -> Instruction | None:
    """Recognise a target that is an instruction to change the source; return None for a caption.

    Args:
        source: the caption of the photo; if it is empty, fewer targets count as instructions.
    """
    words = target.rstrip(".!? \n").lower().split()
    if len(words) > MAX_WORDS:
        return None
    text = POLITE.sub("", " ".join(words))
    read = VERB.fullmatch(text)
    if read is None or plain_words(source)[:1] == plain_words(text)[:1] or _is_label(text.split()):
        return None
    known = frozenset(plain_words(source)) - ARTICLES - OPENERS | GENERAL
    rest = [word.strip(",;:\"'") for word in read[2].split()]
    wish = WISH.match(text)
    wished = wish is not None and (wish["noun"] is None or wish["noun"] in known)
    if not wished and not _is_order(read[1], rest, known):
        return None
    caption = None if '"' in source or "\u201c" in source else _intended_caption(source, text)
    return Instruction(None if caption == source else caption, removes=read[1] in REMOVING)


def _is_label(words: list[str]) -> bool:
    """Recognise "remove shoes sign", but not "remove the sign", "make it a red poster"."""
    before = [word for word in words[-3:-1] if word not in COLOURS]
    return words[-1] in LABELS and not (before and before[-1] in DETERMINERS)


def _is_order(verb: str, rest: list[str], known: Collection[str]) -> bool:
    first, others = rest[0], rest[1:]
    determined = first in DETERMINERS and bool(others) and others[0] not in OPENERS
    opened = any(word in OPENERS for word in others)
    names = _names(rest, known)
    if verb == "give":
        return (first in PRONOUNS or names) and any(word in DETERMINERS for word in others)
    if verb in PUTTING:
        return (determined or first in PRONOUNS) and opened
    if first in PRONOUNS:  # "fix it", but not "Fix It Felix"
        ends = not others or others[0] in OPENERS
        return verb in SURE | CHANGING or (verb in ADJUSTING and (ends or names))
    if verb == "add" and "to" in others[:-1]:
        return True
    if verb in REPLACING | TURNING and first in known and len(others) > 1:  # "replace cats with …"
        return others[0] in (("to", "into") if verb in TURNING else ("with", "by", "for", "to"))
    if verb in REMOVING and not others:
        return first in known
    sure = verb in SURE or (verb in ("make", "turn", "change") and rest[-1] in COLOURS)
    return (sure and determined) or (verb in CHANGING | ADJUSTING and names)


def _names(rest: list[str], known: Collection[str]) -> bool:
    """Whether words begin with "the" and a noun of the source, perhaps with adjectives."""
    opener = next((at for at, word in enumerate(rest) if word in OPENERS), 4)
    thing = {word.removesuffix("s") for word in rest[1 : min(opener, 4)]}
    return rest[0] in DEFINITE and not thing.isdisjoint(word.removesuffix("s") for word in known)


def _intended_caption(source: str, text: str) -> str | None:
    words = source.split()
    keys = [word.lower().rstrip(",;:.") for word in words]
    colours = [at for at, key in enumerate(keys) if key in COLOURS]
    only, noun = colours[0] if len(colours) == 1 else -1, 0
    if (read := STYLED.fullmatch(text)) and (photo := OF_PHOTO.match(source)):
        new = read["new"] if photo[0].islower() else read["new"].capitalize()
        return None if new.split()[-1] in keys else f"{new} of {source[photo.end() :]}"
    if read := EXCHANGED.fullmatch(text):
        noun = only + 1 if read["old"] in keys else 0
    elif read := COLOURED.fullmatch(text):
        if read["noun"]:
            noun = _head(words, keys, read["noun"])
        elif BEFORE.fullmatch(" ".join([*keys[: max(only, 0)], ""])):
            noun = only + 1
    elif read := SWAPPED.fullmatch(text):
        return _with_noun(words, keys, read)
    start = _colour_before(words, keys, noun)
    return _put(words, start, noun, read["new"]) if read and start is not None else None


def _head(words: list[str], keys: list[str], noun: str) -> int:
    """Return the index of a noun that occurs once, not as in "flower pot"; 0 if not certain."""
    if keys.count(noun) != 1:
        return 0
    at = keys.index(noun)
    ends = words[at].lower() != noun or not keys[at + 1 :] or keys[at + 1] in OPENERS | ACTIONS
    return at if ends else 0


def _colour_before(words: list[str], keys: list[str], noun: int) -> int | None:
    """Return the start of the one colour, with its tones, directly before a noun."""
    if not 0 < noun < len(keys) or keys[noun] in OPENERS | COLOURS:
        return None
    start, plain = noun - 1, COLOURS | TONES if keys[noun] == "background" else COLOURS
    if words[start].lower() not in plain or not keys[noun].replace("-", "").isalpha():
        return None  # "a red dog's ball"
    while start and keys[start - 1] in TONES:
        start -= 1
    before = words[start - 1].lower() if start else "a"
    return None if before in COLOURS | {"and", "or"} or before[-1] in ",;" else start


def _with_noun(words: list[str], keys: list[str], read: re.Match[str]) -> str | None:
    noun, new = read["noun"], read["new"]
    at, plain = _head(words, keys, noun), COLOURS | TONES
    plural = any(re.search("(?<![sui])s$", word) for word in (noun, new))
    if not at or plural or noun in plain | GENERAL or new in plain | {"one", *keys}:
        return None
    first = at
    while first and keys[first - 1] in plain:
        first -= 1
    if not first or keys[first - 1] not in ARTICLES or keys[at + 1 : at + 2] == ["of"]:
        return None
    text = f"{read['colour']} {new}" if read["colour"] else new
    start = first if read["colour"] else at
    return _put(words, start, at + 1, text, read["article"] if start == first else None)


def _put(words: list[str], start: int, end: int, new: str, given: str | None = None) -> str:
    """Replace words from start to end, and adapt "a" or "an" before them."""
    marks = words[end - 1][len(words[end - 1].rstrip(",;:.")) :]
    changed = [*words[:start], new + marks, *words[end:]]
    if start and words[start - 1].lower() in ("a", "an"):
        changed[start - 1] = given or article(new)
    if words[0][0].isupper():
        changed[0] = changed[0][0].upper() + changed[0][1:]
    return " ".join(changed)

"""Remove invisible characters from prompts and captions.

Notepad's byte-order mark, a web page's soft hyphens, a chat's marks of direction: to a tokenizer
each is a word of its own, or cuts one in two.
"""

from __future__ import annotations

import re
import unicodedata

INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffc\U000e0001]"
)
"""Soft hyphens, marks of order, direction and language, byte-order marks, places of objects, and
letters without a look."""

JOINERS = re.compile("[\u200c\u200d\U000e0020-\U000e007f]")
"""Joiners and non-joiners of letters and emoji, and the tags in flags of regions."""

UNDECODED = range(0xDC80, 0xDD00)
"""Surrogates that stand for bytes of names and arguments that are no text (PEP 383)."""


def clean(text: str) -> str:
    """A text without invisible characters, every kind of space and end of line as " ".

    A joiner stays where it forms a sign: behind an emoji (of a family, a profession, a flag), and
    behind a letter of a script without capitals (Persian, Hindi, Malayalam); a non-joiner within a
    word also before one (a Persian ending of a number or a foreign name).
    """
    text = INVISIBLE.sub("", "".join(" " if each.isspace() else each for each in text))
    text = "".join(each for each in text if unicodedata.category(each) != "Cc")
    return JOINERS.sub(lambda found: found[0] if _joins(text, found.start()) else "", text)


def _joins(text: str, at: int) -> bool:
    """Whether the joiner there stands at a sign that it can belong to."""
    after = text[at + 1 : at + 2]
    if text[at] == "\u200c" and at and text[at - 1] != " " and _is_caseless(after):
        return True
    while at and (JOINERS.match(text[at]) or unicodedata.category(text[at])[0] == "M"):
        at -= 1
    return unicodedata.category(text[at]) in ("So", "Sk") or _is_caseless(text[at])


def _is_caseless(sign: str) -> bool:
    return sign.isalpha() and sign.lower() == sign.upper()

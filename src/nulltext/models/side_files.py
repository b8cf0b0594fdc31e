"""Small JSON files that are kept beside a model's weights, under the weights' fingerprint.

    words.json      {"version": 1, "fingerprint": "…", "named": ["rose", …], "others": ["a", …],
                     "groups": {"kind": ["rose", …], "colour": […], "background": […]}}
    guidance.json   {"version": 1, "fingerprint": "…", "scale": 3.0}
    check.json      see `known_figure`

A small model knows the words of its captions and no others: it was taught to read past "cat", or
never saw that word. So `words.json` lists what the captions spoke of, in groups where they were
composed from labels (files without `groups` are read, too). Two spellings are one word as
the text encoder has it: case, and marks such as commas, do not count.

Models differ in how much guidance they bear: what Stable Diffusion takes at w = 7.5 is garish in
one that hears its words more clearly. So `guidance.json` suggests a guidance scale; it is the
default of inversions and of edits.

The files may come from a stranger, with the weights, so they are bounded and checked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from nulltext.errors import ModelError, reason_of
from nulltext.storage.files import replace_file
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text
from nulltext.words.alignment import ARTICLES, OPENERS
from nulltext.words.prompts import plain_words

WORDS_FILE, GUIDANCE_FILE = "words.json", "guidance.json"
VERSION = 1
"""Of all of them."""

MAX_BYTES = 4 * MEGABYTE

MOST_WORDS, LONGEST_WORD = 20_000, 40
"""Kept in the file; with four bytes a letter they stay below `MAX_BYTES`."""

MOST_GROUPS, MOST_IN_GROUP = 10, 40
"""Groups in the file, and the words of each: those that a page can offer side by side."""

LEAST, MOST = 1.0, 100.0
"""Bounds of a suggested w: at 1 there is no guidance, which null-text inversion needs."""

Content = TypeVar("Content")


def write_side_file(path: Path, fingerprint: str, content: Mapping[str, Any]) -> Path:
    """Keep content for the weights of this fingerprint; returns the file."""
    whole = {"version": VERSION, "fingerprint": fingerprint, **content}
    replace_file(path, (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def read_side_file(path: Path, parse: Callable[[Mapping[str, Any]], Content]) -> Content | None:
    """Read a side file and parse its content; None where there is no file.

    Args:
        parse: raises ValueError, KeyError, TypeError or AttributeError for what it cannot use.

    Raises:
        ModelError: the file is damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        content = parse_json(read_text(path, MAX_BYTES))
        if content["version"] != VERSION or not isinstance(content["fingerprint"], str):
            raise ValueError(f"its version is {content['version']!r}")
        return parse(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"'{path}' cannot be read ({reason_of(error)}); get it again, or delete it."
        ) from error


@dataclass(frozen=True)
class KnownWords:
    """Words that a model was taught; `word in known` asks for one, in lower case."""

    named: tuple[str, ...]
    """What a picture shows: kinds, colours, places; the most useful first."""
    others: tuple[str, ...]
    """The words around them: "a", "photo", plurals."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Those of `named` that may take each other's place, by their label: kind, colour, …"""

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset((*self.named, *self.others))

    def __contains__(self, word: str) -> bool:
        return word in self.words

    def missing(self, prompts: Sequence[str]) -> list[str]:
        said = (word for prompt in prompts for word in self._meaningful(prompt))
        return list(dict.fromkeys(word for word in said if word not in self))

    def blind_to(self, source: str, target: str) -> bool:
        """Whether all that differs between two prompts is unknown."""
        if not plain_words(source):  # a saved inversion may have no words
            return False
        before, after = Counter(self._meaningful(source)), Counter(self._meaningful(target))
        changed = (before - after) + (after - before)
        return bool(changed) and not any(word in self for word in changed)

    def _meaningful(self, prompt: str) -> list[str]:
        """List all words but articles, and prepositions that it knows, which show nothing.

        One that it does not know may be all that an edit asks for: "without".
        """
        little = ARTICLES | (OPENERS & self.words)
        return [word for word in plain_words(prompt) if word not in little]


def write_words(known: KnownWords, fingerprint: str, folder: Path) -> Path | None:
    """Keep the words beside the weights; returns the file, None where there are none to keep."""
    fields = {
        name: [w for w in getattr(known, name) if len(w) <= LONGEST_WORD][: MOST_WORDS // 2]
        for name in ("named", "others")
    }
    if not any(fields.values()):
        return None
    kept = {
        label: [word for word in words if word in fields["named"]][:MOST_IN_GROUP]
        for label, words in known.groups.items()
    }
    groups = {"groups": {label: words for label, words in kept.items() if words}}
    return write_side_file(
        folder / WORDS_FILE, fingerprint, fields | (groups if groups["groups"] else {})
    )


def read_words(folder: Path, fingerprints: Sequence[str]) -> KnownWords | None:
    """Read the words that weights were taught; None where none were kept, or for other weights."""

    def parse(content: Mapping[str, Any]) -> KnownWords | None:
        named, others = (_checked_words(content[name]) for name in ("named", "others"))
        groups = {
            label: _checked_words(words, MOST_IN_GROUP)
            for label, words in dict(content.get("groups", {})).items()
            if _checked_words([label])
        }
        if len(groups) > MOST_GROUPS:
            raise ValueError(f"it has more than {MOST_GROUPS} groups of words")
        fitting = content["fingerprint"] in fingerprints and (named or others)
        return KnownWords(named, others, groups) if fitting else None

    return read_side_file(folder / WORDS_FILE, parse)


def _checked_words(value: Any, most: int = MOST_WORDS) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"its words are no list of at most {most:,}")
    if not all(isinstance(word, str) and plain_words(word) == [word] for word in value):
        raise ValueError("one of its words is none")
    if any(len(word) > LONGEST_WORD for word in value):
        raise ValueError(f"a word has more than {LONGEST_WORD} letters")
    return tuple(value)


def write_guidance(scale: float, fingerprint: str, folder: Path) -> Path | None:
    """Keep a suggestion beside the weights; returns the file, None for 0: no suggestion."""
    if scale == 0:
        return None
    return write_side_file(folder / GUIDANCE_FILE, fingerprint, {"scale": scale})


def read_guidance(folder: Path, fingerprints: Sequence[str]) -> float | None:
    """Read the w suggested for weights; None where none was, or for other weights."""

    def parse(content: Mapping[str, Any]) -> float | None:
        scale = content["scale"]
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise ValueError("its scale is no number")
        if not LEAST < scale <= MOST:
            raise ValueError(f"its scale is not above {LEAST:g} and at most {MOST:g}")
        return float(scale) if content["fingerprint"] in fingerprints else None

    return read_side_file(folder / GUIDANCE_FILE, parse)

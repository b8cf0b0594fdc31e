"""The words that a model was taught, kept beside its weights, and a note on those that it was not.

A small model knows the words of its captions and no others: it was taught to read past "cat", or
never saw that word. So `words.json` lists what the captions spoke of, under the fingerprint of the
weights that learnt it:

    {"version": 1, "fingerprint": "…", "named": ["rose", …, "red", …], "others": ["a", "photo", …]}

Two spellings are one word as the text encoder has it: case, and marks such as commas, do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nulltext.models.beside import read_beside, write_beside
from nulltext.words.alignment import ARTICLES, OPENERS
from nulltext.words.prompts import listed, plain_words, quoted

FILE, VERSION = "words.json", 1

MOST_WORDS, LONGEST_WORD = 20_000, 40
"""Kept in the file; with four bytes a letter they stay below `beside.MAX_BYTES`."""


@dataclass(frozen=True)
class KnownWords:
    """What a model was taught; `word in known` asks for one, in lower case."""

    named: tuple[str, ...]
    """What a picture shows: kinds, colours, places; the most useful first."""
    others: tuple[str, ...]
    """The words around them: "a", "photo", plurals."""

    @cached_property
    def words(self) -> frozenset[str]:
        """All of them."""
        return frozenset((*self.named, *self.others))

    def __contains__(self, word: str) -> bool:
        return word in self.words

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """The words of prompts that it does not know, each once."""
        said = (word for prompt in prompts for word in self._telling(prompt))
        return list(dict.fromkeys(word for word in said if word not in self))

    def blind_to(self, source: str, target: str) -> bool:
        """Whether all that differs between two prompts is unknown."""
        if not plain_words(source):  # a saved inversion may have no words
            return False
        before, after = Counter(self._telling(source)), Counter(self._telling(target))
        changed = (before - after) + (after - before)
        return bool(changed) and not any(word in self for word in changed)

    def _telling(self, prompt: str) -> list[str]:
        """All words but articles, and prepositions that it knows: by themselves they show nothing.

        One that it does not know may be all that an edit asks for: "without".
        """
        little = ARTICLES | (OPENERS & self.words)
        return [word for word in plain_words(prompt) if word not in little]


def note_on_words(
    name: str,
    known: KnownWords | None,
    prompts: Sequence[str],
    changes: Sequence[tuple[str, str]] = (),
) -> str | None:
    """A sentence on words that a model does not know; None where there is nothing to say.

    Args:
        name: the model's. known: None says nothing, ever. changes: pairs of prompts, of which the
            second is what an edit makes of the first.
    """
    missing = known.missing(prompts) if known else []
    if known is None or not missing:
        return None
    words = listed([f'"{word}"' for word in missing])
    follows = "which will do little"
    blind = [pair for pair in changes if known.blind_to(*pair)]
    if blind:
        source, target = map(quoted, blind[0])
        follows = f"and {source} and {target} differ in nothing else: what changes is chance"
    return (
        f"Note: the model '{name}' has not learnt {words}, {follows}. "
        f"It knows {listed(known.named or known.others)}."
    )


def write_words(known: KnownWords, fingerprint: str, folder: Path) -> Path | None:
    """Keep the words beside the weights of this fingerprint; returns the file, None where there are
    no words to keep.

    Raises:
        OutputError: it cannot be written.
    """
    fields = {name: _fitting(getattr(known, name)) for name in ("named", "others")}
    if not any(fields.values()):
        return None
    return write_beside(folder / FILE, VERSION, fingerprint, fields)


def _fitting(words: Sequence[str]) -> list[str]:
    return [word for word in words if len(word) <= LONGEST_WORD][: MOST_WORDS // 2]


def read_words(folder: Path, fingerprints: Sequence[str]) -> KnownWords | None:
    """The words that weights of one of these fingerprints were taught; None where none were kept,
    or for other weights.

    Raises:
        ModelError: the file is damaged, or of another version.
    """

    def parse(content: Mapping[str, Any]) -> KnownWords | None:
        named, others = (_words(content[name]) for name in ("named", "others"))
        fitting = content["fingerprint"] in fingerprints and (named or others)
        return KnownWords(named, others) if fitting else None

    return read_beside(folder / FILE, VERSION, parse)


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MOST_WORDS:
        raise ValueError(f"its words are no list of at most {MOST_WORDS:,}")
    if not all(isinstance(word, str) and plain_words(word) == [word] for word in value):
        raise ValueError("one of its words is none")
    if any(len(word) > LONGEST_WORD for word in value):
        raise ValueError(f"a word has more than {LONGEST_WORD} letters")
    return tuple(value)

"""Which word of a target prompt stands for which word of the source.

Two passes. First the words that both prompts have are anchored, by the heaviest common subsequence:
content words weigh more than articles, prepositions and marks, and all articles are one word. Then
each changed stretch between two anchors is cut into phrases, where a preposition or conjunction
opens a new one; the k-th phrases of both sides are paired, opening word with opening word and the
others from their ends, since English phrases end in their noun:

    orange flower              orange flower                a     cat
      |      |                        |                     |      |
    white  daisy               ---- daisy  in the snow      the   dog

Words left over are deleted (source) or inserted (target).
Source: our own rule. Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.2, leave it to a person to say
which word replaces which, and their published code pairs by position alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nulltext.words.prompts import is_mark, word_key

Pair = tuple[int | None, int | None]

ARTICLES = frozenset({"a", "an", "the"})

# fmt: off
OPENERS = frozenset((
    "about", "above", "across", "after", "against", "along", "amid", "among", "and", "around", "as",
    "at", "before", "behind", "below", "beneath", "beside", "between", "beyond", "but", "by",
    "down", "during", "for", "from", "in", "inside", "into", "like", "near", "next", "of", "off",
    "on", "onto", "or", "out", "outside", "over", "past", "through", "to", "toward", "towards",
    "under", "up", "upon", "while", "with", "within", "without",
))
# fmt: on
"""English prepositions and conjunctions, which open a phrase; other languages have one phrase."""

CONTENT_WEIGHT = 3
"""Weight of a common content word; an article, preposition, conjunction or mark weighs 1."""


def align_words(source_words: Sequence[str], target_words: Sequence[str]) -> list[Pair]:
    """Pair the words of two prompts by the module's two passes.

    Returns:
        (i, j) for a word that is kept or substituted, (i, None) for a deleted one, (None, j) for an
        inserted one. Both indices ascend, each word is named once, and words are equal whatever
        their case.
    """
    source, target = [_key(w) for w in source_words], [_key(w) for w in target_words]
    pairs: list[Pair] = []
    i = j = 0
    for anchor_i, anchor_j in [*_anchors(source, target), (len(source), len(target))]:
        carried = _pair_stretch(source[i:anchor_i], target[j:anchor_j])
        pairs += _merged(carried, (i, anchor_i), (j, anchor_j))
        if anchor_i < len(source):
            pairs.append((anchor_i, anchor_j))
        i, j = anchor_i + 1, anchor_j + 1
    return pairs


def _key(word: str) -> str:
    key = word_key(word)
    return "a" if key in ARTICLES else key


def _anchors(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """The heaviest common subsequence, as early as possible, by dynamic programming."""
    n, m = len(source), len(target)
    best = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(n - 1, -1, -1):
        for j in range(m - 1, -1, -1):
            best[i][j] = max(best[i + 1][j], best[i][j + 1])
            if source[i] == target[j]:
                best[i][j] = max(best[i][j], best[i + 1][j + 1] + _weight(source[i]))
    found = []
    i = j = 0
    while i < n and j < m:
        kept = source[i] == target[j] and best[i + 1][j + 1] + _weight(source[i])
        if kept and best[i][j] == kept:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return found


def _weight(key: str) -> int:
    return 1 if key == "a" or key in OPENERS or is_mark(key) else CONTENT_WEIGHT


@dataclass
class _Phrase:
    """Indices of a phrase's opening word, if it has one, and of its content words."""

    opener: int | None = None
    content: list[int] = field(default_factory=list)


def _phrases(keys: Sequence[str]) -> list[_Phrase]:
    phrases = [_Phrase()]
    for index, key in enumerate(keys):
        if key in OPENERS:
            phrases.append(_Phrase(opener=index))
        elif key != "a" and not is_mark(key):
            phrases[-1].content.append(index)
    return phrases


def _pair_stretch(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """Substitutions within a stretch that has no word in common."""
    pairs = []
    for old, new in zip(_phrases(source), _phrases(target), strict=False):
        if old.opener is not None and new.opener is not None:
            pairs.append((old.opener, new.opener))
        shared = min(len(old.content), len(new.content))
        pairs += zip(old.content[-shared:], new.content[-shared:], strict=True) if shared else []
    return pairs


def _merged(
    carried: Sequence[tuple[int, int]], source: tuple[int, int], target: tuple[int, int]
) -> list[Pair]:
    """A stretch's pairs with its deleted and inserted words between them, in ascending order."""
    pairs: list[Pair] = []
    (i, i_end), (j, j_end) = source, target
    for old, new in [(source[0] + a, target[0] + b) for a, b in carried] + [(i_end, j_end)]:
        pairs += [(k, None) for k in range(i, old)]
        pairs += [(None, k) for k in range(j, new)]
        if old < i_end:
            pairs.append((old, new))
        i, j = old + 1, new + 1
    return pairs

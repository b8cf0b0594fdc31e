"""Pair the words of two prompts, and map the attention of one to the other.

A cross-attention layer gives every pixel a probability row over the L tokens of the prompt. An
edit reuses the rows p of the source prompt under the target prompt:

    p_target = gate * (p_source @ M) + (1 - gate) * p_own,    M: [L, L], gate: [L] in {0, 1},

M[i, j] being the share of source token i that target token j receives; the editor then scales the
row to sum to 1 again. A pair of words with token spans S and T has M = identity on S x T if
|S| = |T|, otherwise M[i, j] = 1 / |T|, so that each row of S sums to 1 and no attention is lost.
Inserted words have gate 0 (they keep p_own), deleted words have zero rows. Paddings are carried by
position, as the text encoder tells them apart: that of the target at position j takes the source's
at position j, or the source's first where the source has a word at j (it is the longer prompt).
Source: Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.2: word swap (replace), prompt refinement
(refine), attention re-weighting (token weights); unequal spans and paddings as in its published
code, which hands a longer source's words to the target's paddings: docs/editing.md has what each
rule keeps of a photo.

Words are paired in two passes. First the words that both prompts have are anchored, by the heaviest
common subsequence: content words weigh more than articles, prepositions and marks, and all articles
are one word. Then each changed stretch between two anchors is cut into phrases, where a preposition
or conjunction opens a new one; the k-th phrases of both sides are paired, opening word with opening
word and the others from their ends, since English phrases end in their noun:

    orange flower              orange flower                a     cat
      |      |                        |                     |      |
    white  daisy               ---- daisy  in the snow      the   dog

Words left over are deleted (source) or inserted (target).
Source: our own rule. Hertz et al. leave it to the user to say which word replaces which, and their
published code pairs by position alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nulltext.constants import Alignment
from nulltext.errors import OptionError, PromptError
from nulltext.words.prompts import TokenizedPrompt, find_words, is_punctuation, quoted, word_key

if TYPE_CHECKING:
    from torch import Tensor

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


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Which cross-attention a target prompt takes from its source."""

    mapping: Tensor
    """[L, L] float32 in [0, 1], row = source token, column = target token."""
    gate: Tensor
    """[L] float32: 1: takes the source's attention; 0: keeps its own."""


def attention_map(
    source: TokenizedPrompt, target: TokenizedPrompt, alignment: Alignment = "auto"
) -> AttentionMap:
    """Build M and the gate that carry cross-attention from the source to the target prompt.

    `auto` gives the attention of a substituted word to its substitute; `refine` carries only the
    words that both prompts have; `replace` pairs words by position and requires equally many.
    """
    import torch

    assert source.length == target.length, "both prompts must come from the same tokenizer"
    if source.streams:
        both = zip(source.streams, target.streams, strict=True)
        maps = [attention_map(old, new, alignment) for old, new in both]
        mapping = torch.block_diag(*(each.mapping for each in maps))
        return AttentionMap(mapping, torch.cat([each.gate for each in maps]))
    mapping = torch.zeros(source.length, source.length)
    gate = torch.zeros(source.length)
    spans: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((at,), (at,)) for at in range(source.begin)
    ]
    if source.end_of_text >= 0:
        spans.append(((source.end_of_text,), (target.end_of_text,)))
    for i, j in _carried_words(source, target, alignment):
        spans.append((source.words[i].tokens, target.words[j].tokens))
    for old, new in spans:
        block = torch.full((len(old), len(new)), 1 / len(new))
        if len(old) == len(new):
            block = torch.eye(len(new))
        mapping[old[0] : old[-1] + 1, new[0] : new[-1] + 1] = block
        gate[list(new)] = 1
    _carry_padding(mapping, gate, source.end_of_text + 1, target.end_of_text + 1)
    return AttentionMap(mapping, gate)


def token_weights(target: TokenizedPrompt, weights: Mapping[str, float]) -> Tensor:
    """Build factors for the cross-attention of each target token: [L] float32, 1 by default.

    Args: weights: finite factor by word or phrase; where two name the same token, the later wins.
    """
    import torch

    factors = torch.ones(target.length)
    for word, factor in weights.items():
        # Finite in float32, which math.isfinite does not ask; a NaN fails any comparison.
        if not abs(factor) <= torch.finfo(factors.dtype).max:
            raise OptionError(
                f"The weight of {word!r} is {factor}; expected a finite number such as 2 or -0.5."
            )
        factors[list(find_words(target, word))] = float(factor)
    return factors


def check_edit(source: TokenizedPrompt, target: TokenizedPrompt, *, reweights: bool) -> None:
    """Raise PromptError for an edit that can change nothing: the same tokens, no weights but 1."""
    if source.token_ids == target.token_ids and not reweights:
        raise PromptError(
            f"The target {quoted(target.text)} says the same as the source {quoted(source.text)}; "
            "change a word, or pass --weight WORD=FACTOR with another factor than 1."
        )


def _carried_words(
    source: TokenizedPrompt, target: TokenizedPrompt, alignment: Alignment
) -> list[tuple[int, int]]:
    old, new = [word.name for word in source.words], [word.name for word in target.words]
    if alignment == "replace":
        if len(old) != len(new):
            raise PromptError(
                f"Alignment 'replace' pairs words by position, but {quoted(source.text)} has "
                f"{len(old)} words and {quoted(target.text)} has {len(new)}; "
                "make them equally many, or use alignment 'auto'."
            )
        return [(i, i) for i in range(len(old))]
    if alignment not in ("auto", "refine"):
        raise OptionError(
            f"The alignment is {alignment!r}; expected 'auto', 'replace' or 'refine'."
        )
    pairs = [(i, j) for i, j in align_words(old, new) if i is not None and j is not None]
    return [(i, j) for i, j in pairs if alignment == "auto" or word_key(old[i]) == word_key(new[j])]


def _carry_padding(mapping: Tensor, gate: Tensor, source_start: int, target_start: int) -> None:
    """Fill, in place, the columns of the paddings that begin at the two positions."""
    import torch

    if source_start < len(gate):
        target = torch.arange(target_start, len(gate))
        mapping[target.clamp(min=source_start), target] = 1
        gate[target_start:] = 1


# --- pairing of words -----------------------------------------------------------------------------


def align_words(source_words: Sequence[str], target_words: Sequence[str]) -> list[Pair]:
    """Pair the words of two prompts.

    Returns:
        (i, j) for a word that is kept or substituted, (i, None) for a deleted one, (None, j) for an
        inserted one. Both indices ascend, each word is named once, and words are equal whatever
        their case.
    """
    source, target = [_key(w) for w in source_words], [_key(w) for w in target_words]
    end = (len(source), len(target))
    carried: list[tuple[int, int]] = []
    i = j = 0
    for anchor_i, anchor_j in [*_anchors(source, target), end]:
        stretch = _pair_stretch(source[i:anchor_i], target[j:anchor_j])
        carried += [(i + a, j + b) for a, b in stretch] + [(anchor_i, anchor_j)]
        i, j = anchor_i + 1, anchor_j + 1
    pairs: list[Pair] = []
    i = j = 0
    for old, new in carried:
        pairs += [(k, None) for k in range(i, old)]
        pairs += [(None, k) for k in range(j, new)]
        pairs.append((old, new))
        i, j = old + 1, new + 1
    return pairs[:-1]  # without the end


def _key(word: str) -> str:
    key = word_key(word)
    return "a" if key in ARTICLES else key


def _anchors(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """Find the heaviest common subsequence, as early as possible, by dynamic programming."""
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
    return 1 if key == "a" or key in OPENERS or is_punctuation(key) else CONTENT_WEIGHT


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
        elif key != "a" and not is_punctuation(key):
            phrases[-1].content.append(index)
    return phrases


def _pair_stretch(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    pairs = []
    for old, new in zip(_phrases(source), _phrases(target), strict=False):
        if old.opener is not None and new.opener is not None:
            pairs.append((old.opener, new.opener))
        shared = min(len(old.content), len(new.content))
        pairs += zip(old.content[-shared:], new.content[-shared:], strict=True) if shared else []
    return pairs

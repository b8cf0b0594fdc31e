"""The map that carries attention from one prompt to another.

A cross-attention layer gives every pixel a probability row over the L tokens of the prompt. An
edit reuses the rows p of the source prompt under the target prompt:

    p_target = gate * (p_source @ M) + (1 - gate) * p_own,    M: [L, L], gate: [L] in {0, 1},

M[i, j] being the share of source token i that target token j receives; the editor then scales the
row to sum to 1 again, which changes nothing unless words were added or removed. Words are paired by
`word_pairing`. A pair with token spans S and T has M = identity on S x T if |S| = |T|, otherwise
M[i, j] = 1 / |T|, so that each row of S sums to 1 and no attention is lost. Inserted words have
gate 0 (they keep p_own), deleted words have zero rows. The n paddings of the source and the m of
the target cut the same interval [0, 1) into equal parts, and M[i, j] is m times the overlap of
part i with part j: each target padding is a mean of source paddings, the identity if n = m.

Source: Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.2: word swap (replace), prompt refinement
(refine), attention re-weighting (token weights); unequal spans as in its published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nulltext.errors import OptionError, PromptError
from nulltext.words.prompts import TokenizedPrompt, find_words, quoted, word_key
from nulltext.words.word_pairing import align_words

Alignment = Literal["auto", "replace", "refine"]


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """How a target prompt takes over the cross-attention of its source."""

    mapping: Tensor
    """[L, L] float32 in [0, 1], row = source token, column = target token."""
    gate: Tensor
    """[L] float32: 1 where the target token takes the source's attention, 0 where it keeps its."""


def attention_map(
    source: TokenizedPrompt, target: TokenizedPrompt, alignment: Alignment = "auto"
) -> AttentionMap:
    """Build M and the gate that carry cross-attention from the source to the target prompt.

    `auto` hands the attention of a substituted word to its substitute; `refine` carries only the
    words that both prompts have; `replace` pairs words by position and demands equally many.
    """
    assert source.length == target.length, "both prompts must come from the same tokenizer"
    mapping = torch.zeros(source.length, source.length)
    gate = torch.zeros(source.length)
    spans: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((0,), (0,)),
        ((source.end_of_text,), (target.end_of_text,)),
    ]
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
    """Factors for the cross-attention of each target token: [L] float32, 1 for all other words.

    Args: weights: finite factor by word or phrase; where two name the same token, the later wins.
    """
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
    """Refuse an edit that could change nothing: the same tokens and no weights but 1."""
    if source.token_ids == target.token_ids and not reweights:
        raise PromptError(
            f"The target {quoted(target.text)} says the same as the source {quoted(source.text)}; "
            "change a word, or pass --weight WORD=FACTOR with another factor than 1."
        )


def _carried_words(
    source: TokenizedPrompt, target: TokenizedPrompt, alignment: Alignment
) -> list[tuple[int, int]]:
    """Index pairs of the words whose attention is carried."""
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
    """Fill, in place, the block of the paddings that begin at the two positions."""
    n, m = len(gate) - source_start, len(gate) - target_start
    if n and m:
        # In units of 1 / (n m), so that the cuts are whole numbers.
        rows, columns = torch.arange(n)[:, None] * m, torch.arange(m)[None, :] * n
        overlap = torch.minimum(rows + m, columns + n) - torch.maximum(rows, columns)
        mapping[source_start:, target_start:] = overlap.clamp(min=0) / n
        gate[target_start:] = 1

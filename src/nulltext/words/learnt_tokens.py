"""Learnt tokens (textual inversion) in a prompt, with as many vectors as they have.

A token that was learnt with n vectors is n tokens to the tokenizer, n rows of the text encoder's
table, under names that diffusers' `load_textual_inversion` gives them:

    mystyle, mystyle_1, ..., mystyle_{n-1}

The tokenizer finds "mystyle" whatever its case, beside punctuation and inside other words
("mystyles"), and reads the first of the n. Wherever it does so, all n stand here. Written out,
"mystyle mystyle_1 ... mystyle_{n-1}" is the same n tokens and the same one word. Any other part
("mystyle_1" by itself) is a token of one vector.

diffusers' `maybe_convert_prompt` gives the same tokens, by replacing text before it is read. So it
expands only what is spelled in the case of the token and has no capitals, and expands the parts of
a written-out token once more; this module does neither.
Source: Gal et al. 2022 (Textual Inversion); the names are diffusers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Span = tuple[int, int]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text, without frame and padding."""

    ids: list[int] = field(default_factory=list)
    """Token ids."""
    offsets: list[Span] = field(default_factory=list)
    """The characters that each stands for; each vector of a learnt token for all of the token's."""
    written_out: dict[int, int] = field(default_factory=dict)
    """For each learnt token, where its first part ends and where its last one does: the same place
    unless its parts are written out."""


def with_all_vectors(
    tokenizer: CLIPTokenizer, ids: Sequence[int], offsets: Sequence[Span]
) -> Tokens:
    """Put all vectors of a learnt token where the tokenizer found its name.

    Args: ids, offsets: the tokenizer's own, without special tokens.
    """
    vectors, tokens, at = _vectors(tokenizer), Tokens(), 0
    while at < len(ids):
        own = vectors.get(ids[at], (ids[at],))
        parts = len(own) if tuple(ids[at : at + len(own)]) == own else 1
        (start, end), (_, last_end) = offsets[at], offsets[at + parts - 1]
        if ids[at] in vectors:
            tokens.written_out[end] = last_end
        tokens.ids.extend(own)
        tokens.offsets.extend([(start, last_end)] * len(own))
        at += parts
    return tokens


def _vectors(tokenizer: CLIPTokenizer) -> dict[int, tuple[int, ...]]:
    """All ids that belong to a learnt token, by the id that its name has."""
    frame = {"bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"}
    own = {getattr(tokenizer, name) for name in frame}
    decoder = tokenizer.added_tokens_decoder
    added = {token.content: number for number, token in decoder.items() if number not in own}
    vectors = {}
    for name, number in added.items():
        parts = [number]
        while (following := added.get(f"{name}_{len(parts)}")) is not None:
            parts.append(following)
        vectors[number] = tuple(parts)
    return vectors

"""From a prefix to words: the likeliest next token again and again, or several beams side by side.

    greedy    w_i = argmax log p(w | prefix, w_1 … w_{i-1})
    beams     the k sentences of highest mean log p per token, (1/n) sum_i log p(w_i | …), found by
              extending each unfinished one by every token and keeping the k best of all

A sentence ends with the stop token, which counts as one of its tokens, or at the longest length.
A finished sentence stays among the k with the mean that it has, until better ones push it out.
Source: Mokady, Hertz and Bermano 2021 (ClipCap), sec. 4 (beam search, 5 beams), and the constants
of its published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

LONGEST = 67
"""Most tokens of a caption."""

BEAMS = 5
"""Sentences kept side by side."""


@dataclass(frozen=True)
class Sentence:
    """A caption so far."""

    tokens: tuple[int, ...] = ()
    log_prob: float = 0.0
    """Sum over the tokens."""
    finished: bool = False

    @property
    def mean(self) -> float:
        """Mean log-probability per token; what beams are ranked by."""
        return self.log_prob / max(len(self.tokens), 1)

    def and_then(self, token: int, log_prob: float, stop: int) -> Sentence:
        """One token longer."""
        return Sentence((*self.tokens, token), self.log_prob + log_prob, token == stop)


def greedy(
    language: GPT2LMHeadModel, prefix: Tensor, *, stop: int, longest: int = LONGEST
) -> Sentence:
    """The sentence of the likeliest next tokens.

    Args:
        prefix: [1, P, D]. stop: the token that ends a sentence.
    """
    sentence = Sentence()
    while not sentence.finished and len(sentence.tokens) < longest:
        scores = next_log_probs(language, prefix, [sentence])[0]
        token = int(scores.argmax())
        sentence = sentence.and_then(token, float(scores[token]), stop)
    return sentence


def beam_search(
    language: GPT2LMHeadModel,
    prefix: Tensor,
    *,
    stop: int,
    beams: int = BEAMS,
    longest: int = LONGEST,
) -> list[Sentence]:
    """Up to `beams` sentences, the best first.

    Args:
        prefix: [1, P, D]. stop: the token that ends a sentence. beams: at least 1.
    """
    kept = [Sentence()]
    for _ in range(longest):
        open_ones = [sentence for sentence in kept if not sentence.finished]
        if not open_ones:
            break
        candidates = [sentence for sentence in kept if sentence.finished]
        scores = next_log_probs(language, prefix, open_ones)
        best = scores.topk(min(beams, scores.shape[1]))  # no more of one sentence can be kept
        for sentence, values, tokens in zip(open_ones, *best, strict=True):
            candidates += [
                sentence.and_then(int(token), float(value), stop)
                for value, token in zip(values, tokens, strict=True)
            ]
        kept = sorted(candidates, key=lambda sentence: sentence.mean, reverse=True)[:beams]
    return kept


@torch.no_grad()
def next_log_probs(language: GPT2LMHeadModel, prefix: Tensor, sentences: list[Sentence]) -> Tensor:
    """log p of every next token, [len(sentences), vocabulary], float64.

    Args:
        prefix: [1, P, D]. sentences: of one length.
    """
    embeds = prefix.expand(len(sentences), -1, -1)
    tokens = torch.tensor([sentence.tokens for sentence in sentences], device=prefix.device)
    if tokens.numel():
        embeds = torch.cat([embeds, language.get_input_embeddings()(tokens)], dim=1)
    logits = language(inputs_embeds=embeds, use_cache=False).logits[:, -1]
    return logits.double().log_softmax(-1)

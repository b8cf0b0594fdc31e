"""The tokenizer's stage: byte pairs as CLIP's, learnt from the captions and from plain English.

Every byte has a token, alone and at a word's end, so nothing is unreadable; each word of the
captions and each common English word becomes one token as far as the vocabulary goes.
Sources: Sennrich et al. 2016 (BPE), alg. 1; Radford et al. 2021 (CLIP), sec. 2.4.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
EMPHASIS = 50
"""How often a caption's word counts for one of plain English."""


@dataclass(frozen=True)
class TokenizerSettings:
    """Size of the tokenizer."""

    vocabulary: int = 2500
    """Most tokens."""
    length: int = 32
    """Tokens of a padded prompt, begin and end of text included."""


def common_words() -> list[str]:
    """Plain English words that people use of pictures."""
    text = resources.files("nulltext.training").joinpath("words.txt").read_text(encoding="utf-8")
    return text.split()


def train_tokenizer(captions: Iterable[str], settings: TokenizerSettings) -> CLIPTokenizer:
    """Learn a tokenizer; the same captions give the same one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    bpe.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    ends = [byte + WORD_END for byte in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary - 2,
        initial_alphabet=alphabet,
        special_tokens=ends,  # else they are numbered in no fixed order, and ties with them
        end_of_word_suffix=WORD_END,
        min_frequency=1,
        show_progress=False,
    )
    texts = [text.lower() for text in captions]
    bpe.train_from_iterator([*texts * EMPHASIS, *common_words()], trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    merged = ("".join(pair) for pair in merges)
    symbols = dict.fromkeys([BEGIN, END, *alphabet, *ends, *merged])
    return CLIPTokenizer(
        vocab={symbol: number for number, symbol in enumerate(symbols)},
        merges=merges,
        pad_token=END,
        model_max_length=settings.length,
    )

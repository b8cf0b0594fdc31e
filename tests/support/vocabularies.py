"""Tokenizers for the tests, built here as CLIP's was, and the bundled model's own."""

from __future__ import annotations

import json
import string
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

import nulltext
from nulltext.words.prompts import TokenizedPrompt, tokenize

BUNDLED = Path(nulltext.__path__[0]) / "models" / "bundled" / "flowers" / "tokenizer"
SENTENCES = [
    "a photo of a cat on a sofa",
    "a very bright red flower on a dark background",
    "an orange flower, a black dog and the stop sign...",
    "it's the cat's hat and the dog's",
    "été après été, réglé",
]
# "hippopotamus" and "xylophone" are in no sentence: they get several tokens. So does "привет".
VOCABULARY = ["a", "cat", "dog", "red", "flower", "hippopotamus", "xylophone", "привет", ","]
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


@lru_cache
def trained(pad_token: str = "<|endoftext|>", max_tokens: int = 77) -> CLIPTokenizer:
    """A tokenizer made as CLIP's was: every byte, every final byte, then the merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    merged = ["".join(pair) for pair in merges]
    symbols = dict.fromkeys([*alphabet, *(byte + "</w>" for byte in alphabet), *merged, *SPECIAL])
    return CLIPTokenizer(
        vocab={symbol: number for number, symbol in enumerate(symbols)},
        merges=merges,
        pad_token=pad_token,
        model_max_length=max_tokens,
    )


@lru_cache
def narrow() -> CLIPTokenizer:
    """A tokenizer of the lower-case letters and nothing else."""
    symbols = [*string.ascii_lowercase, *(x + "</w>" for x in string.ascii_lowercase), *SPECIAL]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=[])


@lru_cache
def bundled() -> CLIPTokenizer:
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(BUNDLED)
    return tokenizer


def prompt(text: str, length: int = 20) -> TokenizedPrompt:
    """A prompt, blank or not, as the trained tokenizer reads it."""
    return tokenize(trained(), text, max_length=length, allow_empty=True)


def texts(read: TokenizedPrompt) -> list[str]:
    return [word.text for word in read.words]

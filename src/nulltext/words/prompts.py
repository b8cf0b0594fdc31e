"""Words and tokens of a prompt: which word owns which positions of the sequence.

A CLIP text encoder reads L tokens: BOS, the prompt, the end of text, padding. A reader sees words.
The tokenizer's offsets tie the two: a word owns the tokens that stand for its characters, and
words that share a token (the dots of "...") are one word. So every token between BOS and the end
of text has exactly one owner. A learnt token is one word, however many vectors it has (see
`learnt_tokens`).

Source: Radford et al. 2021 (CLIP), sec. 2.4, and the tokenizer of its published code.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from nulltext.errors import PromptError
from nulltext.words.invisible import JOINERS, UNDECODED, clean
from nulltext.words.learnt_tokens import Span, Tokens, with_all_vectors

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

SPECIAL_TOKENS = 2  # beginning and end of text: what a CLIP sequence holds beside the prompt
LETTERS_OF_A_WORD = 3  # shorter words ("of", "TV") tell nothing by being spelled out
SHOWN_WORDS, SHOWN_LETTERS = 12, 160  # what an error message repeats of a prompt
LONGEST_PROMPT = 10_000  # characters: far above any model's tokens, and counted in no time
# One character per character: w letter or digit, m combining mark, ' apostrophe, j joiner of two
# signs, . other visible.
WORD_SHAPE = re.compile(r"[wmj]+(?:'w[wmj]*)*|[.'](?:m|j\.?)*")


@dataclass(frozen=True)
class Word:
    """A word of a prompt."""

    text: str
    """The word as it was typed, `prompt.text[start:end]`."""
    start: int
    """Offset of its first character."""
    end: int
    """Offset behind its last character."""
    tokens: tuple[int, ...]
    """Its adjacent positions in the padded token sequence, where 0 is BOS."""
    name: str
    """What it is compared by: its text, but a learnt token that is written out in its parts
    ("mystyle mystyle_1") has the name of the first."""
    learnt: bool
    """Whether a learnt token (textual inversion), of one vector or of several, is in it."""


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the text encoder reads it."""

    text: str
    """The prompt as it was typed, but for what `clean` takes away."""
    token_ids: tuple[int, ...]
    """L token ids: BOS, the prompt, the end of text, padding."""
    words: tuple[Word, ...]
    """The words in order; together they own every token between BOS and the end of text."""
    end_of_text: int
    """Position of the (first) end-of-text token; behind it there is only padding."""

    @property
    def length(self) -> int:
        """L, the number of tokens of the padded sequence."""
        return len(self.token_ids)


def tokenize(
    tokenizer: CLIPTokenizer, text: str, *, max_length: int, allow_empty: bool = False
) -> TokenizedPrompt:
    """Split a prompt into words and the `max_length` = L tokens that the text encoder reads.

    A prompt that is blank (unless `allow_empty`), too long, or has a character that the vocabulary
    lacks raises PromptError; nothing is cut or replaced. CLIP's unknown token *is* the end of text,
    so an unknown character would silently end the prompt.
    """
    limit = max_length - SPECIAL_TOKENS
    if len(text) > LONGEST_PROMPT:
        raise PromptError(
            f"The prompt has {len(text):,} characters; the model reads {limit} tokens, so a few "
            "words will do."
        )
    text = clean(text)
    pieces = _pieces(text)
    if not pieces and not allow_empty:
        raise PromptError("The prompt is empty; describe the picture in a few words.")
    tokens = _encode(tokenizer, text)
    ids, words = tokens.ids, _group(text, pieces, tokens)
    # The pad token may stand in a prompt: Stable Diffusion 2 pads with an honest "!".
    frame = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    _check_known(text, words, {k: tokens.offsets[k] for k, i in enumerate(ids) if i in frame})
    _check_length(words, len(ids), limit)
    padding = [tokenizer.pad_token_id] * (limit - len(ids))
    token_ids = (tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *padding)
    return TokenizedPrompt(text, token_ids, words, end_of_text=len(ids) + 1)


def spelled_out(prompt: TokenizedPrompt) -> list[str]:
    """Words of three letters or more with a token per letter: the model surely never saw them."""
    found: dict[str, None] = {}
    for word in prompt.words:
        if word.learnt:
            continue
        text = unicodedata.normalize("NFC", word.text)
        letters = sum(character.isalpha() for character in text)
        if letters >= LETTERS_OF_A_WORD and len(word.tokens) >= len(text):
            found[word.text] = None
    return list(found)


def spoken(text: str) -> list[str]:
    """The words of a text, without case, marks and endings such as "'s", which CLIP reads apart."""
    text = clean(text)
    pieces = (text[start:end] for start, end in _pieces(text))
    return [word_key(piece).partition("'")[0] for piece in pieces if not is_mark(piece)]


def without_learnt(prompt: TokenizedPrompt) -> str:
    """The text of a prompt with a blank for each word that has a learnt token."""
    kept, at = "", 0
    for word in prompt.words:
        if word.learnt:
            kept, at = f"{kept}{prompt.text[at : word.start]} ", word.end
    return kept + prompt.text[at:]


def find_words(prompt: TokenizedPrompt, word: str) -> tuple[int, ...]:
    """Token positions of every occurrence of a word, or of a phrase, whatever its case.

    A part of a learnt token's name ("cat" of "<cat-toy>") finds it where nothing else is found.
    """
    word = clean(word)
    wanted = [word_key(word[start:end]) for start, end in _pieces(word)]
    whole: set[int] = set()
    within: set[int] = set()
    for pieces in (_keyed(prompt, "text"), _keyed(prompt, "name")):
        for first in range(len(pieces) - len(wanted) + 1 if wanted else 0):
            window = pieces[first : first + len(wanted)]
            if [piece.key for piece in window] == wanted:
                found = whole if window[0].opens and window[-1].closes else within
                found.update(position for piece in window for position in piece.tokens)
    found = whole or within
    if not found:
        raise PromptError(
            f"{_cut(word)!r} is not a word of {quoted(prompt.text)}. "
            f"Words: {', '.join(_cut(owner.name) for owner in prompt.words) or 'none'}. "
            "Name one of these, or put the word into the prompt."
        )
    return tuple(sorted(found))


@dataclass(frozen=True)
class _Piece:
    """A piece of a word, by which words are searched.

    Not every piece is a word: where CLIP reads "'s" in "'stop'", "stop" is only part of one.
    """

    key: str
    tokens: tuple[int, ...]
    """Its word's."""
    opens: bool
    """Whether a search that begins here cuts no learnt token apart."""
    closes: bool
    """Whether one that ends here cuts none apart."""


def _keyed(prompt: TokenizedPrompt, spelling: Literal["text", "name"]) -> list[_Piece]:
    """The pieces of all words, as they were typed or by their names."""
    found = []
    for word in prompt.words:
        text = getattr(word, spelling)
        cuts = _pieces(text)
        for start, end in cuts:
            opens = not word.learnt or start == cuts[0][0]
            closes = not word.learnt or end == cuts[-1][1]
            found.append(_Piece(word_key(text[start:end]), word.tokens, opens, closes))
    return found


def _encode(tokenizer: CLIPTokenizer, text: str) -> Tokens:
    """Tokens of the bare text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if ord(text[error.start]) in UNDECODED:
            raise PromptError(
                f"Character {error.start + 1} of the prompt was typed in UTF-8, which the system's "
                "encoding is not; set LC_ALL=C.UTF-8 or PYTHONUTF8=1."
            ) from None
        raise PromptError(
            f"Character {error.start + 1} of the prompt is half a character, {text[error.start]!r} "
            "(a lone surrogate); leave it out."
        ) from None
    # Not verbose: transformers would warn of a long prompt, which is refused here anyway.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return with_all_vectors(tokenizer, encoded["input_ids"], encoded["offset_mapping"])


def _group(text: str, pieces: Sequence[Span], tokens: Tokens) -> tuple[Word, ...]:
    """Make words of pieces, joining those that share a token, such as the dots of "..."."""
    piece_at = {at: k for k, (start, end) in enumerate(pieces) for at in range(start, end)}
    piece_at[len(text)] = len(pieces)  # with a closing token, so that the last word ends too
    firsts: list[Span] = []  # first piece and first token of each word
    last = -1
    spans = [*tokens.offsets, (len(text), len(text) + 1)]
    for position, (start, end) in enumerate(spans, start=1):
        touched = [piece_at[at] for at in range(start, end) if at in piece_at]
        assert touched, "a CLIP token stands for visible characters"
        if touched[0] > last + 1:
            lost = _cut(text[slice(*pieces[last + 1])])
            raise PromptError(f"The tokenizer makes no token of {lost!r}; leave it out.")
        if touched[0] > last:
            firsts.append((touched[0], position))
        last = max(last, touched[-1])
    words = []
    for (piece, token), (next_piece, next_token) in pairwise(firsts):
        start, end = pieces[piece][0], pieces[next_piece - 1][1]
        owned = tuple(range(token, next_token))
        learnt = [at for at in range(start + 1, end + 1) if at in tokens.written_out]
        name = _name(text, start, end, {at: tokens.written_out[at] for at in learnt})
        words.append(Word(text[start:end], start, end, owned, name, bool(learnt)))
    return tuple(words)


def _name(text: str, start: int, end: int, written_out: Mapping[int, int]) -> str:
    """A word's text with the first part alone of each learnt token that is written out."""
    kept = ""
    for first_end, last_end in written_out.items():
        kept, start = kept + text[start:first_end], last_end
    return kept + text[start:end]


def _check_known(text: str, words: Sequence[Word], unknown: Mapping[int, Span]) -> None:
    """Refuse unknown characters, given by token index, with the word that each is in."""
    named: dict[str, None] = {}
    for word in words:
        for start, end in (unknown[k - 1] for k in word.tokens if k - 1 in unknown):
            # Where the tokenizer composed a letter with its marks, the offsets hold the letter.
            while end < word.end and unicodedata.category(text[end])[0] == "M":
                end += 1
            inside = "" if end - start == len(word.text) else f" in {_cut(word.text)!r}"
            named[f"{_cut(text[start:end])!r}{inside}"] = None
    if named:
        raise PromptError(
            f"This model's vocabulary has no token for {listed(list(named))}; "
            "leave it out, or use other words."
        )


def _check_length(words: Sequence[Word], count: int, limit: int) -> None:
    if count > limit:
        over = [repr(_cut(word.text)) for word in words if word.tokens[-1] > limit]
        raise PromptError(
            f"The prompt has {count} tokens, and this model reads at most {limit}; "
            f"shorten it by {count - limit} tokens; this does not fit: {listed(over)}."
        )


def _pieces(text: str) -> list[Span]:
    """Cut a text where a reader would: words with their inner apostrophes, single other marks."""
    return [match.span() for match in WORD_SHAPE.finditer("".join(map(_shape, text)))]


def _shape(character: str) -> str:
    """The letter that stands for a character in WORD_SHAPE."""
    if character.isspace():
        return " "
    if JOINERS.match(character):
        return "j"
    if character in "'\u2019":
        return "'"
    return {"L": "w", "N": "w", "M": "m"}.get(unicodedata.category(character)[0], ".")


def has_word(prompt: TokenizedPrompt, word: str) -> bool:
    """Whether `find_words` would find the word or phrase."""
    try:
        find_words(prompt, word)
    except PromptError:
        return False
    return True


def word_key(word: str) -> str:
    """What two spellings of the same word have in common."""
    return unicodedata.normalize("NFC", word).casefold().replace("\u2019", "'")


def is_mark(word: str) -> bool:
    """Whether a word has no letter and no digit."""
    return "w" not in map(_shape, word)


def quoted(text: str) -> str:
    """A prompt within an error message, its control characters escaped."""
    return json.dumps(_cut(text), ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_LETTERS else text[:SHOWN_LETTERS] + "\u2026"


def listed(items: Sequence[str]) -> str:
    """The first of several things, as far as a message can hold them."""
    more = len(items) - SHOWN_WORDS
    return ", ".join(items[:SHOWN_WORDS]) + (f" and {more} more" if more > 0 else "")

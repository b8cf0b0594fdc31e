"""Words and tokens of a prompt: which word owns which positions of the sequence.

A CLIP text encoder reads L tokens: BOS, the prompt, the end of text, padding. A reader sees words.
The tokenizer's offsets tie the two: a word owns the tokens that stand for its characters, and
words that share a token (the dots of "...") are one word. So every token between BOS and the end
of text has exactly one owner.

A token that was learnt (textual inversion) with n vectors is n tokens to the tokenizer, n rows of
the text encoder's table, under names that diffusers' `load_textual_inversion` gives them:

    mystyle, mystyle_1, ..., mystyle_{n-1}

The tokenizer finds "mystyle" whatever its case, beside punctuation and inside other words
("mystyles"), and reads the first of the n. All n are put in its place, and the learnt token is one
word. Written out, "mystyle mystyle_1 ... mystyle_{n-1}" is the same n tokens and the same word. Any
other part ("mystyle_1" by itself) is a token of one vector. diffusers' `maybe_convert_prompt` gives
the same tokens, except that it expands only the token's own case without capitals, and expands the
parts of a written-out token once more.

Source: Radford et al. 2021 (CLIP), sec. 2.4, and the tokenizer of its published code; Gal et al.
2022 (Textual Inversion).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from nulltext.errors import PromptError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Span = tuple[int, int]

SPECIAL_TOKENS = 2
"""Beginning and end of text: the tokens of a CLIP sequence beside the prompt."""
MIN_SPELLED_LETTERS = 3
"""Shorter words ("of", "TV") tell nothing by being spelled out."""
SHOWN_WORDS, SHOWN_LETTERS = 12, 160
"""Most words and letters of a prompt that a message repeats."""
MAX_CHARACTERS = 10_000
"""Far more than any model's tokens, and counted in no time."""
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffc\U000e0001]"
)
"""Soft hyphens, marks of order, direction and language, byte-order marks, placeholders of objects,
and blank letters."""
JOINERS = re.compile("[\u200c\u200d\U000e0020-\U000e007f]")
"""Joiners and non-joiners of letters and emoji, and the tags in flags of regions."""
UNDECODED = range(0xDC80, 0xDD00)
"""Surrogates that stand for undecodable bytes of names and arguments (PEP 383)."""
NUMBERED = re.compile(r"(?P<word>.*\S)\s*#\s*(?P<number>[0-9]{1,4})")
"""One of several equal words: "red#2"."""
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
    """Offset after its last character."""
    tokens: tuple[int, ...]
    """Its adjacent positions in the padded token sequence, where 0 is BOS."""
    name: str
    """The text by which it is compared: the first part alone of a learnt token that is written out
    ("mystyle mystyle_1")."""
    learnt: bool
    """Whether it holds a learnt token (textual inversion)."""


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the text encoder reads it."""

    text: str
    """The prompt as it was typed, after `clean`."""
    token_ids: tuple[int, ...]
    """L token ids: BOS, the prompt, the end of text, padding."""
    words: tuple[Word, ...]
    """In order; together they own every token between BOS and the end of text."""
    end_of_text: int
    """Position of the (first) end-of-text token; padding follows. -1 where there is none."""
    begin: int = 1
    """Position of the first word's first token: 1 behind BOS, 0 where the encoder has no BOS."""
    streams: tuple[TokenizedPrompt, ...] = ()
    """Of a prompt that several encoders read: as each of them does, in the order of their rows."""

    @property
    def length(self) -> int:
        """L, with padding."""
        return len(self.token_ids)


def tokenize(
    tokenizer: Any,
    text: str,
    *,
    max_length: int,
    allow_empty: bool = False,
    reader: str = "this model",
) -> TokenizedPrompt:
    """Split a prompt into words and the `max_length` = L tokens that the text encoder reads.

    The tokenizer is CLIP's, or T5's, which has no BOS; a message calls its encoder `reader`.
    Nothing is cut or replaced: CLIP's unknown token *is* the end of text, so an unknown character
    would silently end the prompt.

    Raises:
        PromptError: the prompt is blank (unless `allow_empty`), too long, or has a character that
            the vocabulary lacks.
    """
    begin = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    limit = max_length - len(begin) - 1
    if len(text) > MAX_CHARACTERS:
        raise PromptError(
            f"The prompt has {len(text):,} characters; {reader} reads {limit} tokens, so a few "
            "words will do."
        )
    text = clean(text)
    pieces = _pieces(text)
    if not pieces and not allow_empty:
        raise PromptError("The prompt is empty; describe the picture in a few words.")
    tokens = _encode(tokenizer, text)
    ids, words = tokens.ids, _group(text, pieces, tokens, len(begin))
    # The pad token may occur in a prompt: Stable Diffusion 2 pads with "!".
    frame = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    _check_known(
        text, words, {k + len(begin): tokens.offsets[k] for k, i in enumerate(ids) if i in frame}
    )
    _check_length(words, len(ids), limit, reader)
    padding = [tokenizer.pad_token_id] * (limit - len(ids))
    token_ids = (*begin, *ids, tokenizer.eos_token_id, *padding)
    return TokenizedPrompt(text, token_ids, words, len(begin) + len(ids), len(begin))


def blank_prompt(text: str, length: int) -> TokenizedPrompt:
    """Make the part of an encoder that is left out, with `length` rows that no word owns."""
    return TokenizedPrompt(text, (0,) * length, (), end_of_text=-1, begin=0)


def joined(streams: Sequence[TokenizedPrompt]) -> TokenizedPrompt:
    """Join a prompt as several encoders read it, whose rows stand one below the other.

    The words are the first one's; each also owns the tokens by which the others read it.
    """
    first = streams[0]
    words = []
    for word in first.words:
        tokens, offset = list(word.tokens), first.length
        for other in streams[1:]:
            reading = [w for w in other.words if w.start < word.end and w.end > word.start]
            tokens += [offset + token for each in reading for token in each.tokens]
            offset += other.length
        words.append(replace(word, tokens=tuple(tokens)))
    token_ids = tuple(token for stream in streams for token in stream.token_ids)
    return replace(first, token_ids=token_ids, words=tuple(words), streams=tuple(streams))


def spelled_words(prompt: TokenizedPrompt) -> list[str]:
    """List the words with a token per letter, which the model was surely not trained on."""
    found: dict[str, None] = {}
    for word in prompt.words:
        text = unicodedata.normalize("NFC", word.text)
        letters = sum(map(str.isalpha, text))
        spelled = letters >= MIN_SPELLED_LETTERS and len(word.tokens) >= len(text)
        if spelled and not word.learnt:
            found[word.text] = None
    return list(found)


def plain_words(text: str) -> list[str]:
    """List the words of a text, without case, punctuation and endings such as "'s"."""
    text = clean(text)
    pieces = (text[start:end] for start, end in _pieces(text))
    return [word_key(piece).partition("'")[0] for piece in pieces if not is_punctuation(piece)]


def blank_learnt_words(prompt: TokenizedPrompt) -> str:
    """Return the text of a prompt with a blank for each word that holds a learnt token."""
    kept, at = "", 0
    for word in prompt.words:
        if word.learnt:
            kept, at = f"{kept}{prompt.text[at : word.start]} ", word.end
    return kept + prompt.text[at:]


def find_words(prompt: TokenizedPrompt, word: str) -> tuple[int, ...]:
    """Find the token positions of a word, or of a phrase, whatever its case.

    "red" is every "red" of the prompt, "red#2" the second one. A prompt that says "red#2" itself
    has that found. A part of a learnt token's name ("cat" of "<cat-toy>") matches it if nothing
    else matches.

    Raises:
        PromptError: the prompt has no such word, or fewer of them.
    """
    found = _occurrences(prompt, word)
    numbered = NUMBERED.fullmatch(clean(word).strip())
    if not found and numbered:
        name, number = numbered["word"], int(numbered["number"])
        every = _occurrences(prompt, name)
        if 1 <= number <= len(every):
            return every[number - 1]
        if every:
            times = "once" if len(every) == 1 else f"{len(every)} times"
            raise PromptError(
                f"{_cut(word)!r} is no word of {quoted(prompt.text)}, which says {_cut(name)!r} "
                f"{times}; write {_cut(name)!r} or a number up to {len(every)}."
            )
    if not found:
        raise PromptError(
            f"{_cut(word)!r} is not a word of {quoted(prompt.text)}. "
            f"Words: {', '.join(_cut(owner.name) for owner in prompt.words) or 'none'}. "
            "Name one of these, or put the word into the prompt."
        )
    return tuple(sorted({position for tokens in found for position in tokens}))


def name_word(prompt: TokenizedPrompt, text: str, end: int) -> str:
    """Return a name by which `find_words` finds one word or phrase, and no equal ones.

    Args: text: the word or phrase. end: offset after its last character in the prompt.
    """
    every = _occurrences(prompt, text)
    if len(every) < 2:
        return text
    begun = {token for word in prompt.words if word.start < end for token in word.tokens}
    number = str(sum(begun.issuperset(tokens) for tokens in every))
    while _occurrences(prompt, f"{text}#{number}"):  # the prompt says "red#2" itself
        number = f"0{number}"
    return f"{text}#{number}"


def has_word(prompt: TokenizedPrompt, word: str) -> bool:
    try:
        find_words(prompt, word)
    except PromptError:
        return False
    return True


def _occurrences(prompt: TokenizedPrompt, word: str) -> list[tuple[int, ...]]:
    """List the token positions of each occurrence of a word or phrase, in order."""
    word = clean(word)
    wanted = [word_key(word[start:end]) for start, end in _pieces(word)]
    whole: set[tuple[int, ...]] = set()
    within: set[tuple[int, ...]] = set()
    for pieces in (_word_pieces(prompt, "text"), _word_pieces(prompt, "name")):
        for first in range(len(pieces) - len(wanted) + 1 if wanted else 0):
            window = pieces[first : first + len(wanted)]
            if [piece.key for piece in window] == wanted:
                found = whole if window[0].opens and window[-1].closes else within
                found.add(tuple(sorted({at for piece in window for at in piece.tokens})))
    return sorted(whole or within)


@dataclass(frozen=True)
class _Piece:
    """A part of a word that is searched for: where CLIP reads "'s" in "'stop'", "stop" is one."""

    key: str
    tokens: tuple[int, ...]
    opens: bool
    """Whether no learnt token is cut where the piece begins."""
    closes: bool
    """Whether no learnt token is cut where it ends."""


def _word_pieces(prompt: TokenizedPrompt, spelling: Literal["text", "name"]) -> list[_Piece]:
    found = []
    for word in prompt.words:
        text = getattr(word, spelling)
        cuts = _pieces(text)
        for start, end in cuts:
            opens = not word.learnt or start == cuts[0][0]
            closes = not word.learnt or end == cuts[-1][1]
            found.append(_Piece(word_key(text[start:end]), word.tokens, opens, closes))
    return found


@dataclass(frozen=True)
class _Tokens:
    """The tokens of a text, without special tokens and padding."""

    ids: list[int] = field(default_factory=list)
    offsets: list[Span] = field(default_factory=list)
    """The characters that each stands for; each vector of a learnt token for all of the token's."""
    written_out: dict[int, int] = field(default_factory=dict)
    """For each learnt token, where its first part ends and where its last one does: the same place
    unless its parts are written out."""


def _encode(tokenizer: CLIPTokenizer, text: str) -> _Tokens:
    """Tokenize a text, with all vectors of a learnt token where the tokenizer found its name."""
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
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    vectors, tokens, at = _learnt_vectors(tokenizer), _Tokens(), 0
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


def _learnt_vectors(tokenizer: CLIPTokenizer) -> dict[int, tuple[int, ...]]:
    """Return all ids that belong to a learnt token, by the id of its name."""
    special = {"bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"}
    own = {getattr(tokenizer, name) for name in special}
    decoder = tokenizer.added_tokens_decoder
    added = {token.content: number for number, token in decoder.items() if number not in own}
    vectors = {}
    for name, number in added.items():
        parts = [number]
        while (following := added.get(f"{name}_{len(parts)}")) is not None:
            parts.append(following)
        vectors[number] = tuple(parts)
    return vectors


def _group(text: str, pieces: Sequence[Span], tokens: _Tokens, begin: int) -> tuple[Word, ...]:
    """Make words of pieces, joining those that share a token, such as the dots of "..."."""
    piece_at = {at: k for k, (start, end) in enumerate(pieces) for at in range(start, end)}
    piece_at[len(text)] = len(pieces)  # with a closing token, so that the last word ends too
    firsts: list[Span] = []  # first piece and first token of each word
    last = -1
    spans = [*tokens.offsets, (len(text), len(text) + 1)]
    blank: int | None = None  # T5 has tokens of a space alone, which begin the next word
    for position, (start, end) in enumerate(spans, start=begin):
        touched = [piece_at[at] for at in range(start, end) if at in piece_at]
        if not touched:
            blank = position if blank is None else blank
            continue
        if touched[0] > last + 1:
            lost = _cut(text[slice(*pieces[last + 1])])
            raise PromptError(f"The tokenizer makes no token of {lost!r}; leave it out.")
        if touched[0] > last:
            firsts.append((touched[0], position if blank is None else blank))
        blank = None
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
    """Return a word's text with only the first part of each learnt token that is written out."""
    kept = ""
    for first_end, last_end in written_out.items():
        kept, start = kept + text[start:first_end], last_end
    return kept + text[start:end]


def _check_known(text: str, words: Sequence[Word], unknown: Mapping[int, Span]) -> None:
    named: dict[str, None] = {}
    for word in words:
        for start, end in (unknown[k] for k in word.tokens if k in unknown):
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


def _check_length(words: Sequence[Word], count: int, limit: int, reader: str) -> None:
    if count > limit:
        last = words[0].tokens[0] + limit
        over = [repr(_cut(word.text)) for word in words if word.tokens[-1] >= last]
        raise PromptError(
            f"The prompt has {count} tokens, and {reader} reads at most {limit}; "
            f"shorten it by {count - limit} tokens; this does not fit: {listed(over)}."
        )


def _pieces(text: str) -> list[Span]:
    """Cut a text into words, with their inner apostrophes, and single other marks."""
    return [match.span() for match in WORD_SHAPE.finditer("".join(map(_shape, text)))]


def _shape(character: str) -> str:
    if character.isspace():
        return " "
    if JOINERS.match(character):
        return "j"
    if character in "'\u2019":
        return "'"
    return {"L": "w", "N": "w", "M": "m"}.get(unicodedata.category(character)[0], ".")


def word_key(word: str) -> str:
    """Return the form that all spellings of a word share: composed, without case."""
    return unicodedata.normalize("NFC", word).casefold().replace("\u2019", "'")


def is_punctuation(word: str) -> bool:
    """Whether a word has neither letters nor digits."""
    return "w" not in map(_shape, word)


def quoted(text: str) -> str:
    """Quote a prompt for a message: shortened, with control characters escaped."""
    return json.dumps(_cut(text), ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_LETTERS else text[:SHOWN_LETTERS] + "\u2026"


def listed(items: Sequence[str]) -> str:
    more = len(items) - SHOWN_WORDS
    return ", ".join(items[:SHOWN_WORDS]) + (f" and {more} more" if more > 0 else "")


def clean(text: str) -> str:
    """Remove invisible characters from a text; turn every kind of space and line end into " ".

    To a tokenizer, a byte-order mark, a soft hyphen or a mark of direction is a word, or cuts one
    in two. A joiner stays where it forms a sign: after an emoji (of a family, a profession, a
    flag), and after a letter of a script without capitals (Persian, Hindi, Malayalam); a non-joiner
    within a word also before one (a Persian ending of a number or a foreign name).
    """
    text = INVISIBLE.sub("", "".join(" " if each.isspace() else each for each in text))
    text = "".join(each for each in text if unicodedata.category(each) != "Cc")
    return JOINERS.sub(lambda found: found[0] if _joins(text, found.start()) else "", text)


def _joins(text: str, at: int) -> bool:
    after = text[at + 1 : at + 2]
    if text[at] == "\u200c" and at and text[at - 1] != " " and _is_caseless(after):
        return True
    while at and (JOINERS.match(text[at]) or unicodedata.category(text[at])[0] == "M"):
        at -= 1
    return unicodedata.category(text[at]) in ("So", "Sk") or _is_caseless(text[at])


def _is_caseless(sign: str) -> bool:
    return sign.isalpha() and sign.lower() == sign.upper()

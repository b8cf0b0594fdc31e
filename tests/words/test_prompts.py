"""Words and tokens, against tokenizers built here and the bundled model's own."""

from __future__ import annotations

import dataclasses
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import normalizers
from transformers import CLIPTokenizer

import nulltext
from nulltext.errors import PromptError
from nulltext.inversion.invert import InversionRequest
from nulltext.jobs.options import EditOptions
from nulltext.models.unet import StableDiffusionText
from nulltext.studio.forms import EditForm, read_chips
from nulltext.words.prompts import clean, find_words, name_word, spelled_words, tokenize
from support.vocabularies import (
    BUNDLED,
    SPECIAL,
    VOCABULARY,
    bundled,
    narrow,
    prompt,
    texts,
    trained,
)

LIMITED = [narrow, *([bundled] if BUNDLED.is_dir() else [])]
EVERY = [trained, *LIMITED]
# Contractions, canonical composition, case that changes the length, no-spaces, controls.
snippets = st.one_of(
    st.sampled_from(["cat", "Dog's", "'stop'", "...", "don’t", "close-up", "<|", "'s", "3d"]),
    st.sampled_from(["İ", "e\u0301", "<\u0338", "\u1100\u1161", "❤\ufe0f", "ﬁ", "Å", "हिन्दी"]),
    st.sampled_from([" ", "  ", "\n", "\x1f", "\u200d", "\U0001f469"]),
)
unicode_text = st.lists(snippets | st.text(max_size=4), max_size=6).map("".join).map(clean)


# --- words and tokens ---------------------------------------------------------------------------


@given(unicode_text)
@settings(max_examples=300, deadline=None)
def test_every_token_has_one_word_whatever_the_text(text: str) -> None:
    tokenizer = trained()
    read = prompt(text, 600)
    owned = [position for word in read.words for position in word.tokens]
    assert owned == list(range(1, read.end_of_text))
    assert all(word.tokens and word.text == text[word.start : word.end] for word in read.words)
    # A character counts if the tokenizer makes a token of it when it stands alone.
    visible = [c for c in text if tokenizer(c, add_special_tokens=False).input_ids]
    assert "".join(texts(read)) == "".join(visible)


@given(unicode_text)
@settings(max_examples=100, deadline=None)
def test_token_ids_are_what_transformers_feeds_the_model(text: str) -> None:
    expected = trained()(text, padding="max_length", truncation=True, max_length=600)
    assert list(prompt(text, 600).token_ids) == expected.input_ids


@pytest.mark.parametrize("build", LIMITED)
@given(text=unicode_text)
@settings(max_examples=150, deadline=None)
def test_a_prompt_is_refused_exactly_when_a_token_is_unknown(build, text: str) -> None:
    tokenizer = build()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.unk_token_id in ids or tokenizer.bos_token_id in ids:
        with pytest.raises(PromptError, match="no token for"):
            tokenize(tokenizer, text, max_length=600, allow_empty=True)
    else:
        read = tokenize(tokenizer, text, max_length=600, allow_empty=True)
        assert read.token_ids[1 : len(ids) + 1] == tuple(ids)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A cat on a sofa.", ["A", "cat", "on", "a", "sofa", "."]),
        ("a  close-up,\tof it", ["a", "close", "-", "up", ",", "of", "it"]),
        ("the dog's don’t 8k dogs' tails", ["the", "dog's", "don’t", "8k", "dogs", "'", "tails"]),
        ("e\u0301te\u0301 İstanbul हिन्दी", ["e\u0301te\u0301", "İstanbul", "हिन्दी"]),
        ("snake_case ❤\ufe0f!", ["snake", "_", "case", "❤\ufe0f", "!"]),
    ],
)
def test_words_are_cut_where_a_reader_would(text: str, words: list[str]) -> None:
    assert texts(prompt(text, 200)) == words


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\ufeffa red\u00a0cat", "a red cat"),  # Notepad's mark, a web page's space
        ("a straw\u00adberry\u200b\u2060 cake", "a strawberry cake"),
        ("a \u202ered\u202c\u200e\u2066 cat\u2069", "a red cat"),
        ("a\u2028cat\u2029on\x85a\u3000sofa\x1f!", "a cat on a sofa !"),
        ("a \u3164 cat\x00\x08", "a  cat"),
        ("a cat\u200d \u200cand", "a cat and"),  # joiners of nothing
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0646", None),  # Persian: one word
        ("\u06f2\u06f0\u200c\u0633\u0627\u0644\u0647", None),  # behind a number
        ("A4\u200c\u0647\u0627", None),  # behind a foreign name
        ("\u0633 \u200c\u0633 A4\u200c", "\u0633 \u0633 A4"),
        ("a \U000e0001cat\ufffc", "a cat"),  # a mark of language, the place of a picture
        ("\u0d28\u0d4d\u200d \u0d05", None),  # Malayalam: a final consonant, and another word
        ("\U0001f469\U0001f3fd\u200d\U0001f680 \u2764\ufe0f\u200d\U0001f525", None),  # emoji
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f", None),  # a flag, of an emoji and of tags
    ],
)
def test_what_no_reader_sees_is_no_word(text: str, cleaned: str | None) -> None:
    expected = text if cleaned is None else cleaned
    read = prompt(text, 200)
    assert clean(text) == clean(expected) == read.text == expected
    assert read.token_ids == prompt(expected, 200).token_ids
    assert texts(read) == texts(prompt(expected, 200))
    if cleaned is None and "\U0001f3fd" not in text:  # the colour of a skin is a word of its own
        assert texts(read) == text.split()
    words = find_words(prompt("a strawberry"), "\ufeffstraw\u00adberry")
    assert words == find_words(prompt("a strawberry"), "strawberry")


def test_prompts_are_cleaned_wherever_they_come_in(
    tiny_sd1: nulltext.LatentDiffusion, photo: Image.Image
) -> None:
    said, expected = "\ufeffa\u00a0d\u00adog", "a dog"
    request = InversionRequest.checked(
        tiny_sd1,
        photo,
        said,
        method="ddim",
        num_steps=2,
        guidance_scale=1.0,
        crop=None,
        size=None,
        seed=0,
    )
    assert request.prompt == expected
    assert nulltext.EditSpec(said).target == expected
    assert read_chips([{"source": None, "text": said}], 0)[0].text == expected
    form = EditForm.read({"target": said, "blend": f"{said}, cat"}, 0, tiny_sd1.tokenize)
    assert (form.target, form.blend) == (expected, (expected, "cat"))
    options = EditOptions.of({"source": said, "target": [said], "weight": [f"{said}=2"]})
    assert (options.source, options.target) == (expected, (expected,))
    assert options.weight == (f"{expected}=2",)


def test_pieces_that_share_a_token_are_one_word() -> None:
    read = prompt("a sign... 'stop' it")
    assert [(word.text, len(word.tokens)) for word in read.words][:3] == [
        ("a", 1),
        ("sign", 1),
        ("...", 1),
    ]
    assert texts(read)[3:] == ["'stop", "'", "it"]  # CLIP cuts off "'s" wherever it stands
    assert find_words(read, "stop") == read.words[3].tokens
    assert find_words(prompt("'stop' stop"), "stop") == (1, 2, 3, 5)
    assert find_words(read, "'STOP'") == read.words[3].tokens + read.words[4].tokens


def test_words_have_one_or_several_tokens() -> None:
    read = prompt("a hippopotamus")
    assert read.words[0].tokens == (1,)
    assert read.words[1].tokens == tuple(range(2, read.end_of_text))
    assert len(read.words[1].tokens) > 3
    assert read.token_ids[read.end_of_text] == trained().eos_token_id
    assert read.length == len(read.token_ids) == 20


@pytest.mark.parametrize("build", EVERY)
@pytest.mark.parametrize("blank", ["", "   ", "\n\u3000"])
def test_an_empty_prompt_only_on_request(build, blank: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        tokenize(build(), blank, max_length=20)
    read = tokenize(build(), blank, max_length=20, allow_empty=True)
    assert read.words == ()
    assert read.end_of_text == 1
    assert list(read.token_ids) == build()("", padding="max_length", max_length=20).input_ids


@pytest.mark.parametrize("build", EVERY)
def test_the_limit_counts_tokens_and_names_the_words_beyond_it(build) -> None:
    fitting = "a " * 16 + "na na"  # "na" is one token or two
    count = tokenize(build(), fitting, max_length=200).end_of_text - 1
    exact = tokenize(build(), fitting, max_length=count + 2)
    assert exact.end_of_text == count + 1 == exact.length - 1
    with pytest.raises(PromptError) as caught:
        tokenize(build(), fitting, max_length=count + 1)
    assert f"has {count} tokens" in str(caught.value)
    assert f"at most {count - 1}" in str(caught.value)
    assert "does not fit: 'na'." in str(caught.value)


def test_transformers_does_not_warn_of_a_long_prompt_that_we_refuse() -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        tokenizer = trained.__wrapped__()  # a fresh one: it warns only once
        tokenizer.model_max_length = 21
        with pytest.raises(PromptError, match="has 50 tokens"):
            tokenize(tokenizer, "cat " * 50, max_length=21)
        assert records == []
        tokenizer("cat " * 50)
        assert len(records) == 1
    finally:
        logger.removeHandler(handler)


def test_an_unknown_character_is_named_with_its_word() -> None:
    with pytest.raises(PromptError) as caught:
        tokenize(narrow(), "red, nin\u0303o in 3d", max_length=20)
    message = str(caught.value)
    assert "no token for ',', 'n\u0303' in 'nin\u0303o', '3' in '3d';" in message.replace(
        "ñ", "n\u0303"
    )


@pytest.mark.parametrize("build", EVERY)
@pytest.mark.parametrize("literal", SPECIAL)
def test_the_frame_cannot_be_typed(build, literal: str) -> None:
    with pytest.raises(PromptError, match=r"no token for .*text"):
        tokenize(build(), f"a cat {literal} a", max_length=20)


def test_an_unknown_token_of_its_own_is_refused_too() -> None:
    vocabulary = {symbol: number for number, symbol in enumerate(["a</w>", "<unk>", *SPECIAL])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, unk_token="<unk>")
    assert tokenize(tokenizer, "a a", max_length=20).end_of_text == 3
    with pytest.raises(PromptError, match="no token for 'b'"):
        tokenize(tokenizer, "a b", max_length=20)


@pytest.mark.parametrize("text", ["a \ud800 cat", "\ud83d\ude00"])
def test_half_a_character_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match="half a character"):
        prompt(text)


def test_an_added_token_is_one_word() -> None:
    tokenizer = trained.__wrapped__()
    tokenizer.add_tokens(["<my-cat>"])
    read = tokenize(tokenizer, "a <my-cat> on a sofa", max_length=20)
    assert texts(read) == ["a", "<my-cat>", "on", "a", "sofa"]
    assert find_words(read, "<my-cat>") == find_words(read, "cat") == (2,)


def test_a_padding_token_may_stand_in_a_prompt() -> None:
    tokenizer = trained(pad_token="!")  # as in Stable Diffusion 2
    read = tokenize(tokenizer, "a cat!", max_length=20)
    assert texts(read) == ["a", "cat", "!"]
    assert read.token_ids[4] == tokenizer.eos_token_id
    assert set(read.token_ids[5:]) == {tokenizer.pad_token_id} == {read.token_ids[3]}


def test_a_tokenizer_that_loses_words_is_caught() -> None:
    tokenizer = trained.__wrapped__()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Replace("#", ""), backend.normalizer])
    for text in ("a # cat", "# a cat", "a cat #"):
        with pytest.raises(PromptError, match="no token of '#'"):
            tokenize(tokenizer, text, max_length=20)


def test_a_tokenizer_without_a_limit_takes_the_text_encoders(
    tiny_sd1: nulltext.LatentDiffusion,
) -> None:
    endless = trained.__wrapped__()
    endless.model_max_length = int(1e30)  # what transformers gives where none is named
    text = tiny_sd1.text
    assert isinstance(text, StableDiffusionText)
    clip = dataclasses.replace(text.clips[0], tokenizer=endless)
    model = dataclasses.replace(tiny_sd1, text=StableDiffusionText((clip,)))
    expected = clip.encoder.config.max_position_embeddings
    assert model.max_tokens == model.tokenize("a cat").length == expected
    endless.model_max_length = expected - 1
    assert model.max_tokens == model.tokenize("a cat").length == expected - 1


@pytest.mark.skipif(not BUNDLED.is_dir(), reason="the bundled model is not in this checkout")
def test_the_bundled_vocabulary() -> None:
    read = tokenize(bundled(), "a red flower, and 2 tulips on a dark background", max_length=32)
    assert {len(word.tokens) for word in read.words} == {1}
    assert spelled_words(read) == []
    assert spelled_words(tokenize(bundled(), "a qzj with a caf\u00e9", max_length=32)) == [
        "qzj",
        "caf\u00e9",
    ]


def test_spelled_out_words_are_found_once_each() -> None:
    read = tokenize(narrow(), "zyx of a cat zyx", max_length=60)
    assert spelled_words(read) == ["zyx", "cat"]
    known = prompt("A cat on the sofa... is it the dog's")
    assert spelled_words(known) == []
    assert spelled_words(prompt("a qzj 123 of привет", 60)) == ["qzj", "привет"]
    # Several tokens, but fewer than letters; and a letter is a letter however it is composed.
    assert spelled_words(prompt("a flowerpot qe\u0301j", 60)) == ["qe\u0301j"]
    flowerpot, qej = (len(word.tokens) for word in prompt("flowerpot qe\u0301j", 60).words)
    assert 3 <= flowerpot < len("flowerpot")
    assert qej == 3


# --- finding words ------------------------------------------------------------------------------


def test_all_occurrences_in_any_case() -> None:
    read = prompt("A cat on a sofa, a CAT")
    assert find_words(read, "cat") == find_words(read, "Cat") == (2, 8)
    assert find_words(read, "a") == (1, 4, 7)
    assert find_words(read, " a  cat ") == (1, 2, 7, 8)
    assert find_words(read, ",") == (6,)


def test_phrases_split_as_the_prompt_does() -> None:
    read = prompt("a close-up of don't on a dark background", 60)
    spans = {word.text: word.tokens for word in read.words}
    assert find_words(read, "dark background") == spans["dark"] + spans["background"]
    assert find_words(read, "close-up") == spans["close"] + spans["-"] + spans["up"]
    assert find_words(read, "don’t") == spans["don't"]
    assert find_words(prompt("un e\u0301te\u0301"), "Été") == find_words(
        prompt("un été"), "e\u0301té"
    )


@given(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=8), st.data())
@settings(max_examples=60, deadline=None)
def test_found_positions_are_those_of_the_equal_words(
    words: list[str], data: st.DataObject
) -> None:
    read = prompt(" ".join(words), 100)
    word = data.draw(st.sampled_from(words))
    expected = [p for owner in read.words if owner.text == word for p in owner.tokens]
    assert list(find_words(read, word.upper())) == expected


def test_one_of_several_equal_words_is_named_by_its_number() -> None:
    read = prompt("a red cat, a red dog, a dark red dog", 60)
    reds = [word.tokens for word in read.words if word.text == "red"]
    assert [find_words(read, f"red#{n}") for n in (1, 2, 3)] == reds
    assert find_words(read, "RED #2") == reds[1]
    assert find_words(read, "red dog#2") == reds[2] + read.words[-1].tokens
    assert find_words(read, "red") == sum(reds, ())
    for name in ("red#0", "red#4", "cat#2"):
        with pytest.raises(PromptError, match=r"which says '(red' 3 times|cat' once); write"):
            find_words(read, name)
    with pytest.raises(PromptError, match="'cow#1' is not a word of"):
        find_words(read, "cow#1")


def test_a_prompt_with_numbers_of_its_own_is_found_as_before() -> None:
    read = prompt("flower #2 and a red flower", 60)
    assert find_words(read, "flower #2") == find_words(read, "flower#2") == (1, 2, 3)
    assert find_words(read, "flower#02") == read.words[-1].tokens


@given(st.lists(st.sampled_from([*VOCABULARY, "#", "2", "..."]), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_each_word_has_a_name_of_its_own(words: list[str]) -> None:
    read = prompt(" ".join(words), 100)
    for word in read.words:
        assert find_words(read, name_word(read, word.text, word.end)) == word.tokens


@pytest.mark.parametrize("word", ["tabby", "ca", "cat sofa", "", "\ud800"])
def test_a_missing_word_lists_those_there_are(word: str) -> None:
    with pytest.raises(PromptError) as caught:
        find_words(prompt("a cat on a sofa"), word)
    expected = f'{word!r} is not a word of "a cat on a sofa". Words: a, cat, on, a, sofa. '
    assert str(caught.value).startswith(expected)

"""Learnt tokens of one vector and of several: read as diffusers reads them, one word each."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import nulltext
from nulltext.attention.maps import word_map
from nulltext.editing.heatmaps import heat_map_steps
from nulltext.errors import PromptError
from nulltext.models.prompt_notes import notes_on_prompts
from nulltext.models.side_files import KnownWords
from nulltext.studio.forms import Chip, chips_of, weights_of
from nulltext.words.alignment import attention_map, check_edit, token_weights
from nulltext.words.prompts import blank_learnt_words, clean, find_words, spelled_words, tokenize
from support.pictures import file_pixels
from support.studios import Visitor, studio_on
from support.tiny import own_tokenizer, tiny_pipeline
from support.vocabularies import texts

VECTORS = {"<toy>": 1, "mystyle": 2, "<cat>": 8, "<cat-toy>": 2, "MyTok": 3}
EIGHT = " ".join(["<cat>", *(f"<cat>_{part}" for part in range(1, 8))])


def teach(pipe, folder, vectors=VECTORS, suffixes=("", "_2")):
    """Load tokens as people do: from a file per token and text encoder of the pipeline."""
    for suffix in suffixes:
        encoder = getattr(pipe, f"text_encoder{suffix}", None)
        if encoder is None:
            continue
        for seed, (token, count) in enumerate(vectors.items()):
            rows = torch.Generator().manual_seed(seed)
            learnt = torch.randn(count, encoder.config.hidden_size, generator=rows)
            file = folder / f"{seed}{suffix}.safetensors"
            save_file({token: learnt}, file)
            tokenizer = getattr(pipe, f"tokenizer{suffix}")
            pipe.load_textual_inversion(str(file), text_encoder=encoder, tokenizer=tokenizer)
    return pipe


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def pipe(request, tmp_path_factory):
    return teach(tiny_pipeline(request.param), tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    """Stable Diffusion 1 in miniature, with the tokens."""
    return nulltext.from_pipe(teach(tiny_pipeline("sd1"), tmp_path_factory.mktemp("tokens")))


@lru_cache
def taught():
    """A tokenizer with the tokens' names."""
    tokenizer = own_tokenizer("<|endoftext|>", 77)
    for token, count in VECTORS.items():
        tokenizer.add_tokens([token, *(f"{token}_{part}" for part in range(1, count))])
    return tokenizer


def read(text, length=77):
    return tokenize(taught(), text, max_length=length, allow_empty=True)


def named(ids):
    """Tokens by their names."""
    added = {number: token.content for number, token in taught().added_tokens_decoder.items()}
    return [added.get(each) or taught().convert_ids_to_tokens(each) for each in ids]


def spelled(prompt):
    """The names of the tokens between the frame."""
    return named(prompt.token_ids[1 : prompt.end_of_text])


# --- the same tokens and embeddings as diffusers' -------------------------------------------------


def check_against_diffusers(pipe, prompt, theirs):
    """Ids and embeddings of `prompt` are those that the stock pipeline has for `theirs`."""
    model = nulltext.from_pipe(pipe)
    for suffix in ("", "_2"):
        tokenizer = getattr(pipe, f"tokenizer{suffix}", None)
        if tokenizer is not None:
            expected = tokenizer(
                pipe.maybe_convert_prompt(theirs, tokenizer),
                padding="max_length",
                truncation=True,
                max_length=model.max_tokens,
            ).input_ids
            ours = tokenize(tokenizer, prompt, max_length=model.max_tokens)
            assert list(ours.token_ids) == expected
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    sequence, _, *pooled = pipe.encode_prompt(theirs, **options)
    embeds = model.embed([prompt])
    torch.testing.assert_close(embeds[:, : model.max_tokens], sequence)
    if pooled:
        torch.testing.assert_close(model.text.rows.unpack(embeds)[1], pooled[0])


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of mystyle",
        "mystyle and mystyle",
        "(mystyle), on a sofa.",
        "mystyle's hat, mystyles, mystyle2",
        "amystyle mystylemystyle",
        "a <cat>",
        "a <cat-toy>, a <cat>",
        "x<cat-toy>y<toy>",
        "a <toy> mystyle_1",  # a part by itself is a token of one vector
        "a mystyle_3",  # no part: there is none of this number
        "a mystyl\u00e9",  # no token
    ],
)
@torch.no_grad()
def test_a_prompt_is_what_the_stock_pipeline_makes_of_it(pipe, prompt):
    check_against_diffusers(pipe, prompt, prompt)


@pytest.mark.parametrize(
    ("prompt", "same"),
    [
        # diffusers expands the parts of what is written out once more
        ("a mystyle mystyle_1 on a sofa", "a mystyle on a sofa"),
        (f"a {EIGHT}", "a <cat>"),
        ("a mystyle\n mystyle_1", "a mystyle"),
        # and nothing that has capitals, in the prompt or in its own name
        ("a MyStyle, mYSTYLE mystyle_1", "a mystyle, mystyle"),
        ("a MyTok", "a MyTok MyTok_1 MyTok_2"),
        ("a mytok", "a MyTok MyTok_1 MyTok_2"),
        ("a MyTok MYTOK_1 mytok_2", "a MyTok MyTok_1 MyTok_2"),
    ],
)
@torch.no_grad()
def test_capitals_and_parts_written_out_are_the_same_token(pipe, prompt, same):
    check_against_diffusers(pipe, prompt, same)


SNIPPETS = ["mystyle", "<cat>", "<cat-toy>", "<toy>", "cat", "<", ">", ",", "'s", "s", "2", "\n"]
PARTS = ["MYSTYLE", "mystyle_1", "MyTok", "mytok_1", "mytok_2", "_1", "<cat>_1", "\u0301", "\u200d"]
snippets = st.sampled_from([*SNIPPETS, " ", " "])
plain = st.lists(snippets, max_size=8).map("".join).map(clean)
anything = st.lists(snippets | st.sampled_from(PARTS), max_size=12).map("".join).map(clean)


@given(plain)
@settings(max_examples=200, deadline=None)
def test_tokens_are_those_of_the_prompt_that_diffusers_expands(text):
    expanded = TextualInversionLoaderMixin().maybe_convert_prompt(text, taught())
    expected = taught()(expanded, add_special_tokens=False).input_ids
    prompt = read(text, 300)
    assert list(prompt.token_ids[1 : prompt.end_of_text]) == expected


@given(anything)
@settings(max_examples=300, deadline=None)
def test_every_token_has_one_word_whatever_is_typed(text):
    prompt = read(text, 300)
    owned = [position for word in prompt.words for position in word.tokens]
    assert owned == list(range(1, prompt.end_of_text))
    assert all(word.tokens and word.text == text[word.start : word.end] for word in prompt.words)
    assert "".join(text.split()) == "".join("".join(texts(prompt)).split())
    for word in prompt.words:
        assert word.name == word.text or word.learnt
        assert not any(character.isspace() for character in word.name)


@given(anything)
@settings(max_examples=300, deadline=None)
def test_the_tokenizers_own_tokens_are_there_and_all_vectors_behind_them(text):
    ids = taught()(text, add_special_tokens=False).input_ids
    expected = "".join(f"{name}\n" for name in named(ids))
    for token, count in VECTORS.items():
        rest = "".join(f"{token}_{part}\n" for part in range(1, count))
        expected = re.sub(f"^{token}\n({rest})?", f"{token}\n{rest}", expected, flags=re.MULTILINE)
    assert "".join(f"{name}\n" for name in spelled(read(text, 300))) == expected


# --- one word -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a photo of mystyle.", {"a": 1, "photo": 1, "of": 1, "mystyle": 2, ".": 1}),
        ("(<cat>), <cat-toy>", {"(": 1, "<cat>": 8, ")": 1, ",": 1, "<cat-toy>": 2}),
        (f"a {EIGHT} sofa", {"a": 1, EIGHT: 8, "sofa": 1}),
        ("mystyles 3mystyle mystyle's", {"mystyles": 3, "3mystyle": 3, "mystyle's": 3}),
        ("MYTOK mytok_1 MyTok_2 MyTok_1", {"MYTOK mytok_1 MyTok_2": 3, "MyTok_1": 1}),
        ("mystyle, mystyle_1", {"mystyle": 2, ",": 1, "mystyle_1": 1}),
        ("MyTok MyTok_2", {"MyTok": 3, "MyTok_2": 1}),
        ("mytok_2 mytok_1", {"mytok_2": 1, "mytok_1": 1}),
        ("mystyle mystyle_1_1", {"mystyle mystyle_1": 2, "_": 1, "1": 1}),
    ],
)
def test_a_token_is_one_word_with_all_its_vectors(text, words):
    prompt = read(text)
    assert {word.text: len(word.tokens) for word in prompt.words} == words


def test_what_is_written_out_has_the_name_of_its_first_part():
    prompt = read("a mystyle  mystyle_1 mystyle mystyle_1s MYSTYLE")
    assert texts(prompt) == ["a", "mystyle  mystyle_1", "mystyle mystyle_1s", "MYSTYLE"]
    assert [word.name for word in prompt.words] == ["a", "mystyle", "mystyles", "MYSTYLE"]
    assert [word.learnt for word in prompt.words] == [False, True, True, True]
    assert spelled(prompt)[1:6] == ["mystyle", "mystyle_1", "mystyle", "mystyle_1", "s</w>"]


def test_every_vector_counts():
    assert read("a <cat> on <cat>", 20).end_of_text == 19
    with pytest.raises(PromptError) as caught:
        read("a <cat> on <cat>", 19)
    assert str(caught.value) == (
        "The prompt has 18 tokens, and this model reads at most 17; "
        "shorten it by 1 tokens; this does not fit: '<cat>'."
    )


def test_a_token_that_was_added_as_special_is_learnt_too():
    """As the training scripts of diffusers save a tokenizer."""
    tokenizer = own_tokenizer("!", 77)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s0>", "<s0>_1"]})
    prompt = tokenize(tokenizer, "a <s0>!", max_length=20)
    assert [(word.text, word.tokens, word.learnt) for word in prompt.words] == [
        ("a", (1,), False),
        ("<s0>", (2, 3), True),
        ("!", (4,), False),  # the padding token is added, too
    ]


def test_a_word_is_found_by_its_name_and_as_it_was_typed():
    prompt = read("a mystyle mystyle_1, MyStyle, mystyles and mystyle_1")
    written, short, longer, part = prompt.words[1], prompt.words[3], prompt.words[5], 12
    assert (
        find_words(prompt, "mystyle")
        == find_words(prompt, "MYSTYLE")
        == (written.tokens + short.tokens)
    )
    assert find_words(prompt, "mystyle mystyle_1") == written.tokens
    assert find_words(prompt, "mystyles") == longer.tokens
    assert find_words(prompt, "mystyle_1") == (part,)
    assert find_words(prompt, "a mystyle,") == (1, *written.tokens, 4)
    with pytest.raises(PromptError, match="Words: a, mystyle, ,, MyStyle, ,, mystyles, and, mys"):
        find_words(prompt, "toy")


def test_a_part_of_a_name_finds_it_where_nothing_else_does():
    both = read("a cat, a <cat> and a <cat-toy>")
    spans = {word.text: word.tokens for word in both.words}
    assert find_words(both, "cat") == spans["cat"]
    assert find_words(both, "<cat>") == spans["<cat>"]
    assert find_words(both, "<cat-toy>") == find_words(both, "toy") == spans["<cat-toy>"]
    assert find_words(read("a <cat-toy>"), "cat") == (2, 3)


def test_a_weight_stands_at_every_vector():
    for text in ("a <cat>, a cat", f"a {EIGHT}, a cat"):
        weights = token_weights(read(text, 20), {"<cat>": 2.0})
        assert weights.tolist() == [1, 1, *[2] * 8, *[1] * 10]


# --- alignment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", ["auto", "replace"])
def test_a_word_and_a_token_hand_all_their_attention_over(alignment):
    word, token = read("a photo of a dog", 20), read("a photo of a <cat>", 20)
    to, back = attention_map(word, token, alignment), attention_map(token, word, alignment)
    for carried, span in ((to.mapping, 1 / 8), (back.mapping.T, 1.0)):
        assert carried[5, 5:13].tolist() == [span] * 8
        assert carried[5].sum() == carried[:, 5:13].sum() == 8 * span
        assert torch.equal(carried[:5, :5], torch.eye(5))
        assert carried[6, 13] == 1  # the end of text
    assert to.gate.min() == back.gate.min() == 1


def test_a_token_in_the_place_of_an_article_and_its_noun():
    style, dog = read("a photo of mystyle", 20), read("a photo of a dog", 20)
    to, back = attention_map(dog, style), attention_map(style, dog)
    assert to.mapping[5, 4:6].tolist() == [0.5, 0.5]
    assert to.mapping[4, :7].sum() == 0  # "a" goes
    assert back.mapping[4:6, 5].tolist() == [1, 1]
    assert back.gate[:7].tolist() == [1, 1, 1, 1, 0, 1, 1]  # "a" comes


def test_written_out_or_not_the_word_is_the_same():
    short, written = read("a mystyle cat, MYSTYLE"), read("a mystyle mystyle_1 dog, mystyle")
    for source, target in ((short, written), (written, short)):
        carried = attention_map(source, target, "refine")
        kept = [int(gate) for gate in carried.gate[:8]]
        assert kept == [1, 1, 1, 1, 0, 1, 1, 1]
        assert torch.equal(carried.mapping[2:4, 2:4], torch.eye(2))
    with pytest.raises(PromptError, match="says the same"):
        check_edit(read("a mystyle"), read("a mystyle mystyle_1"), reweights=False)


# --- what is said of prompts ----------------------------------------------------------------------


def test_a_token_is_not_spelled_out(sd1):
    assert spelled_words(read("a <cat>, mystyles and a qzj")) == ["qzj"]
    assert notes_on_prompts(sd1, ["a <cat> and MyTok"]) == []
    assert "no word for qzj and" in notes_on_prompts(sd1, ["a mystyle qzj"])[0]


def test_a_token_is_a_known_word(sd1):
    model = replace(sd1, known_words=KnownWords(("rose",), ("a", "photo", "of")))
    assert blank_learnt_words(read("a <cat>,mystyles of mystyle mystyle_1")) == "a  ,  of  "
    assert notes_on_prompts(model, ["a photo of mystyle", "a <cat-toy>"]) == []
    pair = ("a <toy> cat", "a <toy> dog")
    (said,) = notes_on_prompts(model, pair, [pair])
    assert 'learnt "cat", "dog", and "a <toy> cat" and "a <toy> dog" differ in nothing' in said
    for pair in (("a dog", "a <toy> cat"), ("a mystyle cat", "a dog"), ("", "a <toy>")):
        prompts = [prompt for prompt in pair if prompt]
        assert "what changes is chance" not in " ".join(notes_on_prompts(model, prompts, [pair]))
    same = ("a mystyle cat", "a mystyle mystyle_1 dog")
    assert "what changes is chance" in notes_on_prompts(model, same, [same])[0]


# --- work with the model --------------------------------------------------------------------------


def test_the_map_of_a_word_is_the_sum_over_its_vectors(sd1, photo):
    made = nulltext.invert(sd1, photo, "a <cat> mystyle mystyle_1", method="ddim", num_steps=2)
    seen = []
    spec = nulltext.EditSpec("a dog, mystyle")
    nulltext.diffusion.run(
        nulltext.editing.edit_steps(sd1, made, [spec], on_maps=lambda s, _: seen.append(s[0]))
    )
    source, target = nulltext.diffusion.run(heat_map_steps(sd1, made, [spec]))
    assert [word.word for word in source.words] == ["a", "<cat>", "mystyle"]
    assert [word.word for word in target.words] == ["a", "dog", ",", "mystyle"]
    mean = torch.stack(seen).mean(0)
    for word, tokens in zip(source.words, [(1,), range(2, 10), (10, 11)], strict=True):
        torch.testing.assert_close(word.heat, word_map(mean, tuple(tokens)))
        assert word.steps.shape[0] == 2


def test_from_the_command_line(sd1, here, run):
    sd1.to_diffusers().save_pretrained("model")
    edit = ("edit", "cat.png", "--model", "model", "--method", "ddim", "--steps", "2")
    for number, source in enumerate(["a mystyle cat", "a mystyle mystyle_1 cat"]):
        code, _, err = run(
            *(*edit, "--source", source, "--target", "a dog, MYSTYLE", "-o", f"{number}.png"),
            *("--weight", "mystyle=2", "--blend", "mystyle"),
        )
        assert code == 0, err
    assert np.array_equal(file_pixels("0.png"), file_pixels("1.png"))
    code, _, err = run(*edit, "--source", "a cat", "--target", "a mystyle", "--weight", "x=2")
    assert code == 2
    assert "'x' is not a word of \"a mystyle\". Words: a, mystyle. Name one" in err
    code, _, err = run(
        *(*edit, "--source", "a mystyle mystyle_1", "--target", "a mystyle", "--blend", "x"),
        *("--weight", "mystyle=2"),
    )
    assert code == 2
    assert "Words: a, mystyle; a, mystyle." in err


def test_chips_in_the_studio(sd1, tmp_path, photo):
    photo.save(tmp_path / "cat.png")
    with studio_on(sd1, "model") as studio:
        visitor = Visitor(studio)
        visitor.open(tmp_path / "cat.png")
        view = visitor.invert(
            "a mystyle mystyle_1 on <cat>", method="ddim", steps=2, crop=[8, 0, 48, 48]
        )
        assert view["words"] == ["a", "mystyle mystyle_1", "on", "<cat>"]
        assert visitor.ask("look", word=3)["look"]["word"] == 3
        view = visitor.ask("edit", target="a mystyle on mytok", chips=[])
        assert view["problem"] is None
        assert view["result"]["label"] == "<cat> \u2192 mytok"
        assert view["result"]["remark"] == (
            "The edit stops inside the photo, at the crop's right: draw the crop around all that "
            "changes."
        )
        view = visitor.ask("edit", target="a mystyle on mytok", chips=[], blend="x")
        assert view["problem"].endswith("the words are a, mystyle, on, <cat>, mytok.")


def test_learnt_tokens_are_one_chip():
    prompt = read("a <cat>, a mystyle mystyle_1")
    chips = chips_of(prompt)
    assert [chip.text for chip in chips] == ["a", "<cat>", ",", "a", "mystyle mystyle_1"]
    chips[1:3] = [Chip(1, "MyTok", 2.0), Chip(None, "mystyle"), Chip(2, ",")]
    assert weights_of(chips, read("a MyTok mystyle, a mystyle mystyle_1")) == {"MyTok": 2.0}


# --- both text encoders of SDXL -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "_2"])
@pytest.mark.parametrize("vectors", [1, 2])
def test_a_token_in_one_encoder_alone_is_refused(tmp_path, suffix, vectors):
    pipe = teach(tiny_pipeline("sdxl"), tmp_path, {"mystyle": vectors}, [suffix])
    model = nulltext.from_pipe(pipe)
    with pytest.raises(PromptError, match="'a mystyle' differently; load a learnt token into"):
        model.embed(["a mystyle"])
    assert model.embed(["a cat"]).isfinite().all()


def test_encoders_with_unequal_vectors_are_refused(tmp_path):
    pipe = teach(tiny_pipeline("sdxl"), tmp_path, {"mystyle": 2}, [""])
    model = nulltext.from_pipe(teach(pipe, tmp_path, {"mystyle": 3}, ["_2"]))
    with pytest.raises(PromptError, match="split 'a mystyle' differently"):
        model.embed(["a mystyle"])

"""What an edit is about, read off two prompts."""

from __future__ import annotations

import pytest

from nulltext.words.changes import read_change
from nulltext.words.prompts import TokenizedPrompt, tokenize


def words(read: TokenizedPrompt, indices: tuple[int, ...]) -> str:
    return " ".join(read.words[i].text for i in indices)


@pytest.fixture(scope="module")
def read(flowers):
    """Tokens do not matter here, words do: the bundled tokenizer spells out what it does not
    know."""

    def call(text: str) -> TokenizedPrompt:
        return tokenize(flowers.tokenizer, text, max_length=300, allow_empty=True)

    return call


@pytest.mark.parametrize(
    ("source", "target", "things", "added", "reshaped"),
    [
        ("an orange flower", "a red flower", "flower", "", False),
        ("a photo of a cat", "a photo of a dog", "cat", "", True),
        ("a cat on a bench", "a cat wearing a hat on a bench", "", "hat", True),
        ("a cat wearing a hat", "a cat", "hat", "", True),
        ("a bright dog", "a light blue dog", "dog", "", False),
        ("a daisy", "a large daisy", "daisy", "", False),
        ("a large red daisy", "a daisy", "daisy", "", False),
        ("a dog sleeping on the grass", "a dog running on the grass", "dog", "", True),
        ("a dog on the grass", "a dog on the beach", "grass", "", True),
        ("a gold ring on a finger", "a silver ring on a finger", "ring", "", False),
        ("a cat, a dog", "a cat, a horse", "dog", "", True),
        ("", "a red flower", "", "flower", True),
        ("une fleur rouge", "une fleur bleue", "rouge", "", True),
    ],
)
def test_a_change_is_about_the_noun_of_its_phrase(read, source, target, things, added, reshaped):
    old, new = read(source), read(target)
    change = read_change(old, new)
    assert change.about == "things"
    assert words(old, change.source) == things
    assert words(new, change.added) == added
    assert change.reshaped == reshaped


@pytest.mark.parametrize(
    ("source", "target", "stays"),
    [
        ("a rose with a dark background", "a rose with a green background", "rose"),
        ("a photo of a rose", "a photo of a rose with a dark background", "rose"),
        ("a rose and a cat, dark background", "a rose and a cat", "rose cat"),
    ],
)
def test_a_background_is_all_but_the_things(read, source, target, stays):
    old = read(source)
    change = read_change(old, read(target))
    assert change.about == "background"
    assert words(old, change.source) == stays


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a photo of a cat", "a painting of a cat"),
        ("a photo of a rose", "a photo of a rose at night"),
        ("a photo of a house", "a photo of a house in winter"),
        ("a photo of a house", "a photo of a house in warm light"),
        ("a rose with a dark background", "a tulip with a green background"),
        ("a photo of a cat", "a photo of a cat in the style of Monet"),
        ("a photo of a rose", "a photo of the rose"),
        ("a photo of a rose", "a photo of a rose in black and white"),
        ("a photo of a rose", "a photo of a rose, high quality"),
    ],
)
def test_styles_lights_and_seasons_are_about_the_picture(read, source, target):
    assert read_change(read(source), read(target)).about == "picture"


@pytest.mark.parametrize(
    ("source", "target", "attributes"),
    [
        ("an orange flower", "a red flower", ("red",)),
        ("a cat", "a large red cat on a sofa", ("large", "red")),
        ("an orange", "a lemon", ()),
        ("a black retriever", "a golden retriever", ("golden",)),
    ],
)
def test_attributes_are_the_new_words_before_a_noun(read, source, target, attributes):
    assert read_change(read(source), read(target)).attributes == attributes


def test_a_background_of_nothing_is_the_picture(read):
    change = read_change(read("a photo, dark background"), read("a photo, green background"))
    assert change.about == "picture"


def test_a_weighted_word_counts_as_changed(read):
    text = read("a red rose and a cat")
    assert read_change(text, text).about == "picture"
    change = read_change(text, text, {"red": 2.0})
    assert (change.about, words(text, change.source)) == ("things", "rose")
    assert change.attributes == ()


def test_a_weight_is_about_the_thing_of_its_own_word(read):
    """Of "red flower" and "red bird" either is weighed by itself."""
    text = read("a red flower under a red bird")
    flower, bird = (read_change(text, text, {name: 2.0}).source for name in ("red#1", "red#2"))
    assert [text.words[at].text for at in (*flower, *bird)] == ["flower", "bird"]
    assert read_change(text, text, {"red": 2.0}).source == flower + bird
    assert read_change(text, text, {"cow": 2.0}).about == "picture"
    assert read_change(text, text, {"red": 2.0, "red#1": 1.0}).source == bird

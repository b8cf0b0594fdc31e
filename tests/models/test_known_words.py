"""The words that a model was taught: found in captions, kept beside the weights, and missed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nulltext.errors import ModelError
from nulltext.models.checkpoint import Checkpoint
from nulltext.models.load import _side_file
from nulltext.models.prompt_notes import note_on_words
from nulltext.models.side_files import (
    LONGEST_WORD,
    MAX_BYTES,
    WORDS_FILE,
    KnownWords,
    read_words,
    write_words,
)
from nulltext.training.dataset import Example, known_words
from nulltext.training.recipe import CaptionSettings
from nulltext.words.prompts import plain_words

KNOWN = KnownWords(("rose", "daisy", "red", "white"), ("a", "photo", "of", "with", "roses"))


def examples(count, **labels):
    return [Example(Path(f"{number}.jpg"), "train", **labels) for number in range(count)]


def learnt(shown, settings=CaptionSettings()):  # noqa: B008
    return known_words(shown, settings, torch.Generator().manual_seed(0))


def test_composed_captions_teach_their_labels_and_templates_and_no_fillers():
    shown = [
        replace(example, path=Path(f"{example.kind}-{example.path}"))
        for kind, colour in (("daisy", "white"), ("rose", "red"))
        for example in examples(30 if kind == "rose" else 25, kind=kind, colour=colour)
    ]
    shown += [Example(Path("odd.jpg"), "train", kind="rose", colour="mauve", background="dark")]
    known = learnt([*shown] * 4, CaptionSettings(filler=0.9))
    assert known.named == ("flower", "rose", "daisy", "red", "white")  # one mauve photo is too few
    frames = {"a", "photo", "of", "picture", "close"}
    assert set(known.others) == frames | {"flowers", "roses", "daisies"}
    assert known.groups == {"kind": known.named[:3], "colour": known.named[3:]}
    never = CaptionSettings(plural=0.0, general=0.0)
    assert learnt(shown, never).words == frames | {"rose", "daisy", "red", "white"}


def test_whole_captions_teach_what_a_few_of_them_say():
    shown = examples(40, captions=("A Dog on the lawn.", "my dog's photo"))
    shown[:2] = examples(2, captions=("an otter on the lawn",))
    known = learnt(shown)
    assert known.named == ("lawn", "dog", "my")
    assert known.groups == {}
    assert known.words == {"a", "dog", "on", "the", "lawn", "my", "photo"}
    assert "otter" in learnt(shown[:9])  # of nine photos, two are many


def test_words_are_compared_as_the_text_encoder_has_them():
    assert plain_words("A Daisy, two; the rose's  RED-ish (hue)...") == [
        *("a", "daisy", "two", "the", "rose", "red", "ish", "hue"),
    ]
    assert KNOWN.missing(["A photo of the Rose's “red”, in front of daisies!"]) == [
        *("in", "front", "daisies"),
    ]


@pytest.mark.parametrize(
    ("source", "target", "blind"),
    [
        ("a photo of a cat", "a photo of a dog", True),
        ("a photo of a cat", "a photo of the cat", False),  # nothing that tells differs
        ("a photo of a cat", "a photo of a rose", False),
        ("a photo of a rose", "a photo of a cat", False),  # the rose goes
        ("a rose", "a rose with a mouse", True),
        ("a rose with a mouse", "a daisy with a house", False),
        ("", "a dog", False),
        ("a rose with a photo", "a rose without a photo", True),  # "with" by itself shows nothing
    ],
)
def test_an_edit_of_unknown_words_alone_is_blind(source, target, blind):
    assert KNOWN.blind_to(source, target) is blind


def test_the_note_is_one_sentence_and_what_is_known():
    said = note_on_words("m", KNOWN, ["a red cat", "a red rose"], [("a red cat", "a red rose")])
    assert said == (
        "Note: the model 'm' has not learnt \"cat\", which will do little. "
        "It knows rose, daisy, red, white."
    )
    said = note_on_words("m", KNOWN, ["a cat", "a dog"], [("a cat", "a dog")])
    assert 'learnt "cat", "dog", and "a cat" and "a dog" differ in nothing else' in said
    assert note_on_words("m", KNOWN, ["a rose", "the daisy"], [("a rose", "the daisy")]) is None
    assert 'learnt "without", which' in note_on_words("m", KNOWN, ["a rose without a photo"])
    many = KnownWords(tuple(f"w{number}" for number in range(30)), ())
    assert "w11 and 18 more." in note_on_words("m", many, ["cat"])


def test_the_words_are_read_back_for_their_own_weights_only(tmp_path):
    assert read_words(tmp_path, ("f" * 32,)) is None
    long = replace(KNOWN, others=(*KNOWN.others, "x" * (LONGEST_WORD + 1), "été"))
    write_words(long, "f" * 32, tmp_path)
    assert read_words(tmp_path, ("f" * 32,)) == replace(KNOWN, others=(*KNOWN.others, "été"))
    assert read_words(tmp_path, ("e" * 32,)) is None


def test_groups_are_read_back_where_there_are_any(tmp_path):
    groups = {"kind": ("rose", "daisy"), "colour": ("red",)}
    path = write_words(replace(KNOWN, groups={**groups, "scent": ("sweet",)}), "f", tmp_path)
    assert read_words(tmp_path, ("f",)).groups == groups  # none of the words of scent is known
    content = json.loads(path.read_text())
    del content["groups"]  # a file as it was written before
    path.write_text(json.dumps(content))
    assert read_words(tmp_path, ("f",)) == KNOWN
    write_words(KNOWN, "f", tmp_path)
    assert json.loads(path.read_text()) == content


@pytest.mark.parametrize(("odd", "grouped"), [(2, False), (3, True)])
def test_a_word_is_in_the_groups_of_enough_photos(odd, grouped):
    shown = examples(40, kind="rose", colour="red", background="green")
    shown[:odd] = [replace(each, colour="green", background="red") for each in shown[:odd]]
    found = {name: set(words) for name, words in learnt(shown * 3).groups.items()}
    colours, backgrounds = {"red"}, {"green"}
    if grouped:
        colours, backgrounds = {"red", "green"}, {"red", "green"}
    assert found == {"kind": {"flower", "rose"}, "colour": colours, "background": backgrounds}


def test_no_words_are_no_list(tmp_path):
    """Else every word would be noted, and nothing named that the model knows."""
    assert write_words(KnownWords((), ("x" * (LONGEST_WORD + 1),)), "f", tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / WORDS_FILE).write_text(json.dumps(WHOLE | {"named": []}))
    assert read_words(tmp_path, ("f",)) is None


WHOLE = {"version": 1, "fingerprint": "f", "named": ["rose"], "others": []}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 99_999,
        json.dumps(WHOLE | {"version": 2}),
        json.dumps(WHOLE | {"fingerprint": 3}),
        json.dumps(WHOLE | {"named": "rose"}),
        json.dumps(WHOLE | {"named": ["rose", 3]}),
        json.dumps(WHOLE | {"named": ["\x1b[2Jrose"]}),
        json.dumps(WHOLE | {"groups": ["rose"]}),
        json.dumps(WHOLE | {"groups": {"kind": "rose"}}),
        json.dumps(WHOLE | {"groups": {"<b>kind": ["rose"]}}),
        json.dumps(WHOLE | {"groups": {"kind": ["rose"] * 41}}),
        json.dumps(WHOLE | {"groups": {f"kind{n}": ["rose"] for n in range(11)}}),
        json.dumps(WHOLE | {"named": ["x" * (LONGEST_WORD + 1)]}),
        json.dumps({name: value for name, value in WHOLE.items() if name != "others"}),
        " " * (MAX_BYTES + 1),
    ],
)
def test_a_damaged_list_is_said_and_the_model_loads_without(text, tmp_path, caplog):
    (tmp_path / WORDS_FILE).write_text(text)
    with pytest.raises(ModelError, match=r"words\.json' cannot be read \(.+\); get it again"):
        read_words(tmp_path, ("f",))
    assert _side_file(Checkpoint.at(tmp_path), "f", read_words) is None
    (record,) = caplog.records
    assert "cannot be read" in record.getMessage()


def test_the_bundled_model_has_its_words(flowers):
    """After new weights: python benchmarks/known_words.py src/nulltext/models/bundled/flowers."""
    known = flowers.known_words
    assert known is not None, "the list is of other weights"
    kinds = {"flower", "daisy", "dandelion", "rose", "sunflower", "tulip"}
    colours = {"red", "orange", "yellow", "pink", "purple", "blue", "white"}
    assert set(known.named[: len(kinds)]) == kinds
    assert set(known.named) == kinds | colours | {"green", "dark", "grey", "brown"}
    assert {"photo", "background", "daisies", "in", "front"} <= known.words
    assert not {"cat", "small", "the"} & known.words
    assert {name: set(words) for name, words in known.groups.items()} == {
        "kind": kinds,
        "colour": colours,
        "background": {"dark", "green", "grey", "white", "brown", "blue"},
    }

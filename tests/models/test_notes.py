"""What is said of prompts before a model works on them, together."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from nulltext.models.prompt_notes import notes_on_prompts, notes_on_writing
from nulltext.models.side_files import KnownWords


def said_of(model, source, *targets):
    changes = [(source, target) for target in targets]
    return notes_on_prompts(model, [source, *targets], changes)


def test_plain_captions_are_not_remarked_on(tiny_sd1):
    assert said_of(tiny_sd1, "a cat (red)", "a (very) red cat", "a dog") == []


def test_what_another_tool_asks_for_is_no_unknown_word(tiny_sd1):
    model = replace(tiny_sd1, known_words=KnownWords(("red", "cat"), ("a",)))
    *syntax, words = said_of(model, "a cat", "a ((red)) cat [blue:0.5]", "a red <lora:x:1>")
    assert [note.split('"')[1] for note in syntax] == ["((red))", "[blue:0.5]", "<lora:x:1>"]
    assert 'has not learnt "blue", and "a cat" and' not in words  # red differs, too
    assert 'has not learnt "blue", which' in words


def test_an_instruction_has_no_unknown_words(tiny_sd1):
    model = replace(tiny_sd1, known_words=KnownWords(("red", "cat"), ("a",)))
    (note,) = said_of(model, "a red cat", "make it white")
    assert note == (
        'Note: "make it white" is an instruction, and a target is a caption of the edited picture; '
        'write --target "a white cat".'
    )
    (note,) = said_of(model, "a cat", "make it happy")
    assert 'repeat "a cat" with other words' in note
    (note,) = said_of(model, "a cat", "remove the cat")
    assert "seldom go" in note


def test_instructions_of_a_chain_are_read_one_after_another(tiny_sd1):
    chain = ["a white cat", "make it red", "turn the cat into a dog", "make it blue"]
    notes = notes_on_writing(tiny_sd1, chain, list(pairwise(chain)))
    assert [note.rsplit("--target ", 1)[1] for note in notes] == [
        *('"a red cat".', '"a red dog".', '"a blue dog".'),
    ]


def test_a_saved_inversion_may_have_no_words(tiny_sd1):
    (note,) = notes_on_writing(tiny_sd1, ["make it red"], [("", "make it red")])
    assert note.endswith("; say what it shows.")

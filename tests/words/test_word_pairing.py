"""Pairing words: by name on real prompts, and by property on arbitrary ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nulltext.words.alignment import ARTICLES, OPENERS, align_words

few_words = st.lists(st.sampled_from(["a", "the", "cat", "dog", "on", ",", "A"]), max_size=5)


def shown(source, target):
    """kept and swapped words as old:new, deleted ones as old-, inserted ones as -new."""
    old, new = source.split(), target.split()
    parts = []
    for i, j in align_words(old, new):
        left, right = "" if i is None else old[i], "" if j is None else new[j]
        parts.append(f"{left}:{right}" if left and right else f"{left}-{right}")
    return " ".join(parts)


ORANGE = "a photo of an orange flower"


@pytest.mark.parametrize(
    ("source", "target", "pairs"),
    [
        (ORANGE, "a photo of a daisy in the snow", "an:a orange- flower:daisy -in -the -snow"),
        (ORANGE, "a photo of a white daisy", "an:a orange:white flower:daisy"),
        (
            ORANGE,
            "a photo of a sunflower with a dark background",
            "an:a orange- flower:sunflower -with -a -dark -background",
        ),
        (ORANGE, "a photo of a flower", "an:a orange- flower:flower"),
        (
            ORANGE,
            "a photo of an orange flower with a dark background",
            "an:an orange:orange flower:flower -with -a -dark -background",
        ),
        (
            ORANGE,
            "a photo of a very bright red flower",
            "an:a -very -bright orange:red flower:flower",
        ),
    ],
)
def test_photos_of_flowers(source, target, pairs):
    assert shown(source, target) == "a:a photo:photo of:of " + pairs


@pytest.mark.parametrize(
    ("source", "target", "pairs"),
    [
        (
            "a lemon cake",
            "an apple pie on a table",
            "a:an lemon:apple cake:pie -on -a -table",
        ),
        ("a cat on a table", "a dog under a chair", "a:a cat:dog on:under a:a table:chair"),
        ("a cat", "the cat sitting on a sofa", "a:the cat:cat -sitting -on -a -sofa"),
        ("very bright red flower", "orange flower", "very- bright- red:orange flower:flower"),
        ("a cat", "a dog ,", "a:a cat:dog -,"),
        ("a cat ,", "a dog", "a:a cat:dog ,-"),
        ("a Cat sits", "A cat", "a:A Cat:cat sits-"),
        ("red rose", "rose garden", "red- rose:rose -garden"),
        ("a cat", "a cat and a dog", "a:a cat:cat -and -a -dog"),
        ("a cat and a dog", "a dog", "a:a cat- and- a- dog:dog"),
        ("eine rote Rose", "eine gelbe Rose", "eine:eine rote:gelbe Rose:Rose"),
        ("une rose", "une tulipe", "une:une rose:tulipe"),
        ("", "a b", "-a -b"),
        ("a b", "", "a- b-"),
        (", ,", "cat", ",- ,- -cat"),
    ],
)
def test_other_prompts(source, target, pairs):
    assert shown(source, target) == pairs


def every_common_subsequence(old, new):
    """Total weight of every common subsequence, by plain recursion."""
    if not old or not new:
        yield 0
        return
    yield from every_common_subsequence(old[1:], new)
    yield from every_common_subsequence(old, new[1:])
    if old[0] == new[0]:
        weight = 1 if old[0] in {"a", "on", ","} else 3
        yield from (weight + rest for rest in every_common_subsequence(old[1:], new[1:]))


@given(few_words, few_words)
@settings(max_examples=150, deadline=None)
def test_pairs_ascend_name_each_word_once_and_keep_what_can_be_kept(source, target):
    pairs = align_words(source, target)
    assert [i for i, _ in pairs if i is not None] == list(range(len(source)))
    assert [j for _, j in pairs if j is not None] == list(range(len(target)))

    def key(word):
        return "a" if word.lower() in ARTICLES else word.lower()

    old, new = [key(w) for w in source], [key(w) for w in target]
    both = [(old[i], new[j]) for i, j in pairs if i is not None and j is not None]
    kept = sum(1 if a in {"a", "on", ","} else 3 for a, b in both if a == b)
    assert kept == max(every_common_subsequence(old, new))
    for a, b in both:  # a swap never joins a word with a mark, an article or an opener
        assert a == b or not ({a, b} & {"a", ",", *OPENERS})


@given(few_words)
def test_equal_prompts_pair_word_by_word(words):
    assert align_words(words, words) == [(i, i) for i in range(len(words))]


def test_the_longest_prompts_align_at_once():
    source, target = [f"s{i}" for i in range(75)], [f"t{i}" for i in range(74)]
    assert align_words(source, target) == [(0, None)] + [(i + 1, i) for i in range(74)]

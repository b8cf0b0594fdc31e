"""Other tools' prompt syntax: found and named with what stands for it here, captions left alone."""

from __future__ import annotations

import pytest

from nulltext.models.prompt_notes import SYNTAX_KINDS, notes_on_syntax
from nulltext.words.prompt_syntax import RULES, find_syntax

# Text, kind, what it is about, its weight, and the text without marks.
WRITTEN = [
    ("a ((red)) flower", "weight", "red", 1.21, "a red flower"),
    ("a (red:1.3) flower", "weight", "red", 1.3, "a red flower"),
    ("a (dark red: 0.7) flower", "weight", "dark red", 0.7, "a dark red flower"),
    ("a [red] flower", "weight", "red", 1 / 1.1, "a red flower"),
    ("[[red]] flower", "weight", "red", 1 / 1.21, "red flower"),
    ("((red:1.2)) flower", "weight", "red", 1.32, "red flower"),
    ("a (<my>:1.2) flower", "weight", "<my>", 1.2, "a <my> flower"),
    ("red++ flower", "weight", "red", 1.21, "red flower"),
    ("flower, red--", "weight", "red", 0.81, "flower, red"),
    ("(dark red)1.2 flower", "weight", "dark red", 1.2, "dark red flower"),
    ("(dark red)++ flower", "weight", "dark red", 1.21, "dark red flower"),
    ("a {red} flower", "weight", "red", 1.05, "a red flower"),
    ("a {{red}} flower", "weight", "red", 1.1025, "a red flower"),
    ("1.5::red::, flower", "weight", "red", 1.5, "red, flower"),
    ("red::2 flower", "weight", "red", 2.0, "red flower"),
    ("red:: flower", "join", "::", 1.0, "red flower"),
    ("a [red|blue] flower", "choice", "red, blue", 1.0, "a red flower"),
    ("a {red|dark blue} flower", "choice", "red, dark blue", 1.0, "a red flower"),
    ("a __colour__ flower", "wildcard", "colour", 1.0, "a flower"),
    ("a [red:blue:0.5] flower", "steps", "blue", 1.0, "a blue flower"),
    ("a [blue:0.5] flower", "steps", "blue", 1.0, "a blue flower"),
    ("a flower, BREAK dark", "join", "BREAK", 1.0, "a flower,, dark"),
    ('a cat.swap("dog")', "join", '.swap("dog")', 1.0, "a cat"),
    ("a cat <lora:fur-v2:0.8>", "lora", "fur-v2", 0.8, "a cat"),
    ("a cat <hypernet:fur:1>", "hypernet", "<hypernet:fur:1>", 1.0, "a cat"),
    ("a cat, embedding:my-cat", "embedding", "my-cat", 1.0, "a cat,"),
    ("a <my-flower> flower", "token", "<my-flower>", 1.0, "a flower"),
    ("a flower --no leaf", "negative", "--no leaf", 1.0, "a flower"),
    ("a cat Negative prompt: ugly", "negative", "Negative prompt: ugly", 1.0, "a cat"),
    ("a flower --ar 3:2", "option", "--ar 3:2", 1.0, "a flower"),
    ("a \U0001f33a flower", "emoji", "hibiscus", 1.0, "a flower"),
    ("a ❤\ufe0f on a wall", "emoji", "", 1.0, "a on a wall"),
]  # fmt: skip

CAPTIONS = """
a flower (close up)
(close up) a flower
a dahlia (Dahlia pinnata) in bloom
the Eiffel Tower (1889)
a (very) old house
the (former) town hall
a (possibly) red flower
the hous [sic] on the hill
[untitled]
a sign with [REDACTED] on it
a chair [12] in a museum
a C++ book on a desk
a screen with g++ and Notepad++ open
std::vector on a whiteboard
a 4:3 photo of a cat
a photo in 16:9 (4:3)
a clock that shows 10:30
a departure board (10:30)
subtitles [00:12:30]
a score of 3:2 [2:1]
John 3:16 (Psalm 23:1)
a drawing (scale: 1:10)
a photo (f:2.8)
a photo (f/2.8, 1/125 s)
a photo (photo: 2019)
a plate (figure: 3)
rock & roll
a rock 'n' roll singer
it's the cat's hat
a man — smiling — at a table
a man -- smiling -- at a table
a man --smiling-- at a table
a flower--red--on a table
a flower-- a red one
a well-lit, black-and-white photo
a sign that says STOP AND GO
IN CASE OF FIRE BREAK GLASS
A CAT AND A DOG
a door with the word BREAK
B&B, AT&T and M&M's
an 18+ sign and an A+ grade
5 < 7 and 7 > 5
a heart <3 on a wall
a vase: (1) red, (2) blue
a list of (a) cats and (b) dogs
a man (left) and a woman (right)
the people (from left): Ann, Bob
"a quote" and 'another'
a cafe, naïve façade
a ™ sign, a © sign and a ® sign
an arrow ↑, a ♀ symbol, music ♪ and a ★★★ hotel
a file named snake_case.py
a smiley :-)) on a wall
f(x) = (x + 1)(x - 1)
the (x, y) plane
a jug (c. 1650)
a cat | a dog
no smoking sign, and no leaf
日本の花（赤い）
a photo of <PERSON> in a red dress
<unknown> artist
a keyboard with <Enter> and <br>, <h1> on a screen
Panels (a), (b), (c) of a comic
people (left), (right)
shoes (size:7) and (UK size:9)
a house (rooms:4) and (rooms:2)
a file (line:10)
a place (lat:45.3, lon:7.2) or (lat:1.3, lon:2.2)
a baby (months: 3.5)
a figure (see 1, 2:1.5)
The house-- old and abandoned
Google++ conference
__init__.py on a screen
__name__ == "__main__"
a page with {{template}}
a man {model released}
a man {{editorial use of this}}
War AND Peace book cover
Salt AND pepper
coffee BREAK at work
A (small) dog
the (Great) Wall of China
an (empty) street
the [REDACTED] file by an [unknown] hand
a path {user}/{0}
♥ playing card
ace of ♥
""".strip().splitlines()


@pytest.mark.parametrize(("text", "kind", "word", "figure", "plain"), WRITTEN)
def test_other_tools_syntax_is_found(text, kind, word, figure, plain):
    (found,), without = find_syntax(text, {"<my>"})
    assert (found.kind, found.word) == (kind, word)
    assert found.figure == pytest.approx(figure)
    assert found.text in text
    assert without == plain
    assert find_syntax(without, {"<my>"}) == ([], without)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_natural_captions_are_left_alone(caption):
    assert find_syntax(caption) == ([], caption)


def test_marks_within_marks_are_all_found():
    found, plain = find_syntax("(masterpiece), (fine), ((a (red:1.2) rose)) <lora:x:1> \\(close\\)")
    assert [(each.kind, each.word) for each in found] == [
        *(("lora", "x"), ("escape", "("), ("escape", ")"), ("weight", "red")),
        *(("weight", "a red rose"), ("weight", "masterpiece"), ("weight", "fine")),
    ]
    assert plain == "masterpiece, fine, a red rose (close)"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a (small) ((red)) rose", "a small red rose"),
        ("a ((red)) rose, (soft), (fine)", "a red rose, soft, fine"),
        ("a ((red)) rose AND a dog", "a red rose and a dog"),
        ("a ((red)) rose BREAK a dog", "a red rose , a dog"),
    ],
)
def test_marks_that_captions_have_count_beside_another(text, plain):
    assert find_syntax(text)[1] == plain


@pytest.mark.parametrize(
    "text", ["aaa-" * 4000 + "+", "aaa-" * 990 + "+", "(a" * 1900, "[ " * 1900]
)
def test_long_texts_of_marks_are_read(text):
    assert find_syntax(text) == ([], text.strip())


def test_a_learnt_token_is_a_word():
    text = "a <My-Flower> in ((x)) by __artist__"
    assert find_syntax(text, {"<my-flower>", "((x))", "__artist__"}) == ([], text)


def test_every_kind_has_its_note():
    assert (
        {rule.kind for rule in RULES}
        == set(SYNTAX_KINDS)
        == {written[1] for written in WRITTEN} | {"escape"}
    )
    for text, kind, *_ in WRITTEN:
        for targets in ((), (text,)):
            (note,) = notes_on_syntax([text], targets, {"<my>"})
            assert note.startswith('Note: "')
            assert SYNTAX_KINDS[kind].is_what in note


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a (dark red:1.3) ((rose))", "--weight 'dark red=1.3' --weight rose=1.21."),
        ("a [red|blue] rose", "one --target for each (red, blue)."),
        ("a rose <lora:old.safetensors:0.8>", "--lora old.safetensors:0.8."),
        ("a rose <lora:old:1>", "--lora old.safetensors."),
        ("embedding:mine", "write mine, and pass --embedding mine.safetensors:mine."),
        ("a <mine>", "--embedding 'FILE:<mine>'."),
        ("a [rose:daisy:0.5]", 'write "daisy" in its place'),
        ("a \U0001f339 and a \U0001f436", 'such as "rose", "dog face".'),
    ],
)
def test_a_note_names_what_to_pass_in_the_persons_own_words(text, said):
    (note,) = notes_on_syntax([text], [text], ())
    assert said in note


def test_only_a_target_is_told_to_weigh():
    (note,) = notes_on_syntax(["a ((red)) rose", "a (blue:1.2) rose"], ["a (blue:1.2) rose"], ())
    assert note.endswith("pass --weight blue=1.2.")
    (note,) = notes_on_syntax(["a ((red)) rose"], (), ())
    assert "leave the marks out" in note
    assert "red=" not in note

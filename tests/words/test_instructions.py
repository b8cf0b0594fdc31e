"""Instructions in place of captions: told from them, and turned into them where it is certain."""

from __future__ import annotations

import pytest

from nulltext.words.captions import Instruction, read_instruction

WHITE = "a photo of a white flower"
DARK = "a photo of an orange flower with a dark background"
PAIR = "a white cat on a red sofa"
MIXED = "a black and white cat with a red collar"

CAPTIONS = [
    (WHITE, "make it red", "a photo of a red flower"),
    (WHITE, "Please make it orange!", "a photo of an orange flower"),
    (WHITE, "make it dark red", "a photo of a dark red flower"),
    (WHITE, "turn the flower to red", "a photo of a red flower"),
    (WHITE, "change the colour of the flower to red", "a photo of a red flower"),
    (WHITE, "change white to orange", "a photo of an orange flower"),
    (WHITE, "replace the flower with a tulip", "a photo of a white tulip"),
    (WHITE, "replace the flower with an orange tulip", "a photo of an orange tulip"),
    (WHITE, "make it a painting", "a painting of a white flower"),
    (WHITE, "turn it into an oil painting", "an oil painting of a white flower"),
    ("A photo of a cat.", "make it an etching", "An etching of a cat."),
    (DARK, "make it red", "a photo of a red flower with a dark background"),
    (DARK, "change orange to red", "a photo of a red flower with a dark background"),
    (DARK, "make the background green", "a photo of an orange flower with a green background"),
    (DARK, "change the background color to red",
     "a photo of an orange flower with a red background"),
    (PAIR, "make the cat black", "a black cat on a red sofa"),
    (PAIR, "turn the sofa light blue", "a white cat on a light blue sofa"),
    ("a dark red cup of tea", "paint it blue", "a blue cup of tea"),
    ("A cat, asleep.", "turn the cat into an otter", "An otter, asleep."),
    ("a red apple on a table", "swap the apple for a pear", "a red pear on a table"),
    ("a big red apple on a table", "make the apple green", "a big green apple on a table"),
    ("a horse in a field", "turn the horse into a unicorn", "a unicorn in a field"),
    ("Red flowers in a vase", "make the flowers blue", "Blue flowers in a vase"),
]  # fmt: skip

UNCERTAIN = [
    *((WHITE, target) for target in (
        "make it happy", "make it bigger", "make it white", "make it red and add a bee",
        "make it a red rose with thorns", "make it black and white",
        "make the flower a little red",
        "make the flower a bunch of roses", "make the flower a red one", "brighten it",
        "make the white flower red", "turn the flower into tulips",
        "turn the flower into a red one",
        "recolour the petals pink", "make the petals pink", "the flower should be red",
        "add a bee to the flower", "give the flower a face", "give it a face", "fix it",
    )),
    *((DARK, target) for target in (
        "put it in a vase", "add clouds to the sky", "add a red background", "put a bee on it",
        "change the background to a beach", "replace the background with a beach",
    )),
    (PAIR, "make it black and red"),
    (PAIR, "make it black"),
    (PAIR, "change white to black"),
    (PAIR, "replace the cat with a sofa"),
    (MIXED, "make the cat orange"),
    (MIXED, "make it orange"),
    (MIXED, "replace the cat with a dog"),
    ("a dog with a red collar", "make it white"),
    ("a photo of an orange on a table", "make it red"),
    ("a photo of an orange on a table", "change orange to red"),
    ("a bowl of red apples", "turn it into a cat"),
    ("a bowl of red apples", "replace the bowl with a plate"),
    ("a white dog", "make the dog a big cat"),
    ("a white flower pot", "make the flower red"),
    ("a hot dog on a plate", "turn the dog into a cat"),
    ("Two cats on a mat", "replace cats with a dog"),
    ("the cats on a mat", "replace the cats with a dog"),
    ("a dog and a cat", "make them red"),
    ("a dog and a cat", "turn the dog into a cat"),
    ("a cat and a cat", "turn the cat into a dog"),
    ("a cat", "make it red"),
    ('a "red" sign', "make it blue"),
    ("", "make it red"),
    ("", "make the flower red"),
    ("a red dog\u2019s ball", "make it blue"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "target", "caption"), [*CAPTIONS, *((*pair, None) for pair in UNCERTAIN)]
)
def test_what_an_instruction_means(source, target, caption):
    assert read_instruction(source, target) == Instruction(caption)


@pytest.mark.parametrize(
    "target",
    ["remove the flower", "get rid of it", "remove background", "remove the sign",
     "take away the flower"],
)  # fmt: skip
def test_a_removal_is_called_so(target):
    assert read_instruction(DARK, target) == Instruction(None, removes=True)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        *((DARK, target) for target in (
            "a photo of a red flower", "Insert coin sign", "Cut out paper flower",
            "Cut out cookies",
            "Take away coffee", "Delete button", "Erase board", "Remove shoes sign",
            "Please remove your shoes sign", "Let it snow sign", "Fix It Felix on a bench",
            "paint it black album cover", "Turn right at the flower shop", "make black coffee",
            "The sign says the flower should be red", "paint the town", "turn red",
        )),
        ("a red record", "turn table with red record"),
        (WHITE, "this is a red flower"),
        (WHITE, "color photo of a red flower"),
        (WHITE, "color photo in red"),
        ("a woman in a studio", "make-up artist at work"),
        ("a man in a studio", "make up artist with a brush"),
        ("a house", "turn of the century house"),
        ("a road with a sign", "turn left sign on a road"),
        ("a man changes a tyre", "a man changes a truck tyre"),
        ("change purse on a table", "change purse on a red table"),
        ("a purse", "change purse on a table"),
        ("a house", "add-on to a house"),
        ("a tag", "remove before flight tag"),
        ("a table", "place setting on a table"),
        ("a table", "set table with flowers"),
        ("a wall", "paint splashes on a wall"),
        ("a wall", "paint on the wall"),
        ("a light", "switch on the wall"),
        ("a sign", "give way sign"),
        ("a cat", "a cat that should be asleep"),
        ("a dog", "let sleeping dogs lie"),
        ("a beach", "flip flops on a beach"),
        ("a field", "crop circles in a field"),
        ("a soldier", "replacement part"),
        ("make love not war poster", "make peace not war poster"),
        (WHITE, "make " + 2000 * "it "),
        (600 * "flower ", "replace the " + 1000 * "with "),
        ("", ""),
        ("", "make"),
    ],
)  # fmt: skip
def test_captions_are_none(source, target):
    assert read_instruction(source, target) is None

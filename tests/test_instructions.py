"""Instructions in place of captions: told from captions, and turned into them where it is safe."""

from __future__ import annotations

import pytest

from nulltext.instructions import Instruction, read_instruction

WHITE = "a photo of a white flower"
DARK = "a photo of an orange flower with a dark background"
PAIR = "a white cat on a red sofa"


@pytest.mark.parametrize(
    ("source", "target", "caption"),
    [
        (WHITE, "make it red", "a photo of a red flower"),
        (WHITE, "Please make it orange!", "a photo of an orange flower"),
        (WHITE, "make the white flower dark red", "a photo of a dark red flower"),
        (WHITE, "the flower should be red", "a photo of a red flower"),
        (WHITE, "change the colour of the flower to red", "a photo of a red flower"),
        (WHITE, "turn red", "a photo of a red flower"),
        (WHITE, "replace the flower with a tulip", "a photo of a white tulip"),
        (WHITE, "replace the flower with an orange tulip", "a photo of an orange tulip"),
        (WHITE, "replace the white flower with a tulip", "a photo of a tulip"),
        (WHITE, "turn the flower into tulips", "a photo of white tulips"),
        (WHITE, "change flower to tulip", "a photo of a white tulip"),
        (WHITE, "make it look like a tulip", "a photo of a white tulip"),
        (WHITE, "turn it into an oil painting", "an oil painting of a white flower"),
        (WHITE, "make this a painting of a dog", "a painting of a dog"),
        (WHITE, "add a bee to the flower", "a photo of a white flower with a bee"),
        (WHITE, "give the flower a face", "a photo of a white flower with a face"),
        (DARK, "put a bee on it", f"{DARK} and a bee"),
        (DARK, "make it red", "a photo of a red flower with a dark background"),
        (DARK, "make the background green", "a photo of an orange flower with a green background"),
        (PAIR, "make the cat black", "a black cat on a red sofa"),
        (PAIR, "turn the sofa blue", "a white cat on a blue sofa"),
        ("A cat, asleep.", "turn the cat into an otter", "An otter, asleep"),
        ("flowers in a vase", "make the flowers blue", "blue flowers in a vase"),
        # Not sure:
        (PAIR, "make it black", None),
        (WHITE, "make it happy", None),
        (WHITE, "make it bigger", None),
        (WHITE, "make it white", None),
        (WHITE, "change the background to a beach", None),
        (WHITE, "make it red and add a bee", None),
        (WHITE, "brighten it", None),
        (WHITE, "recolour the petals pink", None),
        ("a cat sits on a sofa", "make it black", None),
        ("a cat and a cat", "turn the cat into a dog", None),
        ('a "red" sign', "make it blue", None),
        ("", "make it red", None),
    ],
)
def test_what_an_instruction_means(source, target, caption):
    assert read_instruction(source, target) == Instruction(caption)


@pytest.mark.parametrize(
    ("source", "target", "caption"),
    [
        ("a cat with a red hat", "remove the hat", "a cat"),
        ("a man with a dog and a hat", "remove the hat", None),
        (DARK, "get rid of the flower", None),
        (DARK, "remove the background", None),
        (DARK, "remove people", None),
    ],
)
def test_a_removal_is_called_so(source, target, caption):
    assert read_instruction(source, target) == Instruction(caption, removes=True)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (WHITE, "a photo of a red flower"),
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
    ],
)
def test_captions_are_none(source, target):
    assert read_instruction(source, target) is None

"""What a model is trained on: captions, outlines, colours, views, words tied to places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import nn

from nulltext.attention.controller import Heads, Site
from nulltext.attention.maps import StepMaps
from nulltext.training.components import common_words, train_tokenizer, warm_start
from nulltext.training.dataset import Caption, Example, compose, plain_caption
from nulltext.training.grounding import grounding_loss, role_tokens
from nulltext.training.recipe import CaptionSettings, TokenizerSettings, ViewSettings
from nulltext.training.views import HUES, hsv, recolour, rgb, segment, views_of
from nulltext.words.captions import article

ALWAYS = CaptionSettings(
    empty=0.0, without_colour=0.0, general=0.0, plural=0.0, without_background=0.0, filler=0.0
)
ROSE = Example(Path("a.jpg"), "train", kind="rose", colour="orange", background="dark")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flower_photo(colour, ground_colour=(60, 110, 40), side=96):
    """A disc with a dark heart on a plain ground, [S, S, 3], and the disc's pixels."""
    image = Image.new("RGB", (side, side), ground_colour)
    mask = Image.new("1", (side, side))
    edges = (24, 20, 74, 70)
    ImageDraw.Draw(image).ellipse(edges, colour)
    ImageDraw.Draw(mask).ellipse(edges, 1)
    noise = np.random.default_rng(0).integers(-6, 7, (side, side, 3))
    pixels = np.clip(np.asarray(image).astype(int) + noise, 0, 255).astype(np.uint8)
    return pixels, np.asarray(mask)


@pytest.mark.parametrize(
    ("colour", "word"),
    [
        ((225, 190, 20), "yellow"),
        ((200, 20, 30), "red"),
        ((235, 130, 20), "orange"),
        ((235, 140, 180), "pink"),
        ((150, 60, 190), "purple"),
        ((240, 240, 235), "white"),
    ],
)
def test_the_flower_is_found_and_its_colour_named(colour, word):
    pixels, truth = flower_photo(colour)
    seen = segment(pixels)
    assert seen.mask is not None
    assert (seen.mask & truth).sum() / (seen.mask | truth).sum() > 0.95
    assert (seen.colour, seen.background) == (word, "green")


def test_a_photo_without_a_flower_has_no_outline():
    assert segment(np.full((64, 64, 3), (40, 110, 40), np.uint8)).mask is None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=12, max_size=12))
def test_hue_saturation_value_are_a_way_back(numbers):
    pixels = np.array(numbers, np.uint8).reshape(2, 2, 3)
    assert np.abs(rgb(*hsv(pixels)).astype(int) - pixels.astype(int)).max() <= 1  # rounding


def test_recolouring_changes_the_petals_and_the_word_together():
    pixels, truth = flower_photo((225, 190, 20))
    example = Example(Path("a.jpg"), "train", kind="tulip", colour="yellow", background="green")
    for seed in range(6):
        changed, what = recolour(pixels, truth, example, generator(seed))
        assert what.colour != "yellow"
        hue = hsv(changed)[0][truth]
        away = np.abs((hue - HUES[what.colour] + 180) % 360 - 180)
        assert np.median(away) < 8  # degrees; the noise of the photo turns along
        assert (changed[~truth] == pixels[~truth]).all()
        assert (what.kind, what.background) == ("tulip", "green")


def test_a_flower_of_no_clear_hue_keeps_its_colour():
    pixels, truth = flower_photo((240, 240, 235))
    example = Example(Path("a.jpg"), "train", kind="rose", colour="white")
    changed, what = recolour(pixels, truth, example, generator())
    assert changed is pixels
    assert what == example


def test_views_show_the_photo_its_mirror_image_and_crops():
    pixels, _ = flower_photo((225, 190, 20))
    example = Example(Path("a.jpg"), "train", kind="tulip", colour="white")
    views = list(
        views_of(
            pixels.transpose(2, 0, 1), example, ViewSettings(views=5, recolour=0.0), generator()
        )
    )
    assert (views[1][0] == views[0][0][:, :, ::-1]).all()
    assert (views[1][1] == views[0][1][:, ::-1]).all()
    assert {what.colour for _, _, what in views} == {"yellow"}  # seen, not as labelled
    for picture, mask, _ in views:
        assert mask.shape == picture.shape[1:]
        red, green, blue = (picture[c][mask].mean() for c in range(3))
        assert red > 200
        assert green > 150
        assert blue < 60  # the outline went along with the petals
    assert len({view[0].shape for view in views}) > 1


def test_captions_say_what_is_known():
    for seed in range(40):
        caption = compose(ROSE, ALWAYS, (), generator(seed))
        words = caption.text
        assert "an orange rose" in words
        assert words.endswith("a dark background")
        roles = dict(zip(caption.words, caption.roles, strict=True))
        assert roles["orange"] == roles["rose"] == "flower"
        assert roles["dark"] == roles["background"] == "background"
        assert roles["an"] is None


def test_captions_leave_out_as_often_as_they_are_told():
    texts = [compose(ROSE, CaptionSettings(), ("lovely",), generator(s)).text for s in range(2000)]
    told = [text for text in texts if text]
    assert 1 - len(told) / len(texts) == pytest.approx(0.1, abs=0.025)
    for word, share in (("orange", 0.88), ("dark", 0.75), ("lovely", 0.12)):
        assert sum(word in text for text in told) / len(told) == pytest.approx(share, abs=0.035)
    assert any("roses" in text for text in told)


def test_own_captions_are_used_as_they_are():
    example = Example(Path("a.jpg"), "train", captions=("My cat, asleep",))
    assert compose(example, ALWAYS, (), generator()).text == "My cat, asleep"
    assert plain_caption(example) == "My cat, asleep"
    assert plain_caption(ROSE) == "a photo of an orange rose with a dark background"
    assert article("rose") == "a"


def test_the_vocabulary_has_whole_words_and_reads_everything():
    tokenizer = train_tokenizer(["a zinnia on velvet"], TokenizerSettings(2500, 24))
    assert len(tokenizer) <= 2500
    for word in ("zinnia", "velvet", *common_words()):
        assert len(tokenizer.tokenize(word)) == 1, word
    for text in ("Größe 17 €, 花!", "qwxz"):
        ids = tokenizer(text).input_ids[1:-1]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids).replace(" ", "") == text.lower().replace(" ", "")
    again = train_tokenizer(["a zinnia on velvet"], TokenizerSettings(2500, 24))
    assert again.get_vocab() == tokenizer.get_vocab()


def test_grounding_is_the_share_of_attention_outside_squared():
    rng = generator()
    captions = [
        Caption(("red", "rose", "dark"), ("flower", "flower", "background")),
        Caption(("rose",), (None,)),
    ]
    spans = [[(1,), (2, 3), (5,)], [(1,)]]
    probabilities = torch.rand(2, 2, 16, 8, generator=rng)
    masks = torch.rand(2, 4, 4, generator=rng)
    eye = StepMaps(largest_pixels=16)
    eye.add(probabilities, Site("here", "cross", 4, 4), Heads(0, 2, 2))
    maps = probabilities.mean(1)[0].T.reshape(8, 4, 4)
    losses = []
    for tokens, part in (((1, 2, 3), masks[0]), ((5,), 1 - masks[0])):
        inside = outside = 0.0
        for token in tokens:
            inside += float((maps[token] * part).sum())
            outside += float((maps[token] * (1 - part)).sum())
        losses.append((outside / (inside + outside)) ** 2)
    got = grounding_loss(eye, captions, spans, masks)
    assert float(got) == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert float(grounding_loss(eye, captions, spans, torch.zeros_like(masks))) == 0.0
    assert role_tokens(captions, spans, length=8).sum() == 4


def test_a_warm_start_keeps_means_means_and_variances_variances():
    old = {
        "quant_conv.weight": torch.arange(16.0).reshape(4, 4, 1, 1),
        "encoder.conv_out.bias": torch.arange(4.0),
        "other.weight": torch.ones(2, 3),
        "odd.weight": torch.ones(5),
    }
    module = nn.Module()
    module.quant_conv = nn.Conv2d(8, 8, 1)
    module.encoder = nn.Module()
    module.encoder.conv_out = nn.Conv2d(3, 8, 3)
    module.other = nn.Linear(4, 2, bias=False)
    fresh = {name: w.detach().clone() for name, w in module.named_parameters()}
    warm_start(module, old)
    weight = module.quant_conv.weight[:, :, 0, 0]
    expected = torch.arange(16.0).reshape(4, 4)
    for rows, old_rows in ((slice(0, 2), slice(0, 2)), (slice(4, 6), slice(2, 4))):
        for columns, old_columns in ((slice(0, 2), slice(0, 2)), (slice(4, 6), slice(2, 4))):
            assert torch.equal(weight[rows, columns], expected[old_rows, old_columns])
    bias = module.encoder.conv_out.bias
    assert bias[[0, 1, 4, 5]].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert torch.equal(module.other.weight[:, :3], torch.ones(2, 3))
    for name in ("quant_conv.bias", "encoder.conv_out.weight"):  # no source: as initialised
        assert torch.equal(module.get_parameter(name), fresh[name])

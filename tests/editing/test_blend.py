"""Local edits: the blend's formula, the mask's promise, the exact source, and the pull."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import interpolate, max_pool2d

import nulltext
from nulltext.attention.blend import LocalBlend, PromptTokens, blend_mask, blend_tokens
from nulltext.editing.regions import Region, Words, on_latents
from nulltext.errors import OptionError, PromptError
from nulltext.inversion.replay import exact_source_step

PROMPT = "a white cat"


def published(maps, words, others, threshold, size):
    """LocalBlend's arithmetic as its authors wrote it down, for one map size and both prompts."""

    def masks(chosen, pool):
        stacked = []
        for token_maps, positions in zip(maps, chosen, strict=True):
            alpha = torch.zeros(token_maps.shape[0])
            alpha[list(positions)] = 1
            summed = (token_maps * alpha[:, None, None]).sum(0)
            stacked.append(summed)
        heat = torch.stack(stacked)[:, None]
        if pool:
            heat = max_pool2d(heat, (3, 3), (1, 1), padding=(1, 1))
        heat = interpolate(heat, size=size, mode="bilinear")
        heat = heat / heat.amax(dim=(2, 3), keepdim=True).clamp(min=1e-30)
        each = heat.gt(threshold)
        return (each[0] | each[1])[0]

    mask = masks(words, True)
    return (mask & ~masks(others, False)).float() if any(others) else mask.float()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("others", [((), ()), ((4,), (4, 5)), ((), (1,))])
def test_the_mask_is_that_of_the_published_formula(threshold, others):
    generator = torch.Generator().manual_seed(int(threshold * 100))
    maps = (torch.rand(8, 4, 6, generator=generator), torch.rand(8, 4, 6, generator=generator))
    words = ((2,), (2, 3))
    tokens = tuple(PromptTokens(w, o) for w, o in zip(words, others, strict=True))
    got = blend_mask(maps, tokens, threshold, (16, 24))
    assert torch.equal(got, published(maps, words, others, threshold, (16, 24)))


def test_a_word_of_the_target_alone_gives_the_targets_mask():
    maps = (torch.rand(5, 4, 4), torch.zeros(5, 4, 4))
    maps[1][2, 0, 0] = 1.0
    tokens = (PromptTokens((), ()), PromptTokens((2,), ()))
    mask = blend_mask(maps, tokens, 0.3, (8, 8))
    assert mask[0, 0] == 1
    assert mask[-1, -1] == 0


def test_a_word_of_neither_prompt_lists_the_words_of_both(tiny):
    source, target = tiny.tokenize(PROMPT), tiny.tokenize("a dark sofa")
    with pytest.raises(PromptError, match=r"'tabby'.*a, white, cat; a, dark, sofa") as caught:
        blend_tokens([source, target], LocalBlend(("cat", "tabby")))
    assert "--blend" in str(caught.value)
    found = blend_tokens([source, target], LocalBlend(("cat", "sofa"), except_words=("a",)))
    assert [len(tokens.inside) > 0 for tokens in found] == [True, True]
    assert found[0].outside == found[1].outside == (1,)


def test_the_edit_refuses_it_before_any_work(tiny, inversion):
    with pytest.raises(PromptError, match="tabby"):
        nulltext.edit(tiny, inversion, nulltext.EditSpec("a dog", blend=LocalBlend(("tabby",))))


@pytest.mark.parametrize("options", [{"threshold": 1.0}, {"start": -0.1}, {"threshold": math.nan}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(OptionError, match="fraction"):
        LocalBlend(("cat",), **options)
    with pytest.raises(OptionError, match="needs a word"):
        LocalBlend(())


def test_latents_outside_a_mask_are_the_sources_to_the_bit(tiny, inversion, monkeypatch):
    height, width = inversion.photo.shape[-2:]
    mask = torch.zeros(height, width)
    mask[: height // 2] = 1.0
    spec = nulltext.EditSpec("a red dog", mask=mask)
    decoded = []
    plain = type(tiny).decode
    monkeypatch.setattr(type(tiny), "decode", lambda model, z: plain(model, decoded.append(z) or z))
    result = nulltext.edit(tiny, inversion, spec)
    source, target = decoded
    assert torch.equal(source[..., 4:, :], target[..., 4:, :])
    assert float((source - target)[..., :4, :].abs().mean()) > 1e-3
    monkeypatch.undo()
    assert torch.equal(result.masks[0, :4], torch.ones(4, 8))
    assert torch.equal(result.masks[0, 4:], torch.zeros(4, 8))
    assert torch.equal(result.reconstruction, nulltext.replay(tiny, inversion).image)


def test_blended_edits_leave_the_source_alone_and_stay_in_their_words(tiny, inversion):
    blend = LocalBlend(("cat", "dog"), threshold=0.995, start=0.0)
    result = nulltext.edit(tiny, inversion, nulltext.EditSpec("a white dog", blend=blend))
    assert torch.equal(result.reconstruction, nulltext.replay(tiny, inversion).image)
    assert set(result.masks.unique().tolist()) <= {0.0, 1.0}
    assert 0 < float(result.masks.mean()) < 1


def test_an_infinite_pull_is_the_replay_and_more_pull_is_closer(tiny, inversion):
    pulls = [0.0, 2.0, 8.0, math.inf]
    specs = [nulltext.EditSpec("a red dog on a sofa", pull=pull) for pull in pulls]
    result = nulltext.edit(tiny, inversion, specs)
    away = [float((row - result.reconstruction[0]).abs().mean()) for row in result.images]
    assert away[0] > away[1] > away[2] > away[3]
    # another batch size in the autoencoder at most: the latents are equal
    assert away[3] < 1e-5


@pytest.mark.parametrize("method", ["ddim", "null-text"])
def test_the_exact_source_is_the_autoencoders_bound_whatever_the_method(tiny, photo, method):
    inversion = nulltext.invert(tiny, photo, PROMPT, method=method, num_steps=3)
    result = nulltext.edit(tiny, inversion, ["a dog", "a sofa"], source_branch=exact_source_step)
    assert torch.equal(result.reconstruction, tiny.decode(inversion.trajectory[:1]))
    assert result.psnr_reconstruction == pytest.approx(inversion.header.psnr_bound, abs=1e-4)


def test_the_share_is_mask_times_words_from_the_start_step_on():
    mask = torch.rand(8, 8)
    maps = (torch.rand(5, 4, 4), torch.rand(5, 4, 4))
    tokens = (PromptTokens((1,), ()), PromptTokens((1,), ()))
    region = Region(mask, Words(tokens, 0.8, first_step=2), 1.0)
    like = torch.empty(1, 4, 8, 8)
    assert torch.equal(region.share(1, maps, like), mask)
    expected = mask * blend_mask(maps, tokens, 0.8, (8, 8))
    assert torch.equal(region.share(2, maps, like), expected)
    assert not region.free
    assert Region(None, None, 1.0).free


def test_an_edit_says_why_its_picture_is_the_reconstruction(tiny, inversion):
    faint = torch.zeros(8, 8)
    faint[:4] = 1e-6
    same = dict.fromkeys(("cross_steps", "self_steps"), 1.0)
    specs = [
        nulltext.EditSpec("a red dog"),
        nulltext.EditSpec("a red dog", pull=math.inf),
        nulltext.EditSpec("a red dog", mask=faint),
        nulltext.EditSpec(
            "a red dog", blend=LocalBlend(("dog",), except_words=("dog",), threshold=0.0)
        ),
        nulltext.EditSpec(PROMPT, weights={"white": 1 + 1e-6}, **same),
    ]
    result = nulltext.edit(tiny, inversion, specs)
    words = [None, "strength 0", "hardly more than black", "blend of dog is empty", "same picture"]
    if tiny.schedule.prediction == "v_prediction":  # its pictures move by a level under rounding
        words.pop()
    for said, word in zip(result.unchanged, words, strict=False):
        assert (said is None) if word is None else (word in said)


def test_any_touched_latent_cell_belongs_to_the_mask():
    mask = torch.zeros(64, 96)
    mask[9, 40] = 0.5
    got = on_latents(mask, (8, 12))
    assert got[1, 5] == 0.5
    assert int((got > 0).sum()) == 1
    assert on_latents(torch.eye(4), (8, 8)).shape == (8, 8)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(4, 4), "empty"),
        (torch.ones(4, 4), "white everywhere"),
        (torch.eye(4) * 2, "expected 0 to 1"),
        (torch.ones(4), "shape"),
        (torch.full((4, 4), math.nan), "expected 0 to 1"),
    ],
)
def test_masks_that_mean_nothing_are_refused(mask, message):
    with pytest.raises(OptionError, match=message):
        nulltext.EditSpec("a dog", mask=mask)

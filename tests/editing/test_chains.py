"""Chained edits: each starts from the one before, all of them from the inversion."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import nulltext
from nulltext.attention.blend import LocalBlend
from nulltext.attention.controller import Heads, Site
from nulltext.attention.prompt_to_prompt import Injection, MapInjector
from nulltext.attention.store import AttentionStore, TargetControl
from nulltext.editing.spec import with_parents
from nulltext.editing.targets import passes_of, rows_of
from nulltext.errors import OptionError, PromptError
from nulltext.words.alignment import attention_map
from support.examples import DAHLIA_PROMPT
from support.vocabularies import prompt

PROMPT = "a white cat"
FULL = {"cross_steps": 1.0, "self_steps": 1.0}


def close(one, other):
    # batches of other sizes: float32 over four guided steps
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


@pytest.mark.parametrize("editor", [nulltext.PromptToPrompt(), nulltext.MasaCtrl()])
def test_a_chain_of_one_is_a_plain_edit(tiny, inversion, editor):
    spec = nulltext.EditSpec("a red dog on a sofa", editor=editor)
    chained = nulltext.edit(tiny, inversion, nulltext.chain(spec))
    assert torch.equal(chained.images, nulltext.edit(tiny, inversion, spec).images)


@pytest.mark.parametrize("editor", [nulltext.PromptToPrompt(), nulltext.MasaCtrl(0.0, 0.0)])
def test_the_first_link_does_not_know_of_the_second(tiny, inversion, editor):
    first = nulltext.EditSpec("a red dog", editor=editor)
    both = nulltext.edit(tiny, inversion, [first, first.then("a red dog on a sofa")])
    close(both.images[:1], nulltext.edit(tiny, inversion, first).images)
    second = nulltext.edit(tiny, inversion, first.then("a red dog on a sofa"))
    assert second.images.shape[0] == 1  # the first is sampled, and not shown
    close(both.images[1:], second.images)
    alone = nulltext.edit(tiny, inversion, replace(first, target="a red dog on a sofa"))
    assert (second.images - alone.images).abs().max() > 1e-3


def test_swaps_compose_to_one_swap(tiny, inversion):
    """With equal spans everything injected is the source's, however it was handed down."""
    swaps = nulltext.chain(nulltext.EditSpec("a red cat", **FULL), "a red dog")
    at_once = nulltext.EditSpec("a red dog", **FULL)
    close(
        nulltext.edit(tiny, inversion, swaps).images[1:],
        nulltext.edit(tiny, inversion, at_once).images,
    )


def test_going_back_gives_the_first_picture_again(tiny, inversion):
    there = nulltext.EditSpec("a red cat", **FULL)
    away_and_back = nulltext.chain(there, "a dark dog", "a red dog", "a red cat")
    pictures = nulltext.edit(tiny, inversion, away_and_back).images
    close(pictures[3], pictures[0])
    assert (pictures[1] - pictures[0]).abs().max() > 0.01


def test_a_link_that_changes_nothing_is_the_link_before(tiny, inversion):
    first = nulltext.EditSpec("a red dog", cross_steps=0.0, self_steps=0.0)
    same = nulltext.PromptToPrompt(**FULL, weights={"dog": 1.0 + 1e-7})
    images = nulltext.edit(
        tiny, inversion, [first, replace(first.then("a red dog"), editor=same)]
    ).images
    close(images[1], images[0])
    source = nulltext.edit(tiny, inversion, nulltext.EditSpec("a red dog", **FULL)).images
    assert (source - images[:1]).abs().max() > 0.01


def test_a_links_maps_come_from_the_maps_of_the_link_before():
    """Two rows of a chain at one layer, token by token."""
    texts = ["a cat on a sofa", "a red cat on a sofa", "a red dog on a dark sofa"]
    prompts = [prompt(text, 16) for text in texts]
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 9, 16, generator=generator).softmax(-1) for _ in range(3)]
    plans, weights = [], [torch.ones(16), torch.linspace(0.5, 2, 16)]
    for old, new, weight in zip(prompts, prompts[1:], weights[::-1], strict=False):
        words = attention_map(old, new)
        plans.append(Injection(words.mapping, words.gate, weight, 5, 0, 256))
    source = AttentionStore(plans[:1], 0, maps={"layer": maps[0][None]})
    middle = AttentionStore(plans[1:], 0)
    site, given = Site("layer", "cross", 3, 3), []
    for plan, parent, own, row in ((plans[0], source, middle, 1), (plans[1], middle, None, 2)):
        turn = TargetControl(plan, parent, own or AttentionStore([], 0))
        controller, heads = MapInjector([turn], 0, guided=True), Heads(0, 2, 2)
        given.append(controller.edit(maps[row][None], site, heads)[0])

    def carried(old, new, plan, own):
        mixed = torch.empty_like(own)
        for token in range(16):
            taken = sum(old[..., k] * plan.mapping[k, token] for k in range(16))
            mixed[..., token] = taken if plan.gate[token] else own[..., token]
        return mixed / mixed.sum(-1, keepdim=True)

    first = carried(maps[0], prompts[1], plans[0], maps[1])
    second = carried(first, prompts[2], plans[1], maps[2])
    torch.testing.assert_close(given[0], first * plans[0].weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(given[1], second * plans[1].weights, atol=1e-6, rtol=1e-5)


def test_the_second_link_keeps_the_look_of_the_first(flowers, dahlia_inversion):
    """Changing only the background of a red flower changes its middle less than its border."""
    red = DAHLIA_PROMPT.replace("orange", "red")
    white = red.replace("dark", "white")
    chained = nulltext.edit(flowers, dahlia_inversion, nulltext.chain(red, white)).images
    change = (chained[1] - chained[0]).abs().mean(0)
    side = change.shape[-1]
    middle = change[side // 3 : 2 * side // 3, side // 3 : 2 * side // 3].mean()
    assert middle < change.mean()


def test_masks_hold_back_to_the_link_before(tiny, inversion):
    top = torch.zeros(16, 16)
    top[:8] = 1.0
    first = nulltext.EditSpec("a red cat")
    second = replace(first.then("a red dog"), mask=top)
    result = nulltext.edit(tiny, inversion, [first, second])
    assert torch.equal(result.masks[0], torch.ones(8, 8))
    assert torch.equal(result.masks[1], torch.ones(8, 8))  # free of the photo all over
    narrow = [replace(first, mask=top), replace(first, mask=top).then("a red dog")]
    masks = nulltext.edit(tiny, inversion, narrow).masks
    assert torch.equal(masks[0], masks[1])
    assert masks[1].mean() == 0.5


def test_a_link_of_no_strength_is_the_link_before(tiny, inversion):
    first = nulltext.EditSpec("a red cat")
    still = first.then("a red dog").at_strength(0.0)
    images = nulltext.edit(tiny, inversion, [first, still]).images
    # the latents are equal; the autoencoder sees them one by one
    assert torch.equal(images[0], images[1])


def test_weights_stay_as_long_as_their_word(tiny, inversion):
    first = nulltext.EditSpec("a red cat", weights={"red": 2.0, "cat": 0.5})
    line = nulltext.chain(first, "a red dog", "a dog on a sofa")
    rows = rows_of(tiny, PROMPT, line, 4, (8, 8))
    factors = [set(row.plan.weights.tolist()) for row in rows]
    assert factors == [{1.0, 2.0, 0.5}, {1.0, 2.0}, {1.0}]
    wrong = replace(first.then("a red dog"), editor=nulltext.PromptToPrompt(weights={"sofa": 2.0}))
    with pytest.raises(PromptError, match="'sofa' is not a word"):
        nulltext.edit(tiny, inversion, [first, wrong])


def test_blend_words_of_the_line_are_known(tiny, inversion):
    blend = LocalBlend(("cat", "dog"))
    line = nulltext.chain(nulltext.EditSpec("a white dog", blend=blend), "a red dog")
    nulltext.edit(tiny, inversion, line)  # "cat" is gone by the second link, "dog" is left
    gone = nulltext.chain(nulltext.EditSpec("a white dog", blend=LocalBlend(("cat",))), "a red dog")
    with pytest.raises(PromptError, match="'cat' is a word neither"):
        nulltext.edit(tiny, inversion, gone)


def test_a_link_says_something_new_and_keeps_its_editor(tiny, inversion):
    with pytest.raises(PromptError, match='same as the source "a dog"'):
        nulltext.edit(tiny, inversion, nulltext.chain("a dog", "a dog"))
    first = nulltext.EditSpec("a dog")
    other = replace(first.then("a red dog"), editor=nulltext.MasaCtrl())
    with pytest.raises(OptionError, match="MasaCtrl follows PromptToPrompt"):
        nulltext.edit(tiny, inversion, [first, other])


def test_parents_pass_first_and_nobody_twice(tiny):
    first = nulltext.EditSpec("a dog")
    second = first.then("a red dog")
    branch = first.then("a dark dog")
    masa = nulltext.EditSpec("a sofa", editor=nulltext.MasaCtrl())
    specs = [second, masa, branch, first]
    assert [spec.target for spec in with_parents(specs)] == [
        *("a dog", "a sofa", "a red dog", "a dark dog")
    ]
    rows = rows_of(tiny, PROMPT, specs, 4, (8, 8))
    assert [row.parent for row in rows] == [None, None, 0, 0]
    assert passes_of(rows, 4) == [range(0, 1), range(1, 2), range(2, 4)]
    many = rows_of(tiny, PROMPT, [nulltext.EditSpec("a dog") for _ in range(6)], 4, (8, 8))
    assert passes_of(many, 4) == [range(0, 4), range(4, 6)]


# --- guidance of the target ----------------------------------------------------------------------


def test_the_targets_guidance_is_its_own(tiny, inversion):
    scales = [1.0, 3.0, None, 7.5]
    specs = [nulltext.EditSpec("a red dog", guidance_scale=scale) for scale in scales]
    result = nulltext.edit(tiny, inversion, specs)
    assert torch.equal(result.reconstruction, nulltext.replay(tiny, inversion).image)
    close(result.images[2], result.images[3])  # 7.5 is the inversion's
    for scale, image in zip(scales, result.images, strict=True):
        alone = nulltext.edit(tiny, inversion, nulltext.EditSpec("a red dog", guidance_scale=scale))
        close(image, alone.images[0])
    away = [float((image - result.images[3]).abs().mean()) for image in result.images[:2]]
    assert away[0] > away[1] > 1e-3


def test_a_guided_target_beside_an_unguided_source(tiny, photo):
    inversion = nulltext.invert(tiny, photo, PROMPT, method="ddim", num_steps=3, guidance_scale=1)
    for editor in (nulltext.PromptToPrompt(), nulltext.MasaCtrl(0, 0)):
        spec = nulltext.EditSpec("a red dog", editor=editor, guidance_scale=3.0)
        calls = []
        hook = tiny.unet.register_forward_hook(lambda m, a, o, c=calls: c.append(len(a[0])))
        result = nulltext.edit(tiny, inversion, [spec, replace(spec, guidance_scale=None)])
        hook.remove()
        assert torch.equal(result.reconstruction, nulltext.replay(tiny, inversion).image)
        assert result.unet_evaluations == sum(calls) == 3 * (1 + 4)
        assert (result.images[0] - result.images[1]).abs().max() > 0.01


@pytest.mark.parametrize("scale", [-1.0, float("inf"), float("nan")])
def test_guidance_that_is_none_is_refused(scale):
    with pytest.raises(OptionError, match="guidance"):
        nulltext.EditSpec("a dog", guidance_scale=scale)

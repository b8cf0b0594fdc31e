"""MasaCtrl: against a plain transcription of its formula, and where it must do nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch.nn.functional import interpolate

import nulltext
from nulltext.attention.controller import Site
from nulltext.attention.mutual import FOREGROUND, Mutual, MutualAttention
from nulltext.attention.processor import attach, self_depths
from nulltext.attention.store import AttentionStore, Recorder, TargetControl
from nulltext.diffusion.guidance import guided_output
from nulltext.editing.targets import rows_of
from nulltext.errors import OptionError, PromptError

SOURCE, TARGET = "a white cat", "a white cat on a sofa"


def latents(seed, rows=1):
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def predict(model, z, prompts, scale=3.0):
    null, prompt = model.embed([""]), model.embed(prompts)
    level = model.schedule.level(500)
    return guided_output(
        model, z, level, null_embeds=null, prompt_embeds=prompt, guidance_scale=scale
    )


def stored(model, plans, step, guided=True):
    """What a source's pass lends to these plans."""
    store = AttentionStore(plans, step)
    with attach(model.unet, Recorder(store, guided)):
        predict(model, latents(0), [SOURCE], 3.0 if guided else 1.0)
    return store


def mutual(model, plans, prompts, step, maps=None, source_guided=True):
    """The targets' noise, under MutualAttention."""
    store = stored(model, plans, step, source_guided)
    controls = [TargetControl(plan, store, AttentionStore([], step), maps) for plan in plans]
    with attach(model.unet, MutualAttention(controls, step, guided=True)):
        return predict(model, latents(1, len(plans)), prompts)


def self_layers(model):
    """The UNet's self-attention layers in the order in which they are called, found by calling."""
    found, handles = [], []
    for name, module in model.unet.named_modules():
        if isinstance(module, Attention) and name.endswith("attn1"):

            def note(_, __, layer=module):
                found.append(layer)

            handles.append(module.register_forward_pre_hook(note))
    predict(model, latents(0), [SOURCE])
    for handle in handles:
        handle.remove()
    return found


def by_hand(model, layers, prompts, masks=None):
    """MasaCtrl with loops over rows, heads and pixels, in forward hooks; `masks` by layer."""
    inputs, handles = {}, []

    def heads(attn, x):
        return x.reshape(x.shape[0], attn.heads, -1)

    def attended(attn, query, key, value, allowed):
        result = torch.zeros_like(query)
        for head in range(attn.heads):
            for pixel in range(query.shape[0]):
                scores = key[:, head] @ query[pixel, head] / math.sqrt(query.shape[-1])
                scores[allowed == 0] = -math.inf
                weights = scores.softmax(0)
                result[pixel, head] = weights @ value[:, head]
        return result.flatten(1)

    def replaced(attn, args, output):
        ours, theirs = args[0], inputs[id(attn)]
        count = ours.shape[0] // 2
        rows = []
        for row in range(ours.shape[0]):
            branch = theirs[0] if row < count else theirs[1]
            query = heads(attn, attn.to_q(ours[row]))
            key, value = (heads(attn, to(branch)) for to in (attn.to_k, attn.to_v))
            pixels = key.shape[0]
            everything = torch.ones(pixels)
            if masks is None:
                mixed = attended(attn, query, key, value, everything)
            else:
                front, mine = masks(pixels)
                fore = attended(attn, query, key, value, front)
                back = attended(attn, query, key, value, 1 - front)
                mixed = mine[:, None] * fore + (1 - mine[:, None]) * back
            rows.append(attn.to_out[0](mixed))
        return torch.stack(rows)

    def watch(hook):
        handles.extend(layer.register_forward_hook(hook) for layer in layers)

    watch(lambda attn, args, _: inputs.__setitem__(id(attn), args[0]))
    predict(model, latents(0), [SOURCE])
    for handle in handles:
        handle.remove()
    watch(replaced)
    result = predict(model, latents(1, len(prompts)), prompts)
    for handle in handles:
        handle.remove()
    return result


@torch.no_grad()
def test_it_is_the_papers_formula_from_its_layer_on(tiny):
    layers = self_layers(tiny)
    depths = self_depths(tiny.unet)
    assert len(depths) == len(layers)
    plan = Mutual(first_step=2, first_depth=depths[1], foreground=None)
    got = mutual(tiny, [plan, plan], [TARGET, "a dog"], step=2)
    expected = by_hand(tiny, layers[1:], [TARGET, "a dog"])
    plain = predict(tiny, latents(1, 2), [TARGET, "a dog"])
    assert (expected - plain).abs().max() > 1e-3
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)  # float32, fused or by hand


@torch.no_grad()
def test_foreground_asks_foreground_and_background_asks_background(tiny):
    generator = torch.Generator().manual_seed(3)
    maps = (torch.rand(9, 4, 4, generator=generator), torch.rand(9, 4, 4, generator=generator))
    tokens = ((3,), (2, 3))
    plan = Mutual(first_step=0, first_depth=0.0, foreground=tokens)
    got = mutual(tiny, [plan], [TARGET], step=0, maps=maps)

    def masks(pixels):
        found = []
        for token_maps, chosen in zip(maps, tokens, strict=True):
            side = int(pixels**0.5)
            heat = sum(token_maps[token] for token in chosen)[None, None]
            heat = interpolate(heat, size=(side, side), mode="bilinear").flatten()
            found.append(((heat - heat.min()) / (heat.max() - heat.min()) > FOREGROUND).float())
        assert 0 < found[0].mean() < 1
        return found

    expected = by_hand(tiny, self_layers(tiny), [TARGET], masks)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)  # float32
    unmasked = mutual(tiny, [replace(plan, foreground=None)], [TARGET], step=0)
    assert (got - unmasked).abs().max() > 1e-4


@torch.no_grad()
def test_a_source_that_is_all_foreground_is_asked_in_full(tiny):
    plan = Mutual(0, 0.0, ((1,), (1,)))
    flat = (torch.zeros(3, 4, 4), torch.rand(3, 4, 4))
    got = mutual(tiny, [plan], [TARGET], step=0, maps=flat)
    assert torch.equal(got, mutual(tiny, [replace(plan, foreground=None)], [TARGET], step=0))


@torch.no_grad()
def test_steps_and_layers_before_the_start_are_untouched(tiny):
    plan = Mutual(first_step=3, first_depth=0.5, foreground=None)
    plain = predict(tiny, latents(1), [TARGET])
    assert torch.equal(mutual(tiny, [plan], [TARGET], step=2), plain)
    for depth, action in ((0.0, "ignore"), (0.49, "ignore"), (0.5, "redirect"), (0.9, "redirect")):
        controls = [TargetControl(plan, AttentionStore([plan], 3), AttentionStore([], 3))]
        site = Site("layer", "self", 4, 4, depth)
        assert MutualAttention(controls, 3, guided=True).action(site) == action
    cross = Site("layer", "cross", 4, 4, 0.9)
    assert MutualAttention(controls, 3, guided=True).action(cross) == "ignore"


@torch.no_grad()
def test_only_what_is_asked_for_is_kept(tiny):
    depths = self_depths(tiny.unet)
    plan = Mutual(first_step=1, first_depth=depths[-1], foreground=None)
    assert stored(tiny, [plan], step=0).inputs == {}
    store = stored(tiny, [plan], step=1)
    assert len(store.inputs) == 1
    assert store.maps == {}
    assert next(iter(store.inputs.values())).shape[0] == 2  # the null row and the conditional one


@torch.no_grad()
def test_with_the_sources_own_latents_and_words_nothing_changes(tiny):
    plan = Mutual(0, 0.0, None)
    store = stored(tiny, [plan], 0)
    with attach(
        tiny.unet,
        MutualAttention([TargetControl(plan, store, AttentionStore([], 0))], 0, guided=True),
    ):
        got = predict(tiny, latents(0), [SOURCE])
    torch.testing.assert_close(got, predict(tiny, latents(0), [SOURCE]), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_source_without_null_row_is_asked_by_both_branches(tiny):
    plan = Mutual(0, 0.0, None)
    seen = stored(tiny, [plan], 0, guided=False)
    assert {kept.shape[0] for kept in seen.inputs.values()} == {1}
    doubled = AttentionStore(
        [plan], 0, inputs={k: torch.cat([v, v]) for k, v in seen.inputs.items()}
    )
    got = mutual(tiny, [plan], [TARGET], 0, source_guided=False)
    with attach(
        tiny.unet,
        MutualAttention([TargetControl(plan, doubled, AttentionStore([], 0))], 0, guided=True),
    ):
        expected = predict(tiny, latents(1), [TARGET])
    torch.testing.assert_close(got, expected)


# --- as an editor ---------------------------------------------------------------------------------


def test_the_editor_leaves_the_source_alone_and_does_something(tiny, inversion):
    words = nulltext.MasaCtrl(foreground=("cat", "sofa"))
    editors = [nulltext.MasaCtrl(0.0, 0.0), nulltext.MasaCtrl(1.0, 0.0), words]
    specs = [nulltext.EditSpec(TARGET, editor=editor) for editor in editors]
    free = nulltext.EditSpec(TARGET, cross_steps=0.0, self_steps=0.0)
    result = nulltext.edit(tiny, inversion, [*specs, free])
    assert torch.equal(result.reconstruction, nulltext.replay(tiny, inversion).image)
    asked, never, masked, words_alone = result.images
    # batches of other sizes: float32 over four guided steps
    torch.testing.assert_close(never, words_alone, atol=1e-3, rtol=0)
    assert (asked - words_alone).abs().max() > 0.01
    assert (masked - asked).abs().max() > 1e-3


def test_strength_0_is_the_replay_and_strength_1_the_words(tiny, inversion):
    editor = nulltext.MasaCtrl(start_layer=0.0)
    specs = [nulltext.EditSpec(TARGET, editor=editor).at_strength(s) for s in (0.0, 0.5, 1.0)]
    free = nulltext.EditSpec(TARGET, cross_steps=0.0, self_steps=0.0)
    still, half, words, alone = nulltext.edit(tiny, inversion, [*specs, free]).images
    replay = nulltext.replay(tiny, inversion).image[0]
    # the latents are equal; float32 in the autoencoder
    torch.testing.assert_close(still, replay, atol=1e-5, rtol=0)
    torch.testing.assert_close(words, alone, atol=1e-3, rtol=0)  # another batch, four guided steps
    away = [float((image - replay).abs().mean()) for image in (still, half, words)]
    assert away[0] < away[1]
    assert (half - words).abs().max() > 0.01


def test_both_editors_stand_beside_each_other(tiny, inversion):
    specs = [
        nulltext.EditSpec("a white dog"),
        nulltext.EditSpec("a white dog", editor=nulltext.MasaCtrl()),
        nulltext.EditSpec("a red cat"),
    ]
    together = nulltext.edit(tiny, inversion, specs)
    for row, spec in enumerate(specs):
        alone = nulltext.edit(tiny, inversion, spec)
        # batches of other sizes: float32 over four guided steps
        torch.testing.assert_close(together.images[row], alone.images[0], atol=1e-3, rtol=0)


def test_processors_are_restored_after_an_exception(tiny, inversion, monkeypatch):
    before = {n: m.processor for n, m in tiny.unet.named_modules() if isinstance(m, Attention)}

    def fail(*_):
        raise RuntimeError("inside")

    monkeypatch.setattr(MutualAttention, "redirect", fail)
    with pytest.raises(RuntimeError, match="inside"):
        nulltext.edit(tiny, inversion, nulltext.EditSpec("a dog", editor=nulltext.MasaCtrl(0, 0)))
    after = {n: m.processor for n, m in tiny.unet.named_modules() if isinstance(m, Attention)}
    assert after == before
    assert not any(m._forward_pre_hooks for m in tiny.unet.modules())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start_layer": 1.0}, OptionError, "No self-attention layer"),
        ({"foreground": ("tabby",)}, PromptError, "'tabby' is not a word"),
        ({"foreground": ("dog",)}, PromptError, 'None of the foreground.*"a white cat"'),
    ],
)
def test_what_matches_nothing_is_refused(tiny, inversion, options, error, message):
    spec = nulltext.EditSpec("a white dog", editor=nulltext.MasaCtrl(**options))
    with pytest.raises(error, match=message):
        nulltext.edit(tiny, inversion, spec)


def test_a_foreground_word_may_be_gone_later_in_a_chain(tiny, inversion):
    editor = nulltext.MasaCtrl(foreground=("cat", "dog"))
    line = nulltext.chain(nulltext.EditSpec("a white dog", editor=editor), "a red dog")
    plans = [row.plan for row in rows_of(tiny, SOURCE, line, 4, (8, 8))]
    positions = [
        tiny.tokenize(text).words[2].tokens for text in (SOURCE, "a white dog", "a red dog")
    ]
    assert [plan.foreground for plan in plans] == [tuple(positions[:2]), tuple(positions[1:])]


def test_options_are_checked_and_said_once():
    with pytest.raises(OptionError, match=r"start is 1\.5"):
        nulltext.MasaCtrl(start=1.5)
    with pytest.raises(OptionError, match="cannot stand beside an editor"):
        nulltext.EditSpec("a dog", cross_steps=0.5, editor=nulltext.MasaCtrl())
    short = nulltext.EditSpec("a dog", cross_steps=0.5, weights={"dog": 2.0})
    assert short.editor == nulltext.PromptToPrompt(cross_steps=0.5, weights={"dog": 2.0})
    steered = [
        nulltext.EditSpec("x", editor=nulltext.MasaCtrl()).at_strength(s) for s in (0, 0.5, 1)
    ]
    assert [spec.editor.start for spec in steered] == [0.0, nulltext.MasaCtrl().start, 1.0]
    assert [spec.pull for spec in steered] == [math.inf, 0.0, 0.0]

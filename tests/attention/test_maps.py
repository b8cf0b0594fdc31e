"""Attention maps: against an independent gathering, and without touching what they watch."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch.nn.functional import interpolate

import nulltext
from nulltext.attention.controller import Heads, Site
from nulltext.attention.maps import (
    NoOpController,
    ProbedController,
    RunningMean,
    StepMaps,
    word_map,
)
from nulltext.attention.processor import attach
from nulltext.editing.heatmaps import heat_map_steps
from nulltext.editing.loop import edit_steps


@pytest.fixture
def inversion(tiny, photo):
    return nulltext.invert(tiny, photo, "a white cat", method="ddim", num_steps=3)


def cross_attention_by_hand(model, latents, timestep, embeds):
    """softmax(Q K^T / sqrt(d)) of every cross-attention layer, from hooks and diffusers' scores."""
    found, handles = {}, []

    def record(attn, args, kwargs, _):
        context = kwargs.get("encoder_hidden_states")
        if context is not None:
            query, key = attn.to_q(args[0]), attn.to_k(context)
            scores = attn.get_attention_scores(
                attn.head_to_batch_dim(query), attn.head_to_batch_dim(key)
            )
            found[id(attn)] = scores.mean(0).T  # [L, pixels], one row in the batch

    for module in model.unet.modules():
        if isinstance(module, Attention):
            handles.append(module.register_forward_hook(record, with_kwargs=True))
    model.predict(latents, model.schedule.level(timestep), embeds)
    for handle in handles:
        handle.remove()
    return list(found.values())


@torch.no_grad()
def test_token_maps_are_the_mean_over_heads_and_layers(tiny):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    embeds = tiny.embed(["a white cat"])
    maps = StepMaps(256)
    with attach(tiny.unet, ProbedController(NoOpController(guided=False), maps)):
        tiny.predict(latents, tiny.schedule.level(500), embeds)
    layers = cross_attention_by_hand(tiny, latents, 500, embeds)
    finest = max(int(layer.shape[-1] ** 0.5) for layer in layers)
    expected = torch.zeros(tiny.max_tokens, finest, finest)
    for layer in layers:
        side = int(layer.shape[-1] ** 0.5)
        square = layer.reshape(1, -1, side, side)
        expected += interpolate(square, size=(finest, finest), mode="bilinear")[0] / len(layers)
    torch.testing.assert_close(maps.token_maps()[0], expected, atol=1e-5, rtol=1e-4)
    # Every pixel spends its whole attention on the tokens of the prompt.
    torch.testing.assert_close(maps.token_maps().sum(1), torch.ones(1, finest, finest))


def test_watching_changes_neither_source_nor_targets(tiny, inversion):
    specs = [nulltext.EditSpec("a white dog"), nulltext.EditSpec("a red photo of a cat")]
    seen = []
    watched = nulltext.diffusion.run(
        edit_steps(tiny, inversion, specs, on_maps=lambda s, t: seen.append((s, t)))
    )
    plain = nulltext.edit(tiny, inversion, specs)
    assert torch.equal(watched.reconstruction, plain.reconstruction)
    # a watched layer that was fused stays fused, an edited one stays edited
    assert torch.equal(watched.images, plain.images)
    assert [(s.shape[0], t.shape[0]) for s, t in seen] == [(1, 2)] * 3


def test_many_targets_give_one_row_each_whatever_the_batches(tiny, inversion):
    prompts = ["a dog", "a red cat", "a sofa", "a white dog", "a mirror", "a cat on a sofa"]
    seen = []
    specs = [nulltext.EditSpec(prompt) for prompt in prompts]
    nulltext.diffusion.run(edit_steps(tiny, inversion, specs, on_maps=lambda s, t: seen.append(t)))
    assert all(maps.shape[0] == len(prompts) for maps in seen)


def test_a_word_has_the_sum_of_its_tokens_and_all_words_are_there(tiny, inversion):
    (maps,) = nulltext.diffusion.run(heat_map_steps(tiny, inversion))
    assert [word.word for word in maps.words] == ["a", "white", "cat"]
    for word in maps.words:
        assert word.steps.shape == (3, *word.heat.shape)
        torch.testing.assert_close(word.steps.mean(0), word.heat)
        assert bool((word.heat > 0).all())


def test_targets_have_maps_too(tiny, inversion):
    specs = [nulltext.EditSpec("a white dog", cross_steps=1.0)]
    source, target = nulltext.diffusion.run(heat_map_steps(tiny, inversion, specs))
    (alone,) = nulltext.diffusion.run(heat_map_steps(tiny, inversion))
    assert [word.word for word in target.words] == ["a", "white", "dog"]
    torch.testing.assert_close(source.words[2].heat, alone.words[2].heat)
    # injected throughout: "dog" looks where "cat" does
    if len(tiny.tokenize("dog").words[0].tokens) == len(tiny.tokenize("cat").words[0].tokens):
        torch.testing.assert_close(target.words[2].heat, source.words[2].heat)


def test_sites_above_the_limit_are_not_read():
    maps = StepMaps(16)
    assert maps.wants(Site("a", "cross", 4, 4))
    assert not maps.wants(Site("a", "cross", 8, 4))
    assert not maps.wants(Site("a", "self", 4, 4))
    # SD 3 and FLUX at 1024 px: all sites are 64 x 64
    assert maps.wants(Site("a", "cross", 64, 64, joint=True))
    assert not maps.wants(Site("a", "self", 64, 64, joint=True))


def test_non_square_sites_are_laid_on_the_largest_one():
    maps = StepMaps(1000)
    generator = torch.Generator().manual_seed(0)
    large = torch.rand(1, 2, 24, 5, generator=generator)
    maps.add(large[:, :1], Site("large", "cross", 4, 6), Heads(0, 1, 2))
    maps.add(large[:, 1:], Site("large", "cross", 4, 6), Heads(1, 2, 2))
    maps.add(torch.full((1, 2, 6, 5), 0.5), Site("small", "cross", 2, 3), Heads(0, 2, 2))
    got = maps.token_maps()
    expected = (large.mean(1).transpose(1, 2).reshape(1, 5, 4, 6) + 0.5) / 2
    torch.testing.assert_close(got, expected)
    assert word_map(got[0], [1, 3]).shape == (4, 6)


def test_the_running_mean_is_the_mean():
    mean, values = RunningMean(), torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(1))
    for value in values:
        mean.add(value)
    torch.testing.assert_close(mean.value, values.mean(0))

"""Reaching attention: neutrality, true sizes, restoration, and Prompt-to-Prompt's formula."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from nulltext.attention import controller as controlling
from nulltext.attention.controller import Action, Heads, Layer, Site
from nulltext.attention.processor import attach
from nulltext.attention.prompt_to_prompt import Injection, MapInjector, largest_self_site
from nulltext.attention.store import AttentionStore, Recorder, TargetControl
from nulltext.errors import ModelError

L = 24


@dataclass
class Probe:
    """Does one thing everywhere, and remembers where it was and what it saw."""

    what: Action
    guided: bool = True
    sites: list[Site] = field(default_factory=list)
    seen: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    pieces: list[Heads] = field(default_factory=list)
    change: Callable[[Tensor], Tensor] = torch.clone

    def action(self, site: Site) -> Action:
        self.sites.append(site)
        return self.what

    def observe(self, layer: Layer, site: Site) -> None:
        self.layers[site.name] = layer

    def reads(self, site: Site) -> bool:
        return True

    def read(self, own: Tensor, site: Site, heads: Heads) -> None:
        before = self.seen[site.name] if heads.first else own[:, :0]
        self.seen[site.name] = torch.cat([before, own], dim=1)
        self.pieces.append(heads)

    def edit(self, own: Tensor, site: Site, heads: Heads) -> Tensor:
        self.read(own, site, heads)
        return self.change(own)

    def borrow(self, layer: Layer, site: Site) -> Tensor:
        return self.change(layer.hidden_states[-layer.rows :])


def batch(model, size=(8, 8), rows=2):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(rows, 4, *size, generator=generator)
    prompts = ["", "a cat", "a photo of a daisy", "a sofa"][:rows]
    return latents, model.schedule.level(500), model.embed(prompts)


def processors(model):
    return {n: m.processor for n, m in model.unet.named_modules() if isinstance(m, Attention)}


@torch.no_grad()
def test_ignoring_and_observing_leave_the_output_bit_equal(tiny):
    plain = tiny.predict(*batch(tiny))
    for what in ("ignore", "observe"):
        probe = Probe(what)
        with attach(tiny.unet, probe):
            assert torch.equal(tiny.predict(*batch(tiny)), plain)
        assert {site.kind for site in probe.sites} == {"cross", "self"}


@torch.no_grad()
def test_editing_with_the_own_probabilities_is_plain_to_rounding(tiny):
    plain = tiny.predict(*batch(tiny))
    with attach(tiny.unet, Probe("edit")):
        edited = tiny.predict(*batch(tiny))
    torch.testing.assert_close(edited, plain, atol=1e-5, rtol=1e-5)  # float32, fused or not


@torch.no_grad()
def test_editing_reaches_the_prompt_rows_and_never_the_null_rows(tiny):
    plain = tiny.predict(*batch(tiny, rows=4))
    with attach(tiny.unet, Probe("edit", change=lambda own: own.roll(1, dims=-1))):
        edited = tiny.predict(*batch(tiny, rows=4))
    assert torch.equal(edited[:2], tiny.predict(*batch(tiny, rows=4))[:2]) or torch.allclose(
        edited[:2], plain[:2], atol=1e-5
    )
    assert (edited[2:] - plain[2:]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@torch.no_grad()
def test_probabilities_are_those_of_diffusers_unfused_processor(tiny):
    class Spy(AttnProcessor):
        def __init__(self):
            self.scores = {}

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(context))
            self.scores[id(attn)] = attn.get_attention_scores(query, key)
            return super().__call__(attn, hidden_states, encoder_hidden_states, **kwargs)

    probe, spy = Probe("observe"), Spy()
    with attach(tiny.unet, probe):
        tiny.predict(*batch(tiny))
    before = processors(tiny)
    tiny.unet.set_attn_processor(spy)
    try:
        tiny.predict(*batch(tiny))
    finally:
        tiny.unet.set_attn_processor({f"{n}.processor": p for n, p in before.items()})
    modules = dict(tiny.unet.named_modules())
    assert len(probe.seen) == len(before)
    for name, seen in probe.seen.items():
        theirs = spy.scores[id(modules[name])].unflatten(0, (2, -1))[1:]
        torch.testing.assert_close(seen, theirs, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen.sum(-1), torch.ones_like(seen[..., 0]))


@torch.no_grad()
def test_sites_have_their_true_height_and_width(tiny):
    probe = Probe("observe")
    with attach(tiny.unet, probe):
        tiny.predict(*batch(tiny, size=(4, 12)))
    sizes = {(s.height, s.width) for s in probe.sites}
    # SDXL has no attention at the latents' own size
    assert sizes == ({(2, 6)} if tiny.unet.config.addition_embed_type else {(4, 12), (2, 6)})
    for site in probe.sites:
        assert probe.seen[site.name].shape[-2] == site.pixels == site.height * site.width


def test_processors_and_hooks_are_restored_after_an_exception(tiny):
    before = processors(tiny)

    def fail(own):
        assert processors(tiny) != before
        raise RuntimeError("inside")

    probe = Probe("edit", change=fail)
    with pytest.raises(RuntimeError, match="inside"), attach(tiny.unet, probe):
        tiny.predict(*batch(tiny))
    assert processors(tiny) == before
    assert not any(m._forward_pre_hooks for m in tiny.unet.modules())


def test_a_unet_without_cross_attention_is_refused():
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    with pytest.raises(ModelError, match="No attention layer"), attach(unet, Probe("ignore")):
        pass


def injection(*, gate=None, weights=None, cross_until=5, self_until=3):
    generator = torch.Generator().manual_seed(7)
    mapping = torch.rand(L, L, generator=generator)
    ones = torch.ones(L)
    return Injection(
        mapping,
        ones if gate is None else gate,
        ones if weights is None else weights,
        cross_until,
        self_until,
        self_pixels=256,
    )


def injector(injections, step, source=None):
    """An injector of rows that all start from a source with these maps at "layer"."""
    store = AttentionStore(injections, step, maps={} if source is None else {"layer": source})
    return MapInjector(
        [TargetControl(i, store, AttentionStore([], step)) for i in injections], step, guided=True
    )


def maps(rows, keys, seed):
    raw = torch.rand(rows, 3, 16, keys, generator=torch.Generator().manual_seed(seed))
    return raw / raw.sum(-1, keepdim=True)


def test_cross_attention_follows_the_formula_row_by_row():
    gate = (torch.arange(L) % 3 > 0).float()
    weights = torch.linspace(-1, 2, L)
    injections = [injection(gate=gate, weights=weights), injection(cross_until=2)]
    source, own = maps(1, L, 0), maps(2, L, 1)
    site = Site("layer", "cross", 4, 4)
    controller = injector(injections, 3, source)
    assert controller.action(site) == "edit"
    got = controller.edit(own, site, Heads(0, 3, 3))
    mixed = torch.empty_like(own)
    for head in range(3):
        for pixel in range(16):
            for token in range(L):
                carried = sum(
                    float(source[0, head, pixel, k]) * float(injections[0].mapping[k, token])
                    for k in range(L)
                )
                kept = float(own[0, head, pixel, token])
                mixed[0, head, pixel, token] = carried if gate[token] else kept
    expected = mixed / mixed.sum(-1, keepdim=True) * weights
    expected[1] = own[1]  # step 3 is past its last injected step
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_rows_stay_probabilities_where_words_come_and_go():
    source, own = maps(1, L, 0), maps(1, L, 1)
    site = Site("layer", "cross", 4, 4)
    for seed in range(3):
        gate = (torch.rand(L, generator=torch.Generator().manual_seed(seed)) > 0.4).float()
        row_sums = (
            injector([injection(gate=gate)], 0, source).edit(own, site, Heads(0, 3, 3)).sum(-1)
        )
        torch.testing.assert_close(row_sums, torch.ones_like(row_sums))


def test_weights_hold_after_the_injection_has_ended():
    weights = torch.ones(L)
    weights[2] = -2
    own = maps(1, L, 1)
    site = Site("layer", "cross", 4, 4)
    late = injector([injection(weights=weights)], 40)
    assert late.action(site) == "edit"
    torch.testing.assert_close(late.edit(own, site, Heads(0, 3, 3)), own * weights)
    plain = injector([injection()], 40)
    assert plain.action(site) == "ignore"


def test_self_attention_is_injected_early_and_at_small_sites_of_a_unet():
    small, large = Site("layer", "self", 4, 4), Site("layer", "self", 32, 32)
    injections = [injection(self_until=3), injection(self_until=1)]
    early, between, late = (injector(injections, step) for step in (0, 2, 3))
    assert [c.action(small) for c in (early, between, late)] == ["borrow", "borrow", "ignore"]
    assert early.action(large) == "ignore"
    of_one_size = Site("layer", "self", 64, 64, joint=True)  # SD 3 and FLUX at 1024 px
    assert [c.action(of_one_size) for c in (early, late)] == ["borrow", "ignore"]
    parent, own = torch.rand(1, 16, 6), torch.rand(4, 16, 6)
    layer = Layer(None, own, None, rows=2)  # two null rows before them
    for controller in (early, between):
        controller.controls[0].parent.queries["layer"] = parent
    assert torch.equal(early.borrow(layer, small), parent.expand(2, -1, -1))
    assert torch.equal(between.borrow(layer, small), torch.cat([parent, own[3:]]))


@torch.no_grad()
def test_borrowed_attention_is_the_parents_probabilities_on_own_values(tiny):
    """M V*, with M the softmax of the parent's queries and keys, made by hand."""
    probe = Probe("observe")
    with attach(tiny.unet, probe):
        tiny.predict(*batch(tiny, rows=4))
    name = next(n for n in probe.layers if probe.layers[n].context is None)
    layer, modules = probe.layers[name], dict(tiny.unet.named_modules())
    attn, rows, parent = modules[name], layer.hidden_states[2:], layer.hidden_states[:1]
    asked = parent.expand(2, -1, -1)

    def split(x):
        return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    scores = split(attn.to_q(asked)) @ split(attn.to_k(asked)).transpose(-1, -2) * attn.scale
    mixed = scores.softmax(-1) @ split(attn.to_v(rows))
    expected = attn.to_out[0](mixed.transpose(1, 2).flatten(-2))
    outputs = {}
    handle = attn.register_forward_hook(lambda *call: outputs.setdefault("got", call[-1]))

    class Borrowing(Probe):
        def action(self, site):
            return "borrow" if site.name == name else "ignore"

        def borrow(self, layer, site):
            return asked

    with attach(tiny.unet, Borrowing("borrow")):
        tiny.predict(*batch(tiny, rows=4))
    handle.remove()
    # float32, fused or by hand
    torch.testing.assert_close(outputs["got"][2:], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_borrowing_the_own_queries_is_plain_to_rounding(tiny):
    class Borrowing(Probe):
        def action(self, site):
            return "borrow" if site.kind == "self" else "ignore"

    plain = tiny.predict(*batch(tiny, rows=4))
    with attach(tiny.unet, Borrowing("borrow")):
        own = tiny.predict(*batch(tiny, rows=4))
    with attach(tiny.unet, Borrowing("borrow", change=lambda rows: rows.flip(0))):
        swapped = tiny.predict(*batch(tiny, rows=4))
    torch.testing.assert_close(own, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(swapped[:2], plain[:2], atol=1e-5, rtol=1e-5)
    assert (swapped[2:] - plain[2:]).abs().amax(dim=(1, 2, 3)).min() > 1e-4


@torch.no_grad()
def test_heads_in_slices_are_the_heads_in_one_piece(tiny, monkeypatch):
    found = []
    for limit in (controlling.SLICE_BYTES, 1):
        monkeypatch.setattr(controlling, "SLICE_BYTES", limit)
        probe = Probe("edit")
        with attach(tiny.unet, probe):
            output = tiny.predict(*batch(tiny, rows=4))
        assert all((some.stop - some.first == some.total) == (limit > 1) for some in probe.pieces)
        found.append((output, probe.seen))
    (whole, one), (sliced, other) = found
    torch.testing.assert_close(sliced, whole, atol=1e-6, rtol=1e-6)  # float32, other products
    for name, seen in one.items():
        torch.testing.assert_close(other[name], seen, atol=1e-6, rtol=1e-6)


def test_recorder_keeps_just_what_the_injector_will_ask_for():
    for step in range(6):
        injections = [injection(cross_until=4, self_until=2)]
        recorder = Recorder(AttentionStore(injections, step), guided=True)
        controller = injector(injections, step)
        for site in (
            Site("a", "cross", 64, 64),
            Site("b", "self", 16, 16),
            Site("c", "self", 32, 32),
        ):
            acts = controller.action(site) in ("edit", "borrow")
            assert (recorder.action(site) == "observe") == acts


def test_the_largest_self_site_follows_the_latents():
    assert largest_self_site(64, 64) == 16 * 16  # SD 1.x at 512 px, as in the paper
    assert largest_self_site(96, 96) == 24 * 24  # SD 2.x at 768 px
    assert largest_self_site(16, 16) == 16 * 16  # smaller latents: every site there is
    assert largest_self_site(64, 128) == 16 * 32


@torch.no_grad()
def test_threads_on_one_model_do_not_disturb_each_other(tiny):
    """Two threads edit their attention, each its own way, while a third samples plainly."""
    before = processors(tiny)
    rounds = 12

    def sample(shift):
        results = []
        for _ in range(rounds):
            with torch.no_grad():
                if shift is None:
                    results.append(tiny.predict(*batch(tiny)))
                    continue
                probe = Probe("edit", change=lambda own: own.roll(shift, dims=-1))
                with attach(tiny.unet, probe):
                    results.append(tiny.predict(*batch(tiny)))
        return results

    expected = {shift: sample(shift)[0] for shift in (None, 1, 2)}
    with ThreadPoolExecutor(3) as pool:
        running = {shift: pool.submit(sample, shift) for shift in expected}
        for shift, future in running.items():
            for result in future.result():
                torch.testing.assert_close(result, expected[shift], atol=1e-5, rtol=1e-5)
    assert processors(tiny) == before


@torch.no_grad()
def test_processors_of_the_pipeline_keep_working_underneath(tiny):
    pipe = tiny.to_diffusers()
    plain, fused = tiny.predict(*batch(tiny)), tiny.unet.attn_processors
    pipe.enable_attention_slicing(1)
    try:
        with attach(tiny.unet, Probe("observe")):
            sliced = tiny.predict(*batch(tiny))
    finally:
        tiny.unet.set_attn_processor(fused)
    torch.testing.assert_close(sliced, plain, atol=1e-5, rtol=1e-5)

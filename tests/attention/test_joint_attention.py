"""MM-DiT networks: neutrality, probabilities and actions against attention written out by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor

from nulltext.attention import controller as controlling
from nulltext.attention.controller import (
    Action,
    AttentionController,
    Heads,
    Kind,
    Layer,
    Redirection,
    Site,
)
from nulltext.attention.maps import NoOpController, ProbedController, StepMaps
from nulltext.attention.mutual import Mutual, MutualAttention
from nulltext.attention.processor import attach, self_depths
from nulltext.attention.prompt_to_prompt import Injection, MapInjector
from nulltext.attention.store import AttentionStore, Recorder, TargetControl
from nulltext.errors import ModelError

L, CHANNELS, WIDTH, HEADS = 5, 4, 16, 2
HEIGHT, COLUMNS = 3, 5
N = HEIGHT * COLUMNS


@dataclass(frozen=True)
class Net:
    """A small network with random weights, in float64."""

    network: Any
    atol: float
    """Rounding: norms (SD 3.5) and rotary embeddings (FLUX) are computed in float32."""

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.predict(*inputs)

    def predict(self, latents: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        timestep = torch.full((len(latents),), 0.5, dtype=latents.dtype)
        if isinstance(self.network, SD3Transformer2DModel):
            return self.network(latents, text, pooled, timestep * 1000).sample
        packed = latents.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 1, 3, 5)
        rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(COLUMNS), indexing="ij")
        ids = torch.stack([torch.zeros(N), rows.flatten(), columns.flatten()], dim=1)
        return self.network(
            packed.reshape(len(latents), N, -1),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=timestep,
            img_ids=ids,
            txt_ids=torch.zeros(L, 3),
        ).sample

    @property
    def layers(self) -> dict[str, Any]:
        """Attention layers by name, in the order in which they run."""
        return {n: m for n, m in self.network.named_modules() if hasattr(m, "to_q")}


@cache
def made(name: str) -> Net:
    torch.manual_seed(0)
    if name == "flux":
        network = FluxTransformer2DModel(
            in_channels=4 * CHANNELS,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=WIDTH // HEADS,
            num_attention_heads=HEADS,
            joint_attention_dim=12,
            pooled_projection_dim=6,
            axes_dims_rope=(2, 2, 4),
        )
    else:
        dual = {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}
        network = SD3Transformer2DModel(
            sample_size=16,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=3,
            attention_head_dim=WIDTH // HEADS,
            num_attention_heads=HEADS,
            joint_attention_dim=12,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=6,
            pos_embed_max_size=8,
            **(dual if name == "sd35" else {}),
        )
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data *= 2  # far from uniform attention
        else:
            parameter.data += 0.3 * torch.randn(parameter.shape)  # norms differ
    return Net(network.double().requires_grad_(False), 1e-10 if name == "sd3" else 2e-5)


@pytest.fixture(params=["sd3", "sd35", "flux"])
def net(request):
    return made(request.param)


def batch(rows=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(rows, *shape, generator=generator, dtype=torch.float64)

    return random(CHANNELS, 2 * HEIGHT, 2 * COLUMNS), random(L, 12), random(6)


@dataclass
class Script(AttentionController):
    """Does one thing at each kind of site, and remembers what it saw."""

    actions: dict[Kind, Action]
    guided: bool = True
    layer: str | None = None
    """The layer that it acts at; None: all."""
    change: Callable[[Tensor], Tensor] = torch.clone
    """Of probabilities and, borrowing, of hidden states of the prompt rows."""
    to: Callable[[Layer], list[Redirection]] = lambda layer: [Redirection(layer.hidden_states)]
    reading: bool = True
    sites: list[Site] = field(default_factory=list)
    seen: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Layer] = field(default_factory=dict)
    pieces: list[Heads] = field(default_factory=list)

    def action(self, site: Site) -> Action:
        self.sites.append(site)
        here = self.layer is None or site.name.removesuffix(".text") == self.layer
        return self.actions.get(site.kind, "ignore") if here else "ignore"

    def observe(self, layer: Layer, site: Site) -> None:
        self.inputs[site.name] = layer

    def reads(self, site: Site) -> bool:
        return self.reading

    def read(self, own: Tensor, site: Site, heads: Heads) -> None:
        before = self.seen[site.name] if heads.first else own[:, :0]
        self.seen[site.name] = torch.cat([before, own], dim=1)
        self.pieces.append(heads)

    def edit(self, own: Tensor, site: Site, heads: Heads) -> Tensor:
        self.read(own, site, heads)
        return self.change(own)

    def borrow(self, layer: Layer, site: Site) -> Tensor:
        return self.change(layer.hidden_states[-layer.rows :])

    def redirect(self, layer: Layer, site: Site) -> list[Redirection]:
        return self.to(layer)


@dataclass
class Calls:
    """What one layer was called with, and what it returned."""

    attn: Any
    text: Tensor
    image: Tensor
    rotary: tuple[Tensor, Tensor] | None
    output: Any

    def projected(self, text, image, kind):
        """Q, K or V of both streams, [B, heads, L + N, d], written out from the weights."""
        attn, streams = self.attn, []
        own = attn.added_kv_proj_dim is not None
        for x, added in ((text, own), (image, False)):
            linear = getattr(attn, f"add_{kind}_proj" if added else f"to_{kind}")
            y = (x @ linear.weight.T + linear.bias).reshape(*x.shape[:2], HEADS, WIDTH // HEADS)
            norm = getattr(attn, f"norm_added_{kind}" if added else f"norm_{kind}", None)
            if norm is not None:
                y = y / (y.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
            streams.append(y.permute(0, 2, 1, 3))
        joined = torch.cat(streams, dim=2)
        if self.rotary is None or kind == "v":
            return joined
        cos, sin = (each[:, ::2].double() for each in self.rotary)
        even, odd = joined[..., ::2], joined[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)

    def matrix(self, asked=None, keyed=None, bias=None):
        """P: [B, heads, L + N, L + N]; `asked` and `keyed` make the image's queries and keys."""
        asked = self.image if asked is None else asked
        keyed = asked if keyed is None else keyed
        query = self.projected(self.text, asked, "q")
        key = self.projected(self.text, keyed, "k")
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if bias is not None:
            length = self.text.shape[1]
            scores[:, :, length:, length:] += bias[:, None]
        return scores.softmax(-1)

    def mixed(self, matrix, valued=None):
        """P V."""
        return matrix @ self.projected(self.text, self.image if valued is None else valued, "v")

    def finished(self, mixed):
        """The layer's output of P V, as one sequence [text; image]."""
        flat, length, attn = mixed.transpose(1, 2).flatten(-2), self.text.shape[1], self.attn
        text, image = flat[:, :length], flat[:, length:]
        if attn.pre_only:
            return flat
        if length and not attn.context_pre_only:
            text = text @ attn.to_add_out.weight.T + attn.to_add_out.bias
        return torch.cat([text, image @ attn.to_out[0].weight.T + attn.to_out[0].bias], dim=1)

    @property
    def returned(self):
        """The layer's output as one sequence [text; image]."""
        if isinstance(self.output, tuple):
            return torch.cat([self.output[1], self.output[0]], dim=1)
        return self.output


def calls(net, *inputs, controller=None):
    """What every layer was called with and returned, by name."""
    found, handles = {}, []
    for name, attn in net.layers.items():

        def note(attn, _, given, output, name=name):
            image, text = given["hidden_states"], given.get("encoder_hidden_states")
            if text is None:
                length = 0 if name.endswith("attn2") else L
                text, image = image[:, :length], image[:, length:]
            found[name] = Calls(attn, text, image, given.get("image_rotary_emb"), output)

        handles.append(attn.register_forward_hook(note, with_kwargs=True))
    try:
        with attach(net.network, controller or NoOpController(guided=True)):
            net(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def close(net, got, expected):
    torch.testing.assert_close(got, expected, atol=net.atol, rtol=net.atol)


def everything(net):
    """Each layer with the kinds of its sites."""
    return [(n, ("self",) if n.endswith("attn2") else ("cross", "self")) for n in net.layers]


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("reading", [True, False])
def test_ignoring_and_observing_leave_the_output_bit_equal(net, guided, reading):
    plain = net(*batch())
    for action in ("ignore", "observe"):
        script = Script({"cross": action, "self": action}, guided, reading=reading)
        with attach(net.network, script):
            assert torch.equal(net(*batch()), plain)
    assert bool(script.seen) == reading
    rows = 2 if guided else 4
    assert all(seen.shape[:2] == (rows, HEADS) for seen in script.seen.values())


def test_sites_are_two_to_a_layer_with_the_grids_size_and_running_depths(net):
    script = Script({"cross": "observe", "self": "observe"})
    with attach(net.network, script):
        net(*batch())
    assert all((site.height, site.width) == (HEIGHT, COLUMNS) for site in script.sites)
    assert len({site.name for site in script.sites}) == len(script.sites)
    assert all(site.joint for site in script.sites)
    named = [(site.name.removesuffix(".text"), site.kind) for site in script.sites]
    assert named == [(name, kind) for name, kinds in everything(net) for kind in kinds]
    for kind in ("cross", "self"):
        depths = [site.depth for site in script.sites if site.kind == kind]
        assert depths == [i / len(depths) for i in range(len(depths))]
    assert self_depths(net.network) == depths


def test_layers_show_the_images_hidden_states_and_the_text(net):
    script = Script({"cross": "observe", "self": "observe"})
    found = calls(net, *batch(), controller=script)
    for name, layer in script.inputs.items():
        call = found[name.removesuffix(".text")]
        assert torch.equal(layer.inputs_of(1), call.image[1::2])
        assert (layer.context is None) == (not name.endswith(".text"))
        if layer.context is not None:
            assert torch.equal(layer.context, call.text)


def test_probabilities_are_the_blocks_of_one_softmax(net):
    script = Script({"cross": "observe", "self": "observe"})
    for name, call in calls(net, *batch(), controller=script).items():
        matrix = call.matrix()[2:]
        close(net, call.finished(call.mixed(call.matrix())), call.returned)  # the reference holds
        own = script.seen[name]
        close(net, own, matrix[:, :, -N:, -N:])
        if not name.endswith("attn2"):
            text = script.seen[name + ".text"]
            close(net, text, matrix[:, :, L:, :L])
            own = torch.cat([text, own], dim=-1)
        torch.testing.assert_close(own.sum(-1), torch.ones_like(own[..., 0]))
        for kind, layer in (("cross", name + ".text"), ("self", name)):
            if layer in script.inputs:
                pieces = [piece for _, piece in script.inputs[layer].probabilities()]
                assert torch.equal(torch.cat(pieces, dim=1), script.seen[layer]), kind


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize(
    "actions",
    [
        {"cross": "edit"},
        {"self": "edit"},
        {"cross": "edit", "self": "edit"},
        {"self": "borrow"},
        {"self": "redirect"},
        {"cross": "edit", "self": "borrow"},
        {"cross": "observe", "self": "borrow"},
        {"cross": "edit", "self": "redirect"},
        {"cross": "observe", "self": "redirect"},
    ],
)
def test_own_probabilities_and_hidden_states_give_the_plain_output(net, actions, guided):
    plain = net(*batch())
    script = Script(actions, guided)
    with attach(net.network, script):
        close(net, net(*batch()), plain)
    if "cross" in actions:
        plain_script = Script({"cross": "observe"}, guided)
        with attach(net.network, plain_script):
            net(*batch())
        for name, seen in script.seen.items():
            if name.endswith(".text"):
                close(net, seen, plain_script.seen[name])


def test_edited_probabilities_act_on_the_images_queries_of_the_prompt_rows(net):
    plain = calls(net, *batch())
    for name, kinds in everything(net):
        for kind in kinds:
            script = Script({kind: "edit"}, layer=name, change=lambda own: 3 * own.roll(1, -1))
            call = calls(net, *batch(), controller=script)[name]
            length = call.text.shape[1]
            matrix = call.matrix()
            columns = slice(None, length) if kind == "cross" else slice(length, None)
            block = matrix[2:, :, length:, columns]
            matrix[2:, :, length:, columns] = 3 * block.roll(1, -1)
            close(net, call.returned, call.finished(call.mixed(matrix)))
            assert_null_rows_plain(call, plain[name])


def assert_null_rows_plain(call, plain):
    """To rounding: kernels may add up two rows otherwise than four."""
    torch.testing.assert_close(call.returned[:2], plain.returned[:2], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("cross", ["ignore", "observe", "edit"])
def test_borrowed_queries_and_keys_are_the_images_with_own_values(net, cross):
    plain = calls(net, *batch())
    for name, kinds in everything(net):
        script = Script({"cross": cross, "self": "borrow"}, layer=name)
        script.change = lambda own: own.flip(0) if own.ndim == 3 else own * 2
        call = calls(net, *batch(), controller=script)[name]
        length = call.text.shape[1]
        asked = torch.cat([call.image[:2], call.image[2:].flip(0)])
        matrix = call.matrix(asked)
        if cross != "ignore" and "cross" in kinds:  # as they act
            close(net, script.seen[name + ".text"], matrix[2:, :, length:, :length])
        if cross == "edit":
            matrix[2:, :, length:, :length] *= 2
        close(net, call.returned, call.finished(call.mixed(matrix)))
        assert_null_rows_plain(call, plain[name])


@pytest.mark.parametrize("guided", [True, False])
def test_redirected_layers_attend_to_other_rows_with_text_of_their_own(net, guided):
    for name, _ in everything(net):
        script = Script({"self": "redirect"}, guided, layer=name)
        script.to = lambda layer: [Redirection(layer.hidden_states.flip(0))]
        call = calls(net, *batch(), controller=script)[name]
        other = call.image.flip(0)
        expected = call.mixed(call.matrix(call.image, other), other)
        close(net, call.returned, call.finished(expected))


def test_bias_and_shares_hold_for_the_images_queries(net):
    """Fore- and background, one of a single key; the text sees the mean of both, unbiased."""
    generator = torch.Generator().manual_seed(3)
    share = torch.rand(4, N, 1, generator=generator, dtype=torch.float64)
    one = torch.full((4, 1, N), -math.inf, dtype=torch.float64)
    one[:, :, 7] = 0
    rest = torch.where(one == 0, -math.inf, 0.0)

    def to(layer):
        states = layer.hidden_states
        return [Redirection(states.flip(0), one, share), Redirection(states, rest, 1 - share)]

    for name, kinds in everything(net):
        script = Script({"cross": "observe", "self": "redirect"}, layer=name, to=to)
        call = calls(net, *batch(), controller=script)[name]
        length, other = call.text.shape[1], call.image.flip(0)
        front = call.matrix(call.image, other, bias=one)
        back = call.matrix(call.image, call.image, bias=rest)
        assert bool((front[:, :, length:, length:].count_nonzero(dim=-1) == 1).all())
        both = torch.cat([torch.full((4, length, 1), 0.5, dtype=torch.float64), share], dim=1)
        both = both[:, None]
        expected = both * call.mixed(front, other) + (1 - both) * call.mixed(back)
        close(net, call.returned, call.finished(expected))
        if "cross" in kinds:
            acting = (both * front + (1 - both) * back)[2:, :, length:, :length]
            close(net, script.seen[name + ".text"], acting)


def test_heads_in_slices_are_the_heads_in_one_piece(net, monkeypatch):
    found = []
    for limit in (controlling.SLICE_BYTES, 1):
        monkeypatch.setattr(controlling, "SLICE_BYTES", limit)
        script = Script({"cross": "edit", "self": "observe"})
        with attach(net.network, script):
            output = net(*batch())
        assert all((some.stop - some.first == some.total) == (limit > 1) for some in script.pieces)
        found.append((output, script.seen))
    (whole, one), (sliced, other) = found
    close(net, sliced, whole)
    for name, seen in one.items():
        close(net, other[name], seen)


@torch.no_grad()
def test_half_precision_stays_half_with_float32_probabilities(net):
    half = copy.deepcopy(net.network).to(torch.bfloat16)
    inputs = [each.to(torch.bfloat16) for each in batch()]
    small = Net(half, net.atol)
    plain = small(*inputs)
    for actions in ({"cross": "edit"}, {"self": "borrow"}, {"self": "redirect"}):
        script = Script(actions)
        with attach(half, script):
            output = small(*inputs)
        assert output.dtype == torch.bfloat16
        assert all(seen.dtype == torch.float32 for seen in script.seen.values())
        error = (output - plain).float().square().mean().sqrt() / plain.float().std()
        assert error < 0.05  # bfloat16 has 8 bits


def test_gradients_flow_through_observed_probabilities(net):
    latents, text, pooled = batch()
    text.requires_grad_()
    script = Script({"cross": "observe"})
    with attach(net.network, script):
        output = net.predict(latents, text, pooled)
    (seen,) = torch.autograd.grad(
        sum(each[..., 1].square().sum() for each in script.seen.values()), text, retain_graph=True
    )
    assert seen[2:].abs().amax(dim=(1, 2)).min() > 0
    assert not seen[:2].any()
    (through,) = torch.autograd.grad(output.square().sum(), text)
    (plain,) = torch.autograd.grad(net.predict(latents, text, pooled).square().sum(), text)
    close(net, through, plain)


def test_processors_and_hooks_are_restored_after_an_exception(net):
    before = {name: attn.processor for name, attn in net.layers.items()}

    def fail(own):
        assert {name: attn.processor for name, attn in net.layers.items()} != before
        raise RuntimeError("inside")

    script = Script({"cross": "edit"}, change=fail)
    with pytest.raises(RuntimeError, match="inside"), attach(net.network, script):
        net(*batch())
    assert {name: attn.processor for name, attn in net.layers.items()} == before
    assert not any(module._forward_pre_hooks for module in net.network.modules())


def test_a_second_controller_reads_what_the_first_makes(net):
    twice, outer = (
        Script({"cross": "edit"}, change=lambda own: own * 2),
        Script({"self": "observe"}),
    )
    with attach(net.network, twice):
        changed = net(*batch())
        with attach(net.network, outer):
            assert torch.equal(net(*batch()), changed)
    assert len(outer.seen) == len(everything(net))


def test_other_threads_sample_plainly_meanwhile(net):
    plain = net(*batch())
    script = Script({"cross": "edit"}, change=lambda own: own * 2)
    with attach(net.network, script), ThreadPoolExecutor(1) as pool:
        meanwhile = pool.submit(net, *batch()).result()
        changed = net(*batch())
    assert torch.equal(meanwhile, plain)
    assert (changed[2:] - plain[2:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_fused_projections_are_refused(name):
    net = made.__wrapped__(name)
    net.network.fuse_qkv_projections()
    with pytest.raises(ModelError, match=r"unfuse_qkv_projections\(\)"):
        net_attached(net)
    net.network.unfuse_qkv_projections()
    net_attached(net)


@pytest.mark.parametrize(
    ("name", "expected"), [("sd35", JointAttnProcessor2_0), ("flux", FluxAttnProcessor)]
)
def test_processors_with_another_arithmetic_are_refused(name, expected):
    class Other(expected):
        pass

    net = made.__wrapped__(name)
    before = {name: attn.processor for name, attn in net.layers.items()}
    last = list(net.layers)[-1]
    net.layers[last].set_processor(Other())
    with pytest.raises(ModelError, match=f"{last} has the processor Other"):
        net_attached(net)
    after = {name: attn.processor for name, attn in net.layers.items()}
    assert after | {last: None} == before | {last: None}


def net_attached(net):
    with attach(net.network, NoOpController(guided=False)):
        net(*batch())


def test_reference_pictures_are_refused():
    net = made("flux")
    _, text, pooled = batch()
    ids = torch.zeros(N + 4, 3)
    tokens = torch.zeros(4, N + 4, 4 * CHANNELS, dtype=torch.float64)
    with (
        attach(net.network, NoOpController(guided=False)),
        pytest.raises(ModelError, match="without reference pictures"),
    ):
        net.network(tokens, text, pooled, torch.zeros(4), ids, torch.zeros(L, 3))


def rows(*seeds, guided=True):
    """Inputs of prompts by seed, all on the same latents, with null rows before them."""
    latents, null, pooled_null = batch(1, seed=100)
    prompts = [batch(1, seed) for seed in seeds]
    text, pooled = (torch.cat([prompt[i] for prompt in prompts]) for i in (1, 2))
    count = len(seeds)
    if not guided:
        return latents.expand(count, -1, -1, -1), text, pooled
    return (
        latents.expand(2 * count, -1, -1, -1),
        torch.cat([null.expand(count, -1, -1), text]),
        torch.cat([pooled_null.expand(count, -1), pooled]),
    )


def recorded(net, plans, *, guided=True, seed=0, step=0):
    """The store and the output of a source."""
    store = AttentionStore(plans, step)
    with attach(net.network, Recorder(store, guided)):
        return store, net(*rows(seed, guided=guided))


@pytest.mark.parametrize("guided", [True, False])
def test_mutual_attention_takes_the_parents_keys_and_values_from_its_depth_on(net, guided):
    depth = self_depths(net.network)[2]
    plan = Mutual(0, depth, None)
    store, source = recorded(net, [plan], guided=guided)
    assert len(store.inputs) == len(self_depths(net.network)) - 2
    controls = [TargetControl(plan, store, AttentionStore([], 0)) for _ in range(2)]
    controller = MutualAttention(controls, 0, guided)
    maps = StepMaps(N)
    inputs = rows(0, 1, guided=guided)
    found = calls(net, *inputs, controller=ProbedController(controller, maps))
    own = calls(net, *inputs)
    for number, (name, call) in enumerate(found.items()):
        if number < 2:
            assert torch.equal(call.returned, own[name].returned)
            continue
        kept = store.inputs[name]
        other = kept.repeat_interleave(2, dim=0)  # null branch and prompt branch, or this alone
        expected = call.finished(call.mixed(call.matrix(call.image, other), other))
        close(net, call.returned, expected)
    assert maps.token_maps().shape == (2, L, HEIGHT, COLUMNS)
    with attach(net.network, controller):
        output = net(*inputs)
    close(net, output[::2], source)  # the same words: the source itself


def injection(*, gate=None, weights=None, self_until=3):
    """Words stay at their places; where the gate is 0, they are others."""
    ones = torch.ones(L, dtype=torch.float64)
    return Injection(
        mapping=torch.eye(L, dtype=torch.float64),
        gate=ones if gate is None else gate,
        weights=ones if weights is None else weights,
        cross_until=3,
        self_until=self_until,
        self_pixels=N,
    )


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("self_until", [0, 3])
def test_prompt_to_prompt_of_the_same_words_is_the_source(net, guided, self_until):
    plans = [injection(self_until=self_until)] * 2
    store, source = recorded(net, plans, guided=guided, step=2)
    controls = [TargetControl(plan, store, AttentionStore([], 2)) for plan in plans]
    with attach(net.network, MapInjector(controls, 2, guided)):
        output = net(*rows(0, 0, guided=guided))
    close(net, output, source.repeat_interleave(2, dim=0))


@pytest.mark.parametrize("self_until", [0, 3])
def test_prompt_to_prompt_gives_kept_words_the_sources_attention(net, self_until):
    """Against its formula at every layer, with the text's share of the target's own attention."""
    gate = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 1.0, -0.5, 1.0], dtype=torch.float64)
    plan = injection(gate=gate, weights=weights, self_until=self_until)
    store = AttentionStore([plan], 2)
    source = calls(net, *rows(0), controller=Recorder(store, guided=True))
    assert bool(store.queries) == (self_until > 0)
    own, maps = AttentionStore([plan], 2), StepMaps(1)
    controller = MapInjector([TargetControl(plan, store, own)], 2, guided=True)
    target = calls(net, *rows(1), controller=ProbedController(controller, maps))
    for name, call in target.items():
        asked = torch.cat([call.image[:1], source[name].image[1:]]) if self_until else None
        matrix = call.matrix(asked)
        if not name.endswith("attn2"):
            before = matrix[1:, :, L:, :L].clone()
            carried = source[name].matrix()[1:, :, L:, :L]
            mixed = gate * carried + (1 - gate) * before
            mixed = mixed / mixed.sum(-1, keepdim=True) * before.sum(-1, keepdim=True)
            close(net, own.maps[name + ".text"], mixed)
            kept = (own.maps[name + ".text"] / carried)[..., gate == 1]
            close(net, kept, kept[..., :1].expand_as(kept))  # in the source's proportions
            heat = (mixed * weights).abs().mean(dim=1).transpose(1, 2).unflatten(-1, (HEIGHT, -1))
            found = maps.sites[name + ".text"].double()  # kept in float32
            torch.testing.assert_close(found, heat, atol=1e-5, rtol=1e-5)
            matrix[1:, :, L:, :L] = mixed * weights
        close(net, call.returned, call.finished(call.mixed(matrix)))

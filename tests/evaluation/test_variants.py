"""What defines each of the paper's ablations, and model tuning."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nulltext
from nulltext.errors import InversionFileError, NumericalError, OptionError
from nulltext.inversion.base import Problem
from nulltext.inversion.registry import method_named, with_options
from nulltext.models.network_calls import applied, new_delta
from support.methods import GENERAL_METHODS

PROMPT = "a photo of a white daisy"
OPTIMISING = [
    "null-text",
    "random-pivot",
    "global-null",
    "null-text-no-pivot",
    "textual",
    "textual-pivot",
    "textual-pivot-shared",
    "model-tuning",
]


def eager(name, **options):
    """A method that makes all its N steps: no early stop where it has one."""
    method = with_options(method_named(name), **options)
    if hasattr(method, "loss_tolerance"):
        method = replace(method, loss_tolerance=0.0, loss_tolerance_slope=0.0)
    return method


def solve(model, method, *, steps=3, guidance=7.5, seed=0):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    draw, grid = torch.Generator().manual_seed(seed), model.schedule.grid(steps)
    problem = Problem(latents, model.embed([PROMPT]), grid, guidance, draw)
    chosen = method_named(method) if isinstance(method, str) else method
    return nulltext.diffusion.run(chosen.steps(model, problem))


@pytest.mark.parametrize("name", GENERAL_METHODS)
def test_every_method_replays_saves_and_edits(tiny_sd1, photo, name, tmp_path):
    made = nulltext.invert(tiny_sd1, photo, PROMPT, method=eager_if(name), num_steps=2)
    assert made.header.method == name
    made.save(tmp_path / "i.safetensors")
    again = nulltext.Inversion.load(tmp_path / "i.safetensors")
    assert again.header == made.header
    replayed = nulltext.replay(tiny_sd1, again)
    assert replayed.psnr == pytest.approx(made.header.psnr_reconstruction, abs=1e-3)
    edit = nulltext.edit(tiny_sd1, again, PROMPT.replace("white", "red"))
    assert torch.equal(edit.reconstruction, replayed.image)
    assert not torch.equal(edit.images, edit.reconstruction)


def eager_if(name):
    return eager(name, inner_steps=2) if name in OPTIMISING else name


@pytest.mark.parametrize("name", OPTIMISING)
def test_gradients_flow_to_what_is_optimised_and_to_nothing_else(tiny_sd1, name):
    before = copy.deepcopy(tiny_sd1.unet.state_dict())
    flags = [p.requires_grad for p in tiny_sd1.unet.parameters()]
    embeddings = tiny_sd1.embed(["", PROMPT])
    solve(tiny_sd1, eager(name, inner_steps=2))
    after = tiny_sd1.unet.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in tiny_sd1.unet.parameters())
    assert [p.requires_grad for p in tiny_sd1.unet.parameters()] == flags
    assert not any(layer._forward_hooks for layer in tiny_sd1.unet.modules())
    assert torch.equal(embeddings, tiny_sd1.embed(["", PROMPT]))


@pytest.mark.parametrize("name", OPTIMISING)
def test_what_is_stored_is_what_the_method_moves(tiny_sd1, name):
    solution = solve(tiny_sd1, eager(name, inner_steps=2))
    empty, prompt = tiny_sd1.embed(["", PROMPT]).chunk(2)
    stored = {
        "null-text": (3, None, False),
        "random-pivot": (3, None, False),
        "global-null": (1, None, False),
        "null-text-no-pivot": (1, None, False),
        "textual": (None, 1, False),
        "textual-pivot": (None, 3, False),
        "textual-pivot-shared": (None, 1, False),
        "model-tuning": (None, None, True),
    }[name]
    nulls, prompts = solution.null_embeds, solution.prompt_embeds
    found = (nulls if nulls is None else len(nulls), prompts if prompts is None else len(prompts))
    assert (*found, solution.weight_delta is not None) == stored
    if nulls is not None:
        assert (nulls - empty).abs().max() > 1e-4, "nothing was optimised"
    if prompts is not None:
        assert (prompts - prompt).abs().max() > 1e-4, "nothing was optimised"


def test_a_random_pivot_is_the_closed_form(tiny_sd1):
    solution = solve(tiny_sd1, eager("random-pivot", inner_steps=1), steps=4, seed=3)
    z0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(solution.trajectory[:1], z0)
    for row, step in enumerate(reversed(tiny_sd1.schedule.grid(4)), start=1):
        ab = tiny_sd1.schedule.alphas_cumprod[step.noisier.fed]
        expected = math.sqrt(ab) * z0 + math.sqrt(1 - ab) * noise
        torch.testing.assert_close(solution.trajectory[row][None], expected)
    other = solve(tiny_sd1, eager("random-pivot", inner_steps=1), steps=4, seed=4)
    assert not torch.equal(other.trajectory[-1], solution.trajectory[-1])


def test_the_global_embedding_equals_a_plain_double_loop(tiny_sd1):
    model, w = tiny_sd1, 7.5
    rounds, rate = 3, 1e-2
    method = nulltext.inversion.GlobalNull(inner_steps=rounds, learning_rate=rate)
    solution = solve(model, method, steps=3)
    empty, prompt = model.embed(["", PROMPT]).chunk(2)
    null = torch.nn.Parameter(empty.clone())
    adam = torch.optim.Adam([null], lr=rate)

    def advanced(z, step):
        output_null = model.predict(z, step.noisier, null)
        output = output_null + w * (model.predict(z, step.noisier, prompt) - output_null)
        return step.denoise(z, output)

    for _ in range(rounds):
        z = solution.trajectory[-1:]
        for index, step in enumerate(model.schedule.grid(3)):
            loss = (advanced(z, step) - solution.trajectory[2 - index]).square().mean()
            (null.grad,) = torch.autograd.grad(loss, null)  # the shared model keeps no gradients
            adam.step()
            z = advanced(z, step).detach()
    # float32; Adam turns the sign of a gradient into a whole step
    torch.testing.assert_close(solution.null_embeds, null.detach(), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", ["null-text-no-pivot", "textual"])
def test_without_a_pivot_the_noise_and_the_timesteps_are_random(tiny_sd1, name):
    seen = []
    method = eager(name, inner_steps=4)
    latents = torch.randn(1, 4, 8, 8)
    draw, grid = torch.Generator().manual_seed(0), tiny_sd1.schedule.grid(3)
    problem = Problem(latents, tiny_sd1.embed([PROMPT]), grid, 7.5, draw)
    solution = nulltext.diffusion.run(
        method.steps(tiny_sd1, problem),
        lambda info: seen.append(info.level) if info.stage == "optimise" else None,
    )
    assert len(seen) == 12
    assert len(set(seen)) > 9, "timesteps are drawn from all training steps"
    under = solution.prompt_embeds if name == "textual" else problem.prompt_embeds
    plain = nulltext.diffusion.run(
        nulltext.inversion.DDIM().steps(tiny_sd1, replace(problem, prompt_embeds=under))
    )
    torch.testing.assert_close(solution.trajectory, plain.trajectory)


def test_textual_inversion_lowers_the_denoising_loss(tiny_sd1):
    z0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    learnt = solve(tiny_sd1, eager("textual", inner_steps=15, learning_rate=1e-2)).prompt_embeds

    def loss(embeds):
        draw, total = torch.Generator().manual_seed(99), 0.0
        for timestep in range(100, 1000, 100):
            level = tiny_sd1.schedule.level(timestep)
            noise = torch.randn(z0.shape, generator=draw)
            with torch.no_grad():
                guess = tiny_sd1.predict_noise(level.add_noise(z0, noise), level, embeds)
            total += (noise - guess).square().mean().item()
        return total

    assert loss(learnt) < loss(tiny_sd1.embed([PROMPT]))


@pytest.mark.parametrize("name", ["textual-pivot", "model-tuning"])
def test_fitting_to_the_pivot_beats_plain_ddim_on_the_bundled_model(flowers, name):
    from support.examples import DAHLIA_PROMPT, EXAMPLE

    psnr = {}
    for method in ("ddim", eager(name, inner_steps=3)):
        header = nulltext.invert(flowers, EXAMPLE, DAHLIA_PROMPT, method=method, num_steps=5).header
        psnr[header.method] = header.psnr_reconstruction
    assert psnr[name] > psnr["ddim"] + 0.3


class TestModelTuning:
    @pytest.fixture(scope="class")
    def tuned(self, tiny_sd1, photo):
        method = eager("model-tuning", inner_steps=3, learning_rate=1e-2)
        return nulltext.invert(tiny_sd1, photo, PROMPT, method=method, num_steps=3)

    def test_the_replay_needs_the_difference(self, tiny_sd1, tuned):
        plain = nulltext.replay(tiny_sd1, replace(tuned, weight_delta=None))
        ddim = nulltext.invert(
            tiny_sd1, nulltext.to_pil(tuned.photo / 127.5 - 1), PROMPT, method="ddim", num_steps=3
        )
        torch.testing.assert_close(plain.image, nulltext.replay(tiny_sd1, ddim).image)
        assert (nulltext.replay(tiny_sd1, tuned).image - plain.image).abs().max() > 1e-3

    def test_the_difference_equals_writing_it_into_the_weights(self, tiny_sd1, tuned):
        merged = copy.deepcopy(tiny_sd1)
        for name in tuned.weight_delta:
            if name.endswith(".up"):
                layer = merged.unet.get_submodule(name.removesuffix(".up"))
                product = tuned.weight_delta[name] @ tuned.weight_delta[name[:-3] + ".down"]
                layer.weight.data += product.view_as(layer.weight)
        z, embeds = torch.randn(2, 4, 8, 8), tiny_sd1.embed(["", PROMPT])
        with torch.no_grad():
            level = merged.schedule.level(300)
            expected = merged.predict(z, level, embeds)
            worn = replace(tiny_sd1, weight_delta=tuned.weight_delta)
            torch.testing.assert_close(
                worn.predict(z, level, embeds), expected, atol=1e-4, rtol=1e-4
            )
            assert not torch.allclose(tiny_sd1.predict(z, level, embeds), expected, atol=1e-3)

    def test_a_new_difference_is_none_and_errors_take_it_off(self, tiny_sd1):
        delta = new_delta(tiny_sd1.unet, 2, torch.Generator())
        z, embeds = torch.randn(1, 4, 8, 8), tiny_sd1.embed([PROMPT])
        with torch.no_grad():
            plain = tiny_sd1.predict_noise(z, tiny_sd1.schedule.level(300), embeds)
            worn = replace(tiny_sd1, weight_delta=delta)
            assert torch.equal(plain, worn.predict_noise(z, worn.schedule.level(300), embeds))
        with pytest.raises(ZeroDivisionError), applied(tiny_sd1.unet, delta):
            1 / 0  # noqa: B018
        assert not any(layer._forward_hooks for layer in tiny_sd1.unet.modules())

    def test_targets_and_heat_maps_wear_it_too(self, tiny_sd1, tuned):
        target = PROMPT.replace("white", "red")
        with_delta = nulltext.edit(tiny_sd1, tuned, target).images
        without = nulltext.edit(tiny_sd1, replace(tuned, weight_delta=None), target).images
        assert (with_delta - without).abs().max() > 1e-3
        maps = [
            nulltext.diffusion.run(nulltext.editing.heat_map_steps(tiny_sd1, one))[0].words[-1].heat
            for one in (tuned, replace(tuned, weight_delta=None))
        ]
        assert not torch.equal(*maps)

    def test_a_foreign_or_broken_difference_is_refused(self, tiny_sd1, tuned, tmp_path):
        path = tmp_path / "t.safetensors"
        tuned.save(path)
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata()
        tensors = load_file(path)
        name = next(key for key in tensors if key.endswith(".up"))
        save_file(tensors | {name: torch.zeros(3)}, path, metadata=metadata)
        with pytest.raises(InversionFileError, match="matrix"):
            nulltext.Inversion.load(path)
        for change in ({"weight_delta.nowhere.up": torch.zeros(4, 4)}, {name: torch.zeros(7, 4)}):
            save_file(tensors | change, path, metadata=metadata)
            with pytest.raises(InversionFileError, match="does not fit the UNet"):
                nulltext.replay(tiny_sd1, nulltext.Inversion.load(path))
        del tensors[name]
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(InversionFileError, match="does not fit the UNet"):
            nulltext.replay(tiny_sd1, nulltext.Inversion.load(path))

    def test_a_rank_that_no_layer_takes_is_refused(self, tiny_sd1, photo):
        for rank in (0, 10_000):
            with pytest.raises(OptionError, match="rank"):
                nulltext.invert(
                    tiny_sd1,
                    photo,
                    PROMPT,
                    method=nulltext.inversion.ModelTuning(rank=rank),
                    num_steps=2,
                )


def test_files_of_format_1_still_load(tiny_sd1, photo, tmp_path):
    path = tmp_path / "old.safetensors"
    made = nulltext.invert(tiny_sd1, photo, PROMPT, method="null-text", num_steps=2)
    made.save(path)
    with safe_open(path, framework="pt") as stream:
        header = json.loads(stream.metadata()["nulltext"])
    assert header.pop("iterations") > 0
    save_file(load_file(path), path, metadata={"nulltext": json.dumps(header | {"version": 1})})
    old = nulltext.Inversion.load(path)
    assert old.header == replace(made.header, iterations=0)
    assert torch.equal(nulltext.replay(tiny_sd1, old).image, nulltext.replay(tiny_sd1, made).image)


@pytest.mark.parametrize("name", OPTIMISING)
def test_a_guidance_that_leaves_nothing_to_optimise_is_refused(tiny_sd1, photo, name):
    if name == "model-tuning":
        return
    with pytest.raises(OptionError, match="cannot do anything"):
        nulltext.invert(tiny_sd1, photo, PROMPT, method=name, guidance_scale=0.0)


@pytest.mark.parametrize("name", ["global-null", "textual", "model-tuning"])
def test_a_loss_that_is_not_finite_stops_with_the_timestep(tiny_sd1, name):
    method = with_options(method_named(name), learning_rate=1e30)
    with pytest.raises(NumericalError, match="timestep"):
        solve(tiny_sd1, method)
    with pytest.raises(OptionError, match="learning_rate"):
        with_options(method_named(name), learning_rate=0.0)


def test_options_of_another_method_are_refused():
    with pytest.raises(OptionError, match="--inner-steps is not an option of the method ddim"):
        with_options(method_named("ddim"), inner_steps=3)


def test_guided_ddim_inversion_equals_the_formula(tiny_sd1):
    w = 3.0
    solution = solve(tiny_sd1, nulltext.inversion.DDIM(inversion_guidance=w), steps=3)
    empty, prompt = tiny_sd1.embed(["", PROMPT]).chunk(2)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    for row, step in enumerate(reversed(tiny_sd1.schedule.grid(3)), start=1):
        with torch.no_grad():
            null, cond = (tiny_sd1.predict(z, step.noisier, e) for e in (empty, prompt))
        z = step.invert(z, (1 - w) * null + w * cond)
        torch.testing.assert_close(solution.trajectory[row][None], z, atol=1e-4, rtol=1e-4)

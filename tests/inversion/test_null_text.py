"""Null-text inversion against a straight transcription of the algorithm, and its guards."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DDIMScheduler

import nulltext
from nulltext.errors import NumericalError, OptionError
from nulltext.image.images import largest_centred, to_tensor
from nulltext.inversion.null_text import NullText
from support.examples import DAHLIA_PROMPT, EXAMPLE

PROMPT = "a photo of a white daisy"


def transcription(pipe, latents, prompt, *, steps, inner, guidance):
    """The algorithm of the paper in plain loops, with diffusers' scheduler and raw modules.

    Returns null embeddings [T, L, D], the trajectory [T + 1, C, h, w], and the final latents.
    """
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(steps)
    grid = scheduler.timesteps.tolist()

    (prompt_embed, added), (null, added_null) = embeddings(pipe, prompt, latents)
    alphas = scheduler.alphas_cumprod.double()

    def alpha(t):
        return float(alphas[t]) if t >= 0 else float(scheduler.final_alpha_cumprod)

    def to_noise(output, z, t):
        if scheduler.config.prediction_type == "v_prediction":
            return alpha(t) ** 0.5 * output + (1 - alpha(t)) ** 0.5 * z
        return output

    trajectory = [latents]
    for t in reversed(grid):
        z, cleaner = trajectory[-1], t - 1000 // steps
        with torch.no_grad():
            output = pipe.unet(z, t, prompt_embed, added_cond_kwargs=added).sample
            eps = to_noise(output, z, cleaner)
        x0 = (z - (1 - alpha(cleaner)) ** 0.5 * eps) / alpha(cleaner) ** 0.5
        trajectory.append(alpha(t) ** 0.5 * x0 + (1 - alpha(t)) ** 0.5 * eps)

    nulls, z = [], trajectory[-1]
    for i, t in enumerate(grid):
        target = trajectory[len(trajectory) - i - 2]
        with torch.no_grad():
            output_prompt = pipe.unet(z, t, prompt_embed, added_cond_kwargs=added).sample
        parameter = torch.nn.Parameter(null.clone())
        adam = torch.optim.Adam([parameter], lr=1e-2 * (1 - i / 100))
        tested = []
        for j in range(inner + 1):
            output_null = pipe.unet(z, t, parameter, added_cond_kwargs=added_null).sample
            guided = output_null + guidance * (output_prompt - output_null)
            landed = scheduler.step(guided, t, z).prev_sample
            loss = torch.nn.functional.mse_loss(landed, target)
            tested.append((loss.item(), parameter.detach().clone(), landed.detach()))
            if j == inner or loss.item() < 1e-5 + i * 2e-5:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
        _, null, z = min(tested, key=lambda entry: entry[0])
        nulls.append(null)
    return torch.cat(nulls), torch.cat(trajectory), z


@torch.no_grad()
def embeddings(pipe, prompt, latents):
    """(sequence, added conditions) of the prompt and of "", by the pipeline's own code."""
    if not hasattr(pipe, "text_encoder_2"):
        prompt_embed, null = pipe.encode_prompt(prompt, "cpu", 1, True, negative_prompt="")
        return (prompt_embed, None), (null, None)
    prompt_embed, null, pooled, pooled_null = pipe.encode_prompt(prompt, device="cpu")
    size = tuple(side * pipe.vae_scale_factor for side in latents.shape[-2:])
    width = pipe.text_encoder_2.config.projection_dim
    ids = pipe._get_add_time_ids(size, (0, 0), size, torch.float32, width)
    added = [{"text_embeds": one, "time_ids": ids} for one in (pooled, pooled_null)]
    return (prompt_embed, added[0]), (null, added[1])


def assert_equals_transcription(model, latents, prompt, *, steps, inner):
    pipe = copy.deepcopy(model.to_diffusers())
    nulls, trajectory, landed = transcription(
        pipe, latents, prompt, steps=steps, inner=inner, guidance=7.5
    )
    config = NullText(inner_steps=inner)
    solution = solve(model, latents, prompt, steps=steps, config=config)
    scale = trajectory.abs().max()
    # float32 throughout; diffusers' scheduler coefficients are float32, ours float64, and Adam
    # turns the sign of a gradient into a whole step, so rounding shows up a little enlarged
    torch.testing.assert_close(solution.trajectory, trajectory, atol=2e-4 * scale, rtol=2e-4)
    tokens = model.max_tokens  # the rows behind them hold SDXL's pooled embedding, which stays
    torch.testing.assert_close(solution.null_embeds[:, :tokens], nulls, atol=2e-3, rtol=2e-3)
    first = model.embed([""])
    assert torch.equal(solution.null_embeds[:, tokens:], first[:, tokens:].expand(steps, -1, -1))
    torch.testing.assert_close(solution.replayed, landed, atol=2e-3 * scale, rtol=2e-3)
    assert (nulls - first[:, :tokens]).abs().max() > 5e-3, "nothing was optimised"


def solve(model, latents, prompt, *, steps, config):
    from nulltext.inversion.base import Problem

    grid = model.schedule.grid(steps)
    problem = Problem(latents, model.embed([prompt]), grid, 7.5, torch.Generator())
    return nulltext.diffusion.run(config.steps(model, problem))


def test_equals_the_transcription_on_tiny_models(tiny):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_equals_transcription(tiny, latents, PROMPT, steps=5, inner=3)


def test_equals_the_transcription_on_the_bundled_model(flowers):
    photo = nulltext.load_photo(EXAMPLE)
    box = largest_centred(*photo.size)
    latents = flowers.encode(to_tensor(photo, box, flowers.resolution))
    assert_equals_transcription(flowers, latents, DAHLIA_PROMPT, steps=5, inner=3)


def test_reconstructs_far_better_than_ddim_and_near_the_bound(flowers):
    ddim = nulltext.invert(flowers, EXAMPLE, DAHLIA_PROMPT, method="ddim", num_steps=20)
    method = NullText(inner_steps=3)
    header = nulltext.invert(flowers, EXAMPLE, DAHLIA_PROMPT, method=method, num_steps=20).header
    assert header.psnr_reconstruction > header.psnr_bound - 3.5
    assert header.psnr_reconstruction > ddim.header.psnr_reconstruction + 3.0


def test_leaves_weights_and_prompt_embedding_bit_equal(tiny_sd1, photo):
    before = copy.deepcopy(tiny_sd1.unet.state_dict())
    flags = [p.requires_grad for p in tiny_sd1.unet.parameters()]
    embedding = tiny_sd1.embed([PROMPT])
    nulltext.invert(tiny_sd1, photo, PROMPT, method="null-text", num_steps=2)
    after = tiny_sd1.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [p.requires_grad for p in tiny_sd1.unet.parameters()] == flags
    assert all(p.grad is None for p in tiny_sd1.unet.parameters())
    assert torch.equal(embedding, tiny_sd1.embed([PROMPT]))


def test_an_inner_loop_never_ends_worse_than_it_began(tiny_sd1):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    wild = NullText(inner_steps=3, learning_rate=1e4)  # Adam overshoots at every step
    idle = NullText(inner_steps=0)
    losses = {"wild": [], "idle": []}
    for name, config in (("wild", wild), ("idle", idle)):
        loop = config.steps(
            tiny_sd1,
            nulltext.inversion.base.Problem(
                latents,
                tiny_sd1.embed([PROMPT]),
                tiny_sd1.schedule.grid(4),
                7.5,
                torch.Generator(),
            ),
        )
        nulltext.diffusion.run(loop, lambda i, name=name: losses[name].append(i.loss))
    first_wild, first_idle = (
        next(entry for entry in losses[name] if entry is not None) for name in ("wild", "idle")
    )
    assert first_wild == first_idle


def test_a_satisfied_timestep_costs_one_evaluation_besides_the_prompt_branch(tiny_sd1):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    config = NullText(loss_tolerance=1e9)
    model = tiny_sd1.counted()
    solution = solve(model, latents, PROMPT, steps=4, config=config)
    assert model.passes.total == 4 + 4 * 2
    assert torch.equal(solution.null_embeds, tiny_sd1.embed([""]).repeat(4, 1, 1))


def test_a_non_finite_loss_stops_with_the_timestep(tiny_sd1):
    class Broken:
        def __getattr__(self, name):
            return getattr(tiny_sd1, name)

        def predict(self, latents, level, embeds, rows=None):
            output = tiny_sd1.predict(latents, level, embeds, rows)
            is_null = torch.equal(embeds, tiny_sd1.embed([""]))
            return output * float("nan") if is_null else output

    latents = torch.randn(1, 4, 8, 8)
    first = tiny_sd1.schedule.grid(4)[0].noisier.fed
    with pytest.raises(NumericalError, match=f"timestep {first}"):
        solve(Broken(), latents, PROMPT, steps=4, config=NullText())


@pytest.mark.parametrize("guidance", [1.0, 0.5, 0.0])
def test_guidance_without_a_null_branch_is_explained(tiny_sd1, photo, guidance):
    with pytest.raises(OptionError, match="cannot do anything"):
        nulltext.invert(tiny_sd1, photo, PROMPT, method="null-text", guidance_scale=guidance)


def test_learning_rate_stays_positive_on_long_grids(tiny_sd1, monkeypatch):
    rates, adam = [], torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr: rates.append(lr) or adam(p, lr=lr))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    solve(tiny_sd1, latents, PROMPT, steps=110, config=NullText(inner_steps=0))
    assert rates[0] == pytest.approx(0.01)
    assert rates[49] == pytest.approx(0.0051)
    assert rates[109] == pytest.approx(1e-4)


def test_ddim_replay_at_w_1_is_exact_under_shared_outputs(tiny_sd1):
    latents = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    grid, trajectory, outputs = tiny_sd1.schedule.grid(10), [latents], []
    for step in reversed(grid):
        output = tiny_sd1.predict(trajectory[-1], step.noisier, tiny_sd1.embed([PROMPT]))
        outputs.append(output.double())
        trajectory.append(step.invert(trajectory[-1], outputs[-1]))
    back = trajectory[-1]
    for step, output in zip(grid, reversed(outputs), strict=True):
        back = step.denoise(back, output)
    torch.testing.assert_close(back, latents, atol=1e-10, rtol=0)  # float64

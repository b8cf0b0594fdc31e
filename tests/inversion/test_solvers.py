"""Null-text inversion and its accelerated form: derivatives, counts, and what they reach."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import nulltext
from nulltext.diffusion.levels import affine
from nulltext.errors import OptionError
from nulltext.inversion.base import Problem
from nulltext.inversion.fitting import Batch, State
from nulltext.inversion.null_text import NullText
from nulltext.inversion.secant import SecantNullText, TimestepTask
from support.examples import DAHLIA_PROMPT, EXAMPLE

PROMPT = "a photo of a white daisy"
GUIDANCE = 7.5
METHODS = (NullText, SecantNullText)


def in_double(model):
    """The same model, its noise predictions float64 from end to end."""
    return replace(model, unet=copy.deepcopy(model.unet).double())


@pytest.fixture
def problem_in_double(tiny):
    """(task, null embeddings) of two photos, in float64."""
    draw = torch.Generator().manual_seed(0)
    pivot = torch.randn(11, 2, 4, 8, 8, generator=draw, dtype=torch.float64)
    embeds = tiny.embed([PROMPT, "a cat sitting next to a mirror"]).double()
    model = in_double(tiny)
    photos = Batch(pivot[0], embeds, model.schedule.grid(10), GUIDANCE, ())
    task = TimestepTask.of(model, photos, State.start(pivot), 4)
    return task, tiny.embed([""]).double().repeat(2, 1, 1)


def tangent_like(tensor, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype)


def test_the_pullback_equals_finite_differences(problem_in_double):
    task, start = problem_in_double
    null_embeds = start.clone().requires_grad_(True)
    landing = task.evaluate(null_embeds, task.rows)
    cotangents = tangent_like(landing.residual, 2)
    pulled = task.pullback(landing, null_embeds, cotangents)
    direction, h = tangent_like(start, 1), 1e-6
    direction[:, task.model.max_tokens :] = 0  # SDXL's pooled row stays
    ahead, behind = (
        (task.evaluate(start + sign * h * direction, task.rows).residual * cotangents)
        .flatten(1)
        .sum(dim=1)
        for sign in (1, -1)
    )
    slopes = (pulled * direction).flatten(1).sum(dim=1)
    # float64 central differences: truncation h^2, rounding 1e-16 / h
    torch.testing.assert_close(slopes, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)
    assert (slopes.abs() > 1e-3).all(), "the test compares nothing"


def test_the_residual_is_the_distance_from_the_ideal_output(problem_in_double):
    task, start = problem_in_double
    landing = task.evaluate(start, task.rows)
    step = task.step
    a, b = affine(step.prediction, step.noisier, step.cleaner)
    output_null = task.model.predict(task.latents, step.noisier, start)
    wanted = (task.target - a * task.latents) / b  # the guided output that lands on the target
    ideal = task.output_prompt + (task.output_prompt - wanted) / (GUIDANCE - 1)
    torch.testing.assert_close(landing.residual, task.gain * (output_null - ideal))


def solve(model, latents, config, *, steps=4, on_step=None):
    grid = model.schedule.grid(steps)
    problem = Problem(latents, model.embed([PROMPT]), grid, 7.5, torch.Generator())
    return nulltext.diffusion.run(config.steps(model, problem), on_step)


def some_latents(seed=1):
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
def test_no_timestep_ends_worse_than_it_began(tiny_sd1, method):
    first = {}
    for inner in (0, 3):
        losses = []
        wild = {"learning_rate": 1e4} if method is NullText else {"trust": 1e4}
        config = method(inner_steps=inner, **wild)
        solve(tiny_sd1, some_latents(), config, on_step=lambda i, kept=losses: kept.append(i.loss))
        first[inner] = next(loss for loss in losses if loss is not None)
    assert first[3] <= first[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_satisfied_timestep_costs_one_evaluation_besides_the_prompt_branch(tiny_sd1, method):
    model = tiny_sd1.counted()
    solve(model, some_latents(), method(loss_tolerance=1e9))
    assert model.passes.total == 4 + 4 * 2


@pytest.mark.parametrize("method", METHODS)
def test_photos_side_by_side_equal_photos_one_by_one(tiny_sd1, method):
    rows = [some_latents(1), 0.3 * some_latents(2), some_latents(3)]
    embeds = tiny_sd1.embed([PROMPT, "a cat", "a yellow sunflower"])
    problems = [
        Problem(row, embed[None], tiny_sd1.schedule.grid(3), 7.5, torch.Generator())
        for row, embed in zip(rows, embeds, strict=True)
    ]
    # a tolerance that the photos reach after different numbers of steps
    config = method(inner_steps=2, loss_tolerance=1.5e-2)
    together = nulltext.diffusion.run(config.batch_steps(tiny_sd1, problems))
    for problem, one in zip(problems, together, strict=True):
        alone = nulltext.diffusion.run(config.steps(tiny_sd1, problem))
        # float32; Adam turns the sign of a gradient into a whole step, and secants divide by the
        # small Jacobian of random weights: both enlarge rounding
        scale = alone.trajectory.abs().max()
        torch.testing.assert_close(one.trajectory, alone.trajectory, atol=1e-4 * scale, rtol=1e-4)
        torch.testing.assert_close(one.null_embeds, alone.null_embeds, atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(one.replayed, alone.replayed, atol=2e-3 * scale, rtol=2e-3)


def test_secants_reach_a_lower_loss_than_adam_with_no_more_evaluations(flowers):
    reached = {}
    for method in (
        NullText(inner_steps=7, loss_tolerance=0, loss_tolerance_slope=0),
        SecantNullText(start="empty", inner_steps=4, loss_tolerance=0, loss_tolerance_slope=0),
    ):
        losses = []
        made = nulltext.invert(
            flowers,
            EXAMPLE,
            DAHLIA_PROMPT,
            method=method,
            num_steps=4,
            on_step=lambda info, kept=losses: kept.append(info.loss),
        )
        reached[method.name] = losses[-4], made.header.unet_evaluations  # the noisiest timestep
    (adam_loss, adam_cost), (loss, cost) = reached["null-text"], reached["null-text-secant"]
    assert cost <= adam_cost
    assert loss < adam_loss


def test_a_list_of_photos_is_inverted_as_one_by_one(tiny_sd1, photo):
    photos, prompts = [photo, photo.rotate(90)], [PROMPT, "a cat"]
    options = {"num_steps": 2, "method": SecantNullText(inner_steps=1, start="empty")}
    together = nulltext.invert_many(tiny_sd1, photos, prompts, **options)
    for one, picture, prompt in zip(together, photos, prompts, strict=True):
        alone = nulltext.invert(tiny_sd1, picture, prompt, **options)
        torch.testing.assert_close(one.null_embeds, alone.null_embeds, atol=1e-3, rtol=1e-3)
        same = {"seconds": 0.0, "psnr_reconstruction": 0.0, "psnr_bound": 0.0}
        assert replace(one.header, **same) == replace(alone.header, **same)
        assert one.header.psnr_reconstruction == pytest.approx(
            alone.header.psnr_reconstruction, abs=0.05
        )


def test_methods_without_batches_take_lists_one_by_one(tiny_sd1, photo):
    made = nulltext.invert_many(
        tiny_sd1, [photo, photo], [PROMPT, "a cat"], method="ddim", num_steps=2
    )
    assert [one.header.prompt for one in made] == [PROMPT, "a cat"]


def test_as_many_photos_as_prompts_are_inverted(tiny_sd1, photo):
    for prompts in (["a cat"], "a cat"):
        with pytest.raises(OptionError, match="2 photos and 1 prompts"):
            nulltext.invert_many(tiny_sd1, [photo] * 2, prompts)


def test_invert_says_what_takes_several_photos(tiny_sd1, photo):
    for several in (([photo], "a cat"), (photo, ["a cat"]), ([photo], ["a cat"])):
        with pytest.raises(OptionError, match=r"one prompt; .* nulltext\.invert_many\(model"):
            nulltext.invert(tiny_sd1, *several)


def test_a_null_branch_without_a_say_ends_where_it_began(tiny_sd1):
    class Deaf:
        def __getattr__(self, name):
            return getattr(tiny_sd1, name)

        def predict(self, latents, level, embeds, rows=None):
            return tiny_sd1.predict(latents, level, 0 * embeds, rows)

    for method in (NullText(inner_steps=2), SecantNullText(inner_steps=2, start="empty")):
        solution = solve(Deaf(), some_latents(), method, steps=2)
        start = tiny_sd1.embed([""]).expand_as(solution.null_embeds)
        torch.testing.assert_close(solution.null_embeds, start, atol=0, rtol=0)
        assert torch.isfinite(solution.replayed).all()


def test_options_without_meaning_are_refused():
    with pytest.raises(OptionError, match="memory is 0"):
        SecantNullText(memory=0)
    with pytest.raises(OptionError, match="inner_steps is -1"):
        SecantNullText(inner_steps=-1)
    with pytest.raises(OptionError, match="start is 'noise'"):
        SecantNullText(start="noise")

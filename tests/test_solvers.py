"""Solvers of the null-text problem: their derivatives, their counts, and what they reach."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import nulltext
from conftest import DAHLIA_PROMPT, EXAMPLE
from nulltext.errors import OptionError
from nulltext.inversion.base import Problem
from nulltext.inversion.null_text import NullText
from nulltext.inversion.solvers.gauss_newton import GaussNewton
from nulltext.inversion.solvers.registry import SOLVERS, solver_named
from nulltext.inversion.solvers.secant import Secant
from nulltext.inversion.solvers.task import StepTask

PROMPT = "a photo of a white daisy"
GUIDANCE = 7.5


def in_double(model):
    """The same model, its noise predictions float64 from end to end."""
    return replace(model, unet=copy.deepcopy(model.unet).double())


@pytest.fixture
def problem_in_double(tiny):
    """(task, null embeddings) of two photos, in float64."""
    draw = torch.Generator().manual_seed(0)
    latents, targets = torch.randn(2, 2, 4, 8, 8, generator=draw, dtype=torch.float64)
    embeds = tiny.embed([PROMPT, "a cat sitting next to a mirror"]).double()
    task = StepTask.at(
        *(in_double(tiny), latents, targets, embeds),
        timestep=501,
        num_steps=10,
        share=1 - GUIDANCE,
        prompt_embeds=embeds,
    )
    return task, tiny.embed([""]).double().repeat(2, 1, 1)


def tangent_like(tensor, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype)


def test_the_gradient_equals_finite_differences(problem_in_double):
    task, start = problem_in_double
    null_embeds = start.clone().requires_grad_(True)
    losses = task.evaluate(null_embeds, task.all_rows).losses
    gradient = task.pullback(losses, null_embeds, torch.ones_like(losses), task.all_rows)
    direction, h = tangent_like(start, 1), 1e-6
    ahead, behind = (
        task.evaluate(start + sign * h * direction, task.all_rows).losses for sign in (1, -1)
    )
    slopes = (gradient * direction).flatten(1).sum(dim=1)
    # float64 central differences: truncation h^2, rounding 1e-16 / h
    torch.testing.assert_close(slopes, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)


def test_forward_mode_and_backward_pass_are_transposes(problem_in_double):
    task, start = problem_in_double
    null_embeds = start.clone().requires_grad_(True)
    residual = task.evaluate(null_embeds, task.all_rows).residual
    v, u = tangent_like(start, 1), tangent_like(residual, 2)
    image = task.pushforward(start, v, task.all_rows)
    pulled = task.pullback(residual, null_embeds, u, task.all_rows)
    left, right = ((a * b).flatten(1).sum(dim=1) for a, b in ((image, u), (v, pulled)))
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)  # float64
    assert (left.abs() > 1e-3).all(), "the test compares nothing"


def test_the_residual_is_the_distance_from_the_ideal_noise(problem_in_double):
    task, start = problem_in_double
    landing = task.evaluate(start, task.all_rows)
    a, b = task.model.schedule.coefficients(start=501, end=401)
    noise_null = task.model.predict_noise(task.latents, 501, start)
    wanted = (task.targets - a * task.latents) / b  # the guided noise that lands on the target
    ideal = task.noise_fixed + (task.noise_fixed - wanted) / (GUIDANCE - 1)
    torch.testing.assert_close(landing.residual, task.noise_gain * (noise_null - ideal))


def solve(model, latents, config, *, steps=4, on_step=None):
    problem = Problem(latents, model.embed([PROMPT]), steps, 7.5, torch.Generator())
    return nulltext.inversion.run(config.steps(model, problem), on_step)


def some_latents(seed=1):
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_no_timestep_ends_worse_than_it_began(tiny_sd1, name):
    first = {}
    for inner in (0, 3):
        losses = []
        config = NullText(solver=name, inner_steps=inner, learning_rate=1e4)
        solve(tiny_sd1, some_latents(), config, on_step=lambda i, kept=losses: kept.append(i.loss))
        first[inner] = next(loss for loss in losses if loss is not None)
    assert first[3] <= first[0]


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_satisfied_timestep_costs_one_evaluation_besides_the_prompt_branch(tiny_sd1, name):
    model = tiny_sd1.counted()
    solve(model, some_latents(), NullText(solver=name, loss_tolerance=1e9))
    assert model.passes.total == 4 + 4 * 2


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_photos_side_by_side_equal_photos_one_by_one(tiny_sd1, name):
    rows = [some_latents(1), 0.3 * some_latents(2), some_latents(3)]
    embeds = tiny_sd1.embed([PROMPT, "a cat", "a yellow sunflower"])
    problems = [
        Problem(row, embed[None], 3, 7.5, torch.Generator())
        for row, embed in zip(rows, embeds, strict=True)
    ]
    # a tolerance that the photos reach after different numbers of steps
    config = NullText(solver=name, inner_steps=2, loss_tolerance=1.5e-2)
    together = nulltext.inversion.run(config.batch_steps(tiny_sd1, problems))
    for problem, one in zip(problems, together, strict=True):
        alone = nulltext.inversion.run(config.steps(tiny_sd1, problem))
        # float32; Adam turns the sign of a gradient into a whole step, and Gauss-Newton divides by
        # the small Jacobian of random weights: both enlarge rounding
        scale = alone.trajectory.abs().max()
        torch.testing.assert_close(one.trajectory, alone.trajectory, atol=1e-4 * scale, rtol=1e-4)
        torch.testing.assert_close(one.null_embeds, alone.null_embeds, atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(one.replayed, alone.replayed, atol=2e-3 * scale, rtol=2e-3)


@pytest.mark.parametrize("name", ["secant", "gauss-newton"])
def test_reaches_a_lower_loss_than_adam_with_no_more_evaluations(flowers, name):
    pivot = nulltext.invert(flowers, EXAMPLE, DAHLIA_PROMPT, method="ddim", num_steps=10)
    trajectory, grid = pivot.trajectory, pivot.header.timesteps
    embeds = flowers.embed([DAHLIA_PROMPT])
    reached = {}
    for solver, steps in (("adam", 7), (name, {"secant": 4, "gauss-newton": 2}[name])):
        model = flowers.counted()
        task = StepTask.at(
            model,
            trajectory[-4][None],
            trajectory[-5][None],
            embeds,
            timestep=grid[3],
            num_steps=10,
            share=1 - flowers.guidance_scale,
            prompt_embeds=embeds,
        )
        config = NullText(solver=solver, inner_steps=steps)
        fit = solver_named(solver).begin().fit(task, flowers.embed([""]), config.inner_loop_at(3))
        reached[solver] = fit.best.losses.item(), model.passes.total
    (adam_loss, adam_cost), (loss, cost) = reached["adam"], reached[name]
    assert cost <= adam_cost
    assert loss < adam_loss


def test_a_list_of_photos_is_inverted_as_one_by_one(tiny_sd1, photo):
    photos, prompts = [photo, photo.rotate(90)], [PROMPT, "a cat"]
    options = {"num_steps": 2, "method": NullText(solver="secant", inner_steps=1)}
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

        def predict_noise(self, latents, timestep, embeds, rows=None):
            return tiny_sd1.predict_noise(latents, timestep, 0 * embeds)

    for name in sorted(SOLVERS):
        solution = solve(Deaf(), some_latents(), NullText(solver=name, inner_steps=2), steps=2)
        start = tiny_sd1.embed([""]).expand_as(solution.null_embeds)
        torch.testing.assert_close(solution.null_embeds, start, atol=0, rtol=0)
        assert torch.isfinite(solution.replayed).all()


def test_solver_options_that_make_no_sense_are_refused():
    with pytest.raises(OptionError, match="no solver 'newton'"):
        solver_named("newton")
    with pytest.raises(OptionError, match="cg_steps 0"):
        GaussNewton(cg_steps=0)
    with pytest.raises(OptionError, match="memory 0"):
        Secant(memory=0)

"""The grid and the steps, against diffusers' own DDIMScheduler and against closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from nulltext.diffusion.schedule import Schedule
from nulltext.errors import ModelError, OptionError

SD1 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SPACINGS = ("leading", "linspace", "trailing")


@pytest.mark.parametrize(
    ("spacing", "to_one", "offset", "steps"),
    list(itertools.product(SPACINGS, (False, True), (0, 1), (1, 2, 7, 30, 50, 999))),
)
def test_grid_and_step_equal_diffusers(spacing, to_one, offset, steps):
    config = SD1 | {
        "timestep_spacing": spacing,
        "set_alpha_to_one": to_one,
        "steps_offset": offset,
    }
    theirs, ours = DDIMScheduler(**config), Schedule.from_config(config)
    theirs.set_timesteps(steps)
    assert ours.timesteps(steps) == tuple(theirs.timesteps.tolist())
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=generator)
    for timestep in ours.timesteps(steps)[:: max(1, steps // 7)]:
        expected = theirs.step(noise, timestep, latents).prev_sample
        got = ours.step(latents, noise, noisier=timestep, cleaner=ours.cleaner(timestep, steps))
        # diffusers' coefficients are float32 products of up to 1000 factors
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_every_prediction_type_and_beta_schedule_equals_diffusers(prediction, betas):
    config = SD1 | {"prediction_type": prediction, "beta_schedule": betas}
    theirs, ours = DDIMScheduler(**config), Schedule.from_config(config)
    np.testing.assert_allclose(
        ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-9
    )  # float32 cumulative product on their side
    theirs.set_timesteps(10)
    generator = torch.Generator().manual_seed(1)
    latents, output = torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    for timestep in ours.timesteps(10)[1:]:
        expected = theirs.step(output, timestep, latents).prev_sample
        noise = ours.noise_from_output(output, latents, timestep)
        got = ours.step(latents, noise, noisier=timestep, cleaner=ours.cleaner(timestep, 10))
        # their alpha-bar is a float32 product, and x0 is divided by sqrt(1 - alpha-bar) here
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_zero_terminal_snr_equals_diffusers_under_v_prediction():
    config = SD1 | {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    theirs, ours = DDIMScheduler(**config), Schedule.from_config(config)
    theirs.set_timesteps(20)
    generator = torch.Generator().manual_seed(2)
    latents, output = torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    first = ours.timesteps(20)[0]
    assert first == 999
    noise = ours.noise_from_output(output, latents, first)
    got = ours.step(latents, noise, noisier=first, cleaner=ours.cleaner(first, 20))
    expected = theirs.step(output, first, latents).prev_sample
    # alpha-bar is 2^-24 here and 0 there: sqrt(2^-24) = 2.4e-4 bounds the difference
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_invert_step_equals_the_inverse_scheduler_of_diffusers():
    inverse = DDIMInverseScheduler(**{k: v for k, v in SD1.items() if k != "steps_offset"})
    ours = Schedule.from_config(SD1 | {"steps_offset": 0})
    generator = torch.Generator().manual_seed(3)
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    inverse.set_timesteps(50)
    # their step at timestep t moves from t - 20 to t, as ours from cleaner to noisier
    for timestep in (20, 400, 960):
        expected = inverse.step(noise, timestep, latents).prev_sample
        got = ours.invert_step(latents, noise, cleaner=timestep - 20, noisier=timestep)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 3, 50, 1000])
def test_inverting_undoes_stepping_under_the_same_noise(spacing, steps):
    schedule = Schedule.from_config(SD1 | {"timestep_spacing": spacing})
    generator = torch.Generator().manual_seed(4)
    start = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    noises = torch.randn(steps, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    latents = start
    grid = schedule.timesteps(steps)
    for timestep, noise in zip(reversed(grid), noises, strict=True):
        cleaner = schedule.cleaner(timestep, steps)
        latents = schedule.invert_step(latents, noise, cleaner=cleaner, noisier=timestep)
    for timestep, noise in zip(grid, noises.flip(0), strict=True):
        cleaner = schedule.cleaner(timestep, steps)
        latents = schedule.step(latents, noise, noisier=timestep, cleaner=cleaner)
    torch.testing.assert_close(latents, start, atol=1e-8, rtol=0)  # float64, up to 1000 steps


def test_a_step_keeps_noise_and_image_of_a_true_mixture():
    schedule = Schedule.from_config(SD1)
    image, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    mixed = {
        t: schedule.alpha_cumprod(t) ** 0.5 * image + (1 - schedule.alpha_cumprod(t)) ** 0.5 * noise
        for t in (901, 301)
    }
    got = schedule.step(mixed[901], noise, noisier=901, cleaner=301)
    torch.testing.assert_close(got, mixed[301], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        schedule.clean_estimate(mixed[301], noise, 301), image, atol=1e-5, rtol=1e-5
    )


def test_a_thousand_steps_stay_on_the_training_grid():
    grid = Schedule.from_config(SD1).timesteps(1000)
    assert grid == tuple(range(999, -1, -1))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_outside_the_training_grid_are_refused(steps):
    with pytest.raises(OptionError, match="from 1 to 1000"):
        Schedule.from_config(SD1).timesteps(steps)


@pytest.mark.parametrize(
    "broken",
    [
        {"beta_schedule": "sigmoid"},
        {"prediction_type": "flow"},
        {"timestep_spacing": "karras"},
        {"thresholding": True},
    ],
)
def test_unknown_schedules_are_refused_by_name(broken):
    with pytest.raises(ModelError, match=str(next(iter(broken)))[:8]):
        Schedule.from_config(SD1 | broken)


@pytest.mark.parametrize(
    "betas",
    [
        {"trained_betas": [0.99] * 200},  # alpha-bar 1e-400
        {"trained_betas": [1e-17, 1e-17]},  # 1 - 1e-17 is 1
        {"num_train_timesteps": 1, "rescale_betas_zero_snr": True},
    ],
)
def test_betas_without_a_range_of_noise_levels_are_refused(betas):
    with pytest.raises(ModelError, match="no range of noise levels"):
        Schedule.from_config(SD1 | betas)

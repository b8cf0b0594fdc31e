"""Grids and steps, against diffusers' schedulers and against closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler

from nulltext.diffusion.levels import Level, Step, affine, clean_estimate, noise_estimate
from nulltext.diffusion.schedule import DiscreteSchedule
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
    theirs, ours = DDIMScheduler(**config), DiscreteSchedule.from_config(config)
    theirs.set_timesteps(steps)
    assert ours.timesteps(steps) == tuple(theirs.timesteps.tolist())
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=generator)
    for step in ours.grid(steps)[:: max(1, steps // 7)]:
        expected = theirs.step(noise, step.noisier.fed, latents).prev_sample
        got = step.denoise(latents, noise)
        # diffusers' coefficients are float32 products of up to 1000 factors
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_every_prediction_type_and_beta_schedule_equals_diffusers(prediction, betas):
    config = SD1 | {"prediction_type": prediction, "beta_schedule": betas}
    theirs, ours = DDIMScheduler(**config), DiscreteSchedule.from_config(config)
    np.testing.assert_allclose(
        ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-9
    )  # float32 cumulative product on their side
    theirs.set_timesteps(10)
    generator = torch.Generator().manual_seed(1)
    latents, output = torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    for step in ours.grid(10)[1:]:
        expected = theirs.step(output, step.noisier.fed, latents).prev_sample
        got = step.denoise(latents, output)
        # their alpha-bar is a float32 product, and x0 is divided by sqrt(1 - alpha-bar) here
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_zero_terminal_snr_equals_diffusers_under_v_prediction():
    config = SD1 | {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    theirs, ours = DDIMScheduler(**config), DiscreteSchedule.from_config(config)
    theirs.set_timesteps(20)
    generator = torch.Generator().manual_seed(2)
    latents, output = torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    first = ours.grid(20)[0]
    assert first.noisier.fed == 999
    got = first.denoise(latents, output)
    expected = theirs.step(output, 999, latents).prev_sample
    # alpha-bar is 2^-24 here and 0 there: sqrt(2^-24) = 2.4e-4 bounds the difference
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_inversion_equals_the_inverse_scheduler_of_diffusers(prediction):
    config = SD1 | {"prediction_type": prediction}
    inverse = DDIMInverseScheduler(**{k: v for k, v in config.items() if k != "steps_offset"})
    inverse.alphas_cumprod = inverse.alphas_cumprod.double()
    ours = DiscreteSchedule.from_config(config | {"steps_offset": 0})
    generator = torch.Generator().manual_seed(3)
    latents, output = torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    inverse.set_timesteps(50)
    # their step at timestep t moves from t - 20 to t, as ours from cleaner to noisier
    for timestep in (20, 400, 960):
        (step,) = (step for step in ours.grid(50) if step.noisier.fed == timestep)
        expected = inverse.step(output, timestep, latents).prev_sample
        # their alpha-bar is a float32 product of up to 1000 factors
        torch.testing.assert_close(step.invert(latents, output), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_steps_equal_the_euler_scheduler_of_diffusers(shift):
    euler = FlowMatchEulerDiscreteScheduler(shift=shift)
    euler.set_timesteps(10)
    euler.sigmas = euler.sigmas.double()
    generator = torch.Generator().manual_seed(4)
    latents, output = torch.randn(2, 1, 16, 8, 8, generator=generator, dtype=torch.float64)
    levels = [Level(1.0 - sigma, sigma, 1000 * sigma) for sigma in euler.sigmas.tolist()]
    for timestep, noisier, cleaner in zip(euler.timesteps, levels, levels[1:], strict=False):
        assert noisier.fed == pytest.approx(float(timestep), rel=1e-6)
        step = Step(noisier, cleaner, "flow")
        expected = euler.step(output, timestep, latents).prev_sample
        landed = step.denoise(latents, output)
        # their step rounds its result to float32
        torch.testing.assert_close(landed, expected.double(), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(step.invert(landed, output), latents, atol=1e-12, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow", "sample"])
def test_every_prediction_of_a_true_mixture_leads_to_the_same_places(prediction):
    draw = torch.Generator().manual_seed(5)
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=draw, dtype=torch.float64)
    if prediction == "flow":
        noisier, cleaner = Level(0.3, 0.7, 700), Level(0.8, 0.2, 200)
    else:
        noisier, cleaner = Level(0.28, 0.96, 700), Level(0.8, 0.6, 200)
    mixed = noisier.add_noise(clean, noise)
    output = {
        "epsilon": noise,
        "v_prediction": noisier.alpha * noise - noisier.sigma * clean,
        "flow": noise - clean,
        "sample": clean,
    }[prediction]
    close = {"atol": 1e-12, "rtol": 0}  # float64
    step = Step(noisier, cleaner, prediction)
    torch.testing.assert_close(
        step.denoise(mixed, output), cleaner.add_noise(clean, noise), **close
    )
    torch.testing.assert_close(step.clean_estimate(mixed, output), clean, **close)
    torch.testing.assert_close(clean_estimate(prediction, noisier, mixed, output), clean, **close)
    torch.testing.assert_close(noise_estimate(prediction, noisier, mixed, output), noise, **close)


def test_v_and_flow_are_not_divided_at_noise_alone():
    noise, clean = Level(0.0, 1.0, 999), Level(1.0, 0.0, 0)
    assert affine("v_prediction", noise, clean) == (0.0, -1.0)
    assert affine("flow", noise, clean) == (1.0, -1.0)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 3, 50, 1000])
def test_inverting_undoes_stepping_under_the_same_noise(spacing, steps):
    schedule = DiscreteSchedule.from_config(SD1 | {"timestep_spacing": spacing})
    generator = torch.Generator().manual_seed(4)
    start = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    noises = torch.randn(steps, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    latents = start
    grid = schedule.grid(steps)
    for step, noise in zip(reversed(grid), noises, strict=True):
        latents = step.invert(latents, noise)
    for step, noise in zip(grid, noises.flip(0), strict=True):
        latents = step.denoise(latents, noise)
    torch.testing.assert_close(latents, start, atol=1e-8, rtol=0)  # float64, up to 1000 steps


def test_a_thousand_steps_stay_on_the_training_grid():
    grid = DiscreteSchedule.from_config(SD1).timesteps(1000)
    assert grid == tuple(range(999, -1, -1))


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5])
def test_steps_outside_the_training_grid_are_refused(steps):
    with pytest.raises(OptionError, match="from 1 to 1000"):
        DiscreteSchedule.from_config(SD1).grid(steps)


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
        DiscreteSchedule.from_config(SD1 | broken)


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
        DiscreteSchedule.from_config(SD1 | betas)

"""The levels of rectified-flow checkpoints, against the scheduler of the stock pipelines."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from nulltext.diffusion.flow_schedule import FlowSchedule
from nulltext.errors import ModelError, OptionError

SHIFTS = [
    {"shift": 1.0},
    {"shift": 3.0},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.6},
    {"shift": 3.0, "shift_terminal": 0.02},
    {"use_dynamic_shifting": True, "max_shift": 0.9, "shift_terminal": 0.1},
]
SPACINGS = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
]
STARTS = ["range", "linspace"]
TOKENS = 1024


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("config", [a | b for a, b in itertools.product(SHIFTS, SPACINGS)], ids=str)
def test_levels_are_those_of_the_stock_pipelines(config, start):
    theirs = FlowMatchEulerDiscreteScheduler(**config)
    ours = FlowSchedule.from_config(dict(theirs.config), start)
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(TOKENS, *(theirs.config[key] for key in keys))
    for steps in (2, 7, 28):
        sigmas = None if start == "range" else np.linspace(1.0, 1 / steps, steps)
        theirs.set_timesteps(
            steps, sigmas=sigmas, mu=mu if config.get("use_dynamic_shifting") else None
        )
        grid = ours.grid(steps, TOKENS)
        assert [step.noisier.sigma for step in grid] == theirs.sigmas[:-1].tolist()
        assert [step.noisier.fed for step in grid] == theirs.timesteps.tolist()
        assert grid[-1].cleaner.sigma == 0.0
        for step, later in itertools.pairwise(grid):
            assert step.cleaner == later.noisier
            assert step.noisier.alpha == 1.0 - step.noisier.sigma


def test_a_step_is_the_scheduler_s():
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    grid = FlowSchedule.from_config(dict(theirs.config)).grid(5)
    theirs.set_timesteps(5)
    latents = ours = torch.randn(1, 16, 4, 4)
    for step, timestep in zip(grid, theirs.timesteps, strict=True):
        output = torch.randn(latents.shape)
        latents = theirs.step(output, timestep, latents).prev_sample
        ours = step.denoise(ours, output)
    torch.testing.assert_close(ours, latents)


def test_clean_and_noise_estimates_solve_the_flow():
    step = FlowSchedule.from_config({"shift": 3.0}).grid(6)[2]
    clean, noise = torch.randn(2, 1, 16, 4, 4, dtype=torch.float64)
    noisy = step.noisier.add_noise(clean, noise)
    torch.testing.assert_close(step.clean_estimate(noisy, noise - clean), clean)
    torch.testing.assert_close(step.invert(step.denoise(noisy, clean), clean), noisy)


def test_equal_signal_to_noise_is_found():
    schedule = FlowSchedule.from_config({})
    for alpha_cumprod in (0.1, 0.5, 0.99):
        level = schedule.nearest_level(alpha_cumprod)
        share = level.alpha**2 / (level.alpha**2 + level.sigma**2)
        assert share == pytest.approx(alpha_cumprod)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
        ({"invert_sigmas": True}, "invert_sigmas"),
        ({"stochastic_sampling": True}, "stochastic_sampling"),
        ({"time_shift_type": "cubic"}, "cubic"),
        ({"shift": "three"}, "shift"),
        ({"shift": 0.0}, "shift"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ({"base_image_seq_len": 4096}, "base_image_seq_len"),
        ({"base_shift": float("nan")}, "base_shift"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "several spacings"),
    ],
)
def test_a_wrong_config_is_one_sentence(config, said):
    with pytest.raises(ModelError, match=said):
        FlowSchedule.from_config(config)


def test_what_a_config_leaves_empty_has_its_default():
    empty = dict.fromkeys(("base_shift", "max_shift", "shift_terminal", "time_shift_type"))
    assert FlowSchedule.from_config({"shift": 3.0, **empty}) == FlowSchedule.from_config(
        {"shift": 3.0}
    )


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5])
def test_a_number_of_steps_that_there_is_not_is_refused(steps):
    with pytest.raises(OptionError, match="number of steps"):
        FlowSchedule.from_config({}).grid(steps)


def test_too_few_steps_for_a_spacing_are_refused():
    with pytest.raises(OptionError, match="another number of --steps"):
        FlowSchedule.from_config({"shift_terminal": 0.1}).grid(1)

"""Solvers of the flow's ODE: their order, and their formulae, on an ODE with a closed form."""

from __future__ import annotations

import math

import pytest
import torch

from nulltext.diffusion.levels import Level
from nulltext.diffusion.loops import run
from nulltext.diffusion.solvers import (
    Solved,
    between,
    levels_of,
    midpoint,
    predicted,
    reused,
    solve_steps,
)

START = torch.tensor([[[[1.0, 0.4]]]], dtype=torch.float64)


def level(sigma):
    return Level(1.0 - sigma, sigma, 1000.0 * sigma)


def velocity(z, at):
    """dz / ds = 2 (s + 1) z^2 / 5, so that 1 / z(s) = 1 / z(0) - (s^2 + 2 s) / 5."""
    return 0.4 * (at.sigma + 1) * z**2


def euler(v, z, a, b, _):
    return Solved(z + (b.sigma - a.sigma) * v(z, a), z)


def error(solver, steps, turned=False):
    levels = [level(i / steps) for i in range(steps + 1)]
    end = 1 / (1 / START - 0.6)
    first, last = (end, START) if turned else (START, end)
    walk = solve_steps(solver, velocity, first, levels[::-1] if turned else levels, stage="pivot")
    return float((run(walk)[-1] - last).abs().max())


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("solver", "order"), [(euler, 1), (predicted, 1), (midpoint, 2), (reused, 2)]
)
def test_solvers_have_their_order(solver, order, turned):
    slope = math.log2(error(solver, 100, turned) / error(solver, 200, turned))
    assert slope == pytest.approx(order, abs=0.15)  # asymptotic in the step


def test_the_published_steps_are_these():
    """RF-Solver's Taylor step with its difference quotient, and FireFlow's with reuse."""
    a, b = level(0.2), level(0.3)
    h, middle = 0.1, level(0.25)
    v = velocity(START, a)
    v_m = velocity(START + h / 2 * v, middle)
    taylor = START + h * v + 0.5 * h**2 * (v_m - v) / (h / 2)
    torch.testing.assert_close(midpoint(velocity, START, a, b).latents, taylor)
    before = torch.full_like(START, 0.7)
    step = reused(velocity, START, a, b, before)
    torch.testing.assert_close(step.velocity, velocity(START + h / 2 * before, middle))
    torch.testing.assert_close(step.latents, START + h * step.velocity)
    step = predicted(velocity, START, a, b, before)
    torch.testing.assert_close(step.velocity, velocity(START + h * before, b))
    assert between(a, b).fed == pytest.approx(250)


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (predicted, 2)])
def test_what_eulers_steps_back_miss_is_of_one_order_more_for_uni_inv(solver, order):
    def missed(steps):
        levels = [level(i / steps) for i in range(steps + 1)]
        up = run(solve_steps(solver, velocity, START, levels, stage="pivot"))
        down = run(solve_steps(euler, velocity, up[-1], levels[::-1], stage="replay"))
        return float((down[-1] - START).abs().max())

    assert math.log2(missed(100) / missed(200)) == pytest.approx(order, abs=0.15)


def test_levels_of_a_grid_are_its_ends_in_order(tiny_sd3):
    levels = levels_of(tiny_sd3.grid(5))
    sigmas = [one.sigma for one in levels]
    assert sigmas == sorted(sigmas)
    assert (sigmas[0], sigmas[-1], len(sigmas)) == (0.0, 1.0, 6)

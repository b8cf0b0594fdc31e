"""Inversion on rectified-flow models: every method works there or says why not."""

from __future__ import annotations

import pytest
import torch

import nulltext
from nulltext.diffusion.guidance import guided_output
from nulltext.diffusion.levels import Level
from nulltext.diffusion.loops import run
from nulltext.errors import NulltextError, OptionError
from nulltext.inversion import FireFlow, RFInversion, RFSolver, UniInv, round_trip
from nulltext.inversion.budgets import planned, usual_steps
from nulltext.inversion.registry import METHODS, method_named
from nulltext.inversion.replay import Replaying, replay_steps
from support.tiny_flow import tiny_flow_pipeline

PROMPT = "a cat on a sofa"
STEPS = 3
OF_NULL_BRANCH = {name for name, method in METHODS.items() if getattr(method, "mixes", False)}
EXACT = {"fixed-point", "direct", "rf-inversion", "rf-solver", "fireflow"}
NEW = ["rf-inversion", "rf-solver", "fireflow", "uni-inv", "encode"]


def quick(name):
    method = method_named(name)
    return type(method)(inner_steps=1) if hasattr(method, "inner_steps") else method


def walked(model, photo, method, num_steps=STEPS, **options):
    return nulltext.invert(model, photo, PROMPT, method=method, num_steps=num_steps, **options)


ALL = sorted(set(METHODS) - {"encode"})
FEW = ["fixed-point", "null-text", "rf-inversion", "rf-solver", "fireflow", "uni-inv"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, name) for kind in ("sd3", "flux-dev") for name in ALL),
        *((kind, name) for kind in ("sd35", "flux-schnell") for name in FEW),
    ],
)
def test_every_method_inverts_and_replays_or_says_what_is_missing(tiny_flows, photo, kind, name):
    tiny_flow = tiny_flows[kind]
    if name in OF_NULL_BRANCH and tiny_flow.guidance != "branches":
        with pytest.raises(OptionError, match="no null branch; pass --true-cfg"):
            walked(tiny_flow, photo, quick(name))
        return
    inversion = walked(tiny_flow, photo, quick(name))
    replay = nulltext.replay(tiny_flow, inversion)
    assert replay.psnr == pytest.approx(inversion.header.psnr_reconstruction, abs=1e-2)
    if name in EXACT:
        assert replay.psnr == pytest.approx(inversion.header.psnr_bound, abs=1e-2)


@pytest.mark.parametrize("name", [*NEW, "null-text"])
def test_they_are_refused_elsewhere_by_name(tiny_sd1, photo, name):
    if name == "null-text":
        name, method = "pivot midpoint", nulltext.inversion.NullText(pivot="midpoint")
    else:
        method = name
    with pytest.raises(OptionError, match=f"{name} follows the ODE of a rectified-flow model"):
        walked(tiny_sd1, photo, method)


def velocities(model):
    embeds = model.embed([PROMPT])
    return lambda z, s: model.predict(z, Level(1 - s, s, 1000 * s), embeds)


def sigmas(model):
    grid = model.grid(STEPS, (32, 32))
    return [0.0, *(step.noisier.sigma for step in reversed(grid))]


def test_solvers_walk_as_they_were_published(tiny_flow, photo):
    v, s = velocities(tiny_flow), sigmas(tiny_flow)
    of = {kind: walked(tiny_flow, photo, kind()) for kind in (RFSolver, FireFlow, UniInv)}
    z0 = of[RFSolver].trajectory[:1]
    z = {RFSolver: z0, FireFlow: z0, UniInv: z0}
    reused = last = v(z0, 0.0)
    for i in range(STEPS):
        h, middle = s[i + 1] - s[i], (s[i + 1] + s[i]) / 2
        z[RFSolver] = z[RFSolver] + h * v(z[RFSolver] + h / 2 * v(z[RFSolver], s[i]), middle)
        reused = v(z[FireFlow] + h / 2 * reused, middle)
        z[FireFlow] = z[FireFlow] + h * reused
        last = v(z[UniInv] + h * last, s[i + 1])
        z[UniInv] = z[UniInv] + h * last
        for kind, inversion in of.items():  # float32, a few steps
            torch.testing.assert_close(inversion.trajectory[i + 1], z[kind][0], atol=1e-4, rtol=0)
    evaluations = {kind: inversion.header.unet_evaluations for kind, inversion in of.items()}
    steps = 2 * STEPS if tiny_flow.guidance == "branches" else STEPS  # corrections, or the replay
    assert evaluations == {
        RFSolver: 2 * STEPS + steps,
        FireFlow: STEPS + 1 + steps,
        UniInv: STEPS + 1 + STEPS,  # its replay is unguided, as published
    }


@pytest.mark.parametrize("kind", [RFSolver, FireFlow])
def test_a_round_trip_is_by_the_solver_alone(tiny_sd3, photo, kind):
    """The replay is exact by construction; the round trip is not, and gets better with steps."""
    few, many = (walked(tiny_sd3, photo, kind(), num_steps=n) for n in (2, 30))
    bound = tiny_sd3.decode(few.trajectory[:1])
    missed = [float((round_trip(tiny_sd3, one).image - bound).abs().mean()) for one in (few, many)]
    assert 0 < missed[1] < 0.2 * missed[0]
    with pytest.raises(OptionError, match="ddim has no solver"):
        round_trip(tiny_sd3, walked(tiny_sd3, photo, "ddim"))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_rf_inversion_follows_its_controller(tiny_sd3, photo, gamma):
    inversion = walked(tiny_sd3, photo, RFInversion(gamma=gamma), seed=3)
    z = inversion.trajectory[:1]
    y = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    empty, s = tiny_sd3.embed([""]), sigmas(tiny_sd3)
    for i in range(STEPS):
        u = tiny_sd3.predict(z, Level(1 - s[i], s[i], 1000 * s[i]), empty)
        z = z + (s[i + 1] - s[i]) * (u + gamma * ((y - z) / (1 - s[i]) - u))
        torch.testing.assert_close(inversion.trajectory[i + 1], z[0], atol=1e-4, rtol=0)
    if gamma == 1:
        torch.testing.assert_close(inversion.trajectory[-1], y[0], atol=1e-5, rtol=0)


def test_rf_inversion_on_the_published_grid(tiny_sd3, photo):
    inversion = walked(tiny_sd3, photo, RFInversion(grid="published"), seed=3)
    z = z0 = inversion.trajectory[:1]
    y = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    empty, down = tiny_sd3.embed([""]), sigmas(tiny_sd3)[::-1]
    for i in range(STEPS):
        t = i / (STEPS + 1)
        u = tiny_sd3.predict(z, Level(1 - t, t, 1000 * t), empty)
        z = z + (u + 0.5 * ((y - z) / (1 - t) - u)) * (down[i] - down[i + 1])
    torch.testing.assert_close(inversion.trajectory[-1:], z, atol=1e-4, rtol=0)
    for row, s in zip(inversion.trajectory, down[::-1], strict=True):
        torch.testing.assert_close(row[None], (1 - s) * z0 + s * z, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{"gamma": 1.5}, {"gamma": float("nan")}, {"grid": "other"}])
def test_rf_inversion_refuses_what_means_nothing(options):
    with pytest.raises(OptionError, match=r"from 0 to 1|choose 'model' or 'published'"):
        RFInversion(**options)


def test_encoding_alone_asks_the_network_nothing_and_cannot_be_replayed(tiny_flow, photo, tmp_path):
    inversion = walked(tiny_flow, photo, "encode")
    assert inversion.header.unet_evaluations == 0
    assert inversion.trajectory.shape[0] == 1
    assert inversion.header.psnr_reconstruction == inversion.header.psnr_bound
    inversion.save(tmp_path / "e.safetensors")
    again = nulltext.Inversion.load(tmp_path / "e.safetensors")
    assert torch.equal(again.trajectory, inversion.trajectory)
    for use in (nulltext.replay, lambda model, one: nulltext.edit(model, one, "a dog on a sofa")):
        with pytest.raises(NulltextError, match="holds the encoded photo and no noise"):
            use(tiny_flow, again)


def test_the_midpoint_pivot_is_rf_solvers_trajectory(tiny_sd3, photo):
    plain = walked(tiny_sd3, photo, RFSolver())
    for method in (nulltext.inversion.Direct, nulltext.inversion.NegativePrompt):
        pivot = walked(tiny_sd3, photo, method(pivot="midpoint"))
        torch.testing.assert_close(pivot.trajectory, plain.trajectory, atol=1e-5, rtol=0)


def test_methods_have_the_steps_that_they_were_published_with():
    steps = {"rf-inversion": 28, "rf-solver": 25, "fireflow": 8, "uni-inv": 15, "encode": 50}
    assert {name: usual_steps(name) for name in steps} == steps
    assert planned("ddim").num_steps == 50


@pytest.fixture(scope="module")
def exact_sd3():
    """Stable Diffusion 3 in miniature, in float64."""
    return nulltext.load(tiny_flow_pipeline("sd3").to(torch.float64))


def test_null_text_gradients_are_those_of_finite_differences(exact_sd3):
    """d/d∅ of || z*_{t-1} - denoise(z_t, guided) ||^2 on the velocity, in float64."""
    model, step, w = exact_sd3, exact_sd3.grid(4)[1], 3.0
    draw = torch.Generator().manual_seed(0)
    z, target, direction = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in (
            (1, *model.latents_shape),
            (1, *model.latents_shape),
            (1, *model.embeds_shape),
        )
    )
    prompt = model.embed([PROMPT])

    def loss(null):
        output = guided_output(
            model, z, step.noisier, null_embeds=null, prompt_embeds=prompt, guidance_scale=w
        )
        return (target - step.denoise(z, output)).square().mean()

    null = model.embed([""]).clone().requires_grad_(True)
    with model.frozen():
        (slope,) = torch.autograd.grad(loss(null), null)
    with torch.no_grad():
        h = 1e-5
        difference = (loss(null + h * direction) - loss(null - h * direction)) / (2 * h)
    # central differences: h^2 of the third derivative
    assert float((slope * direction).sum()) == pytest.approx(float(difference), rel=1e-5)


def test_the_closed_form_of_the_null_branch_lands_on_the_pivot(exact_sd3, photo):
    """v_∅* = [(z*_{t-1} - z_t) / (s_{t-1} - s_t) - w v_C] / (1 - w), under guidance w."""
    model, w = exact_sd3, 4.0
    replaying = Replaying.of(model, walked(model, photo, "ddim", guidance_scale=w))
    for index, step in enumerate(replaying.grid):
        z = replaying.start + 0.1 * index
        target = replaying.cleaner(index)
        v_c = model.predict(z, step.noisier, model.embed([PROMPT])).detach()
        ds = step.cleaner.sigma - step.noisier.sigma
        v_null = ((target - z) / ds - w * v_c) / (1 - w)
        landed = step.denoise(z, v_null + w * (v_c - v_null))
        torch.testing.assert_close(landed, target, atol=1e-12, rtol=0)  # float64


def test_null_text_comes_nearer_to_the_pivot_on_a_flow(tiny_sd3, photo):
    plain = walked(tiny_sd3, photo, "ddim", guidance_scale=3.0)
    fitted = walked(tiny_sd3, photo, "null-text", guidance_scale=3.0)

    def missed(inversion):
        return float((run(replay_steps(tiny_sd3, inversion)) - inversion.trajectory[:1]).norm())

    assert missed(fitted) < 0.9 * missed(plain)

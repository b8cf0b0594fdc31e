"""The fixed-point pivot: an exact replay, whatever the network predicts and however it behaves."""

from __future__ import annotations

import copy
from dataclasses import asdict, fields, replace

import pytest
import torch

import nulltext
from nulltext.diffusion import run
from nulltext.diffusion.fixed_point import fixed_point_steps
from nulltext.diffusion.levels import Level, Step, affine
from nulltext.diffusion.schedule import DiscreteSchedule
from nulltext.errors import NumericalError, OptionError
from nulltext.inversion.fixed_point import FixedPoint
from nulltext.inversion.registry import METHODS, method_named, with_options
from support.counting import unet_passes
from support.examples import DAHLIA_PROMPT, EXAMPLE

PROMPT = "a photo of a white cat"
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def in_double(model):
    return replace(model, network=copy.deepcopy(model.network).double())


def scaled(model, factor):
    """The same model with its output made larger, so that the iteration's map expands."""
    unet = copy.deepcopy(model.unet)
    with torch.no_grad():
        unet.conv_out.weight *= factor
        unet.conv_out.bias *= factor
    return replace(model, network=unet)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def replayed(model, found, embeds, grid, *, corrected=False):
    """z_T brought back at w = 1, with or without the remainders."""
    latents = found.trajectory[-1]
    for index, step in enumerate(grid):
        latents = step.denoise(latents, model.predict(latents, step.noisier, embeds))
        if corrected:
            latents = latents + found.remainders[index]
    return latents


class Turning:
    """A network in closed form, o = M z + c with M a rotation: with a fixed point at any step."""

    def __init__(self, size, angle=1.0):
        c, s = torch.cos(torch.tensor(angle)).double(), torch.sin(torch.tensor(angle)).double()
        self.matrix = size * torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
        self.shift = torch.tensor([0.3, -0.2], dtype=torch.float64).view(1, 2, 1, 1)
        self.rows = []

    def predict(self, latents, level, embeds, rows=None):
        self.rows.append(len(latents))
        return torch.einsum("ij,bjhw->bihw", self.matrix, latents) + self.shift


def grid_of(prediction, levels):
    """Steps over (alpha, sigma) pairs, noisiest first."""
    made = [Level(alpha, sigma, i) for i, (alpha, sigma) in enumerate(levels)]
    pairs = zip(made[1:], made[:-1], strict=True)
    return tuple(Step(noisier, cleaner, prediction) for noisier, cleaner in pairs)[::-1]


def variance_preserving(*alphas):
    return [(alpha, (1 - alpha**2) ** 0.5) for alpha in alphas]


GRIDS = {
    "epsilon": grid_of("epsilon", variance_preserving(1.0, 0.97, 0.9, 0.75, 0.5)),
    "v_prediction": grid_of("v_prediction", variance_preserving(1.0, 0.9, 0.6, 0.2, 0.0)),
    "sample": grid_of("sample", variance_preserving(1.0, 0.97, 0.9, 0.75, 0.5)),
    "flow": grid_of("flow", [(1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0)]),
}


@pytest.mark.parametrize("prediction", GRIDS)
def test_each_point_solves_the_step_in_closed_form(prediction):
    """(a + b M) z = z_{t-1} - b c, solved directly."""
    model, grid = Turning(0.3), GRIDS[prediction]
    latents = noise(2, 2, 3, 3, dtype=torch.float64)
    found = run(
        fixed_point_steps(
            model, latents, torch.zeros(2, 1, 1), grid, tolerance=1e-14, most_evaluations=200
        )
    )
    for index, step in enumerate(grid):
        a, b = affine(prediction, step.noisier, step.cleaner)
        below, z = found.trajectory[len(grid) - index - 1], found.trajectory[len(grid) - index]
        matrix = a * torch.eye(2, dtype=torch.float64) + b * model.matrix
        if prediction == "sample" and step.cleaner.sigma == 0:
            # the last step lands on the output itself, which no latents near may give
            assert found.converged[index].all() or not found.converged[index].any()
            continue
        flat = (below - b * model.shift).movedim(1, 0).reshape(2, -1)
        solved = torch.linalg.solve(matrix, flat).reshape(2, 2, 3, 3).movedim(0, 1)
        torch.testing.assert_close(z, solved, atol=1e-12, rtol=1e-12)  # float64
    back = replayed(model, found, None, grid, corrected=True)
    torch.testing.assert_close(back, latents, atol=1e-12, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_replay_is_exact_in_double_precision(request, family, prediction):
    model = in_double(request.getfixturevalue(f"tiny_{family}"))
    schedule = DiscreteSchedule.from_config(SD | {"prediction_type": prediction, "steps_offset": 1})
    model = replace(model, schedule=schedule)
    embeds = model.embed([PROMPT]).double()
    latents, grid = noise(1, 4, 8, 8, dtype=torch.float64), schedule.grid(20)
    found = run(
        fixed_point_steps(model, latents, embeds, grid, tolerance=1e-13, most_evaluations=100)
    )
    assert found.converged.all()
    with torch.no_grad():
        back = replayed(model, found, embeds, grid)
    torch.testing.assert_close(back, latents, atol=1e-10, rtol=0)  # no remainder is added


def test_a_zero_snr_grid_is_walked(tiny_sd2):
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    schedule = DiscreteSchedule.from_config(SD | config | {"prediction_type": "v_prediction"})
    model = replace(in_double(tiny_sd2), schedule=schedule)
    latents, embeds = noise(1, 4, 8, 8, dtype=torch.float64), model.embed([PROMPT]).double()
    grid = schedule.grid(8)
    found = run(fixed_point_steps(model, latents, embeds, grid, most_evaluations=30))
    assert found.trajectory.isfinite().all()
    with torch.no_grad():
        back = replayed(model, found, embeds, grid, corrected=True)
    torch.testing.assert_close(back, latents, atol=1e-10, rtol=0)


def test_a_guess_that_is_good_enough_costs_one_evaluation(tiny_sd1):
    model = tiny_sd1.counted()
    latents, embeds, grid = noise(1, 4, 8, 8), model.embed([PROMPT]), model.schedule.grid(6)
    found = run(fixed_point_steps(model, latents, embeds, grid, tolerance=1e9))
    assert model.passes.total == 6 + 1  # DDIM's guess at the first level
    assert found.converged.all()
    # the guess of the third step on: noise extrapolated over two levels
    noises = [
        model.predict_noise(found.trajectory[i], grid[-i].noisier, embeds).detach() for i in (1, 2)
    ]
    step = grid[-3]
    expected = affine("epsilon", step.cleaner, step.noisier)(
        found.trajectory[2], 2 * noises[1] - noises[0]
    )
    torch.testing.assert_close(found.trajectory[3], expected, atol=1e-5, rtol=1e-5)  # float32


def test_a_map_that_expands_is_solved_where_mixing_can():
    """Plain iteration moves away by b |M| / a > 1 per round; the mixture still converges."""
    (step,) = grid_of("epsilon", variance_preserving(0.9, 0.3))
    a, b = affine("epsilon", step.noisier, step.cleaner)
    model = Turning(1.0, angle=torch.pi)  # o = -z + c
    model.matrix = model.matrix * 1.5
    assert abs(b / a) * 1.5 > 1
    latents = noise(3, 2, 4, 4, dtype=torch.float64)
    steps = fixed_point_steps(
        model, latents, torch.zeros(3, 1, 1), [step], tolerance=1e-10, most_evaluations=10
    )
    found = run(steps)
    assert found.converged.all()
    back = replayed(model, found, None, [step])
    torch.testing.assert_close(back, latents, atol=1e-8, rtol=0)


@pytest.mark.parametrize("factor", [3.0, 30.0, 1e4])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_an_iteration_that_diverges_ends_finite_and_replays_exactly(request, photo, family, factor):
    model = scaled(request.getfixturevalue(f"tiny_{family}"), factor)
    made = nulltext.invert(model, photo, PROMPT, num_steps=6)
    assert all(bool(tensor.isfinite().all()) for tensor in made.tensors().values())
    if factor > 3:
        assert made.header.unconverged > 0
    scale = float(made.trajectory.abs().max())
    latents = run(nulltext.inversion.replay_steps(model, made))
    torch.testing.assert_close(latents, made.trajectory[:1], atol=1e-4 * scale, rtol=0)  # float32
    assert made.header.psnr_reconstruction == pytest.approx(made.header.psnr_bound, abs=1e-2)


def test_the_best_point_is_kept(tiny_sd1):
    """More evaluations never leave a larger remainder at the first step."""
    model = scaled(tiny_sd1, 30.0)
    latents, embeds = noise(2, 4, 8, 8), model.embed([PROMPT, "a dog"])
    grid = model.schedule.grid(6)
    sizes = []
    for most in range(1, 8):
        steps = fixed_point_steps(
            model, latents, embeds, grid, tolerance=0.0, most_evaluations=most
        )
        sizes.append(next(steps).loss)
        steps.close()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


def test_an_output_that_is_no_number_is_named(tiny_sd1, photo):
    model = scaled(tiny_sd1, float("nan"))
    with pytest.raises(NumericalError, match=r"timestep \d+; .*float32"):
        nulltext.invert(model, photo, PROMPT, num_steps=3)


def test_photos_side_by_side_equal_one_by_one_and_stop_alone(tiny_sd2, photo):
    photos = [photo, photo.rotate(90), photo.resize((8, 8)).resize((48, 40))]
    prompts = [PROMPT, "a dog on a sofa", ""]
    method = FixedPoint(tolerance=2e-2)
    with unet_passes() as seen:
        many = nulltext.invert_many(tiny_sd2, photos, prompts, method=method, num_steps=20)
    spent = [one.header.unet_evaluations for one in many]
    assert sum(spent) == seen.total
    assert len(set(seen.forward)) == 3, "photos that are done wait for the others"
    for one, picture, prompt in zip(many, photos, prompts, strict=True):
        alone = nulltext.invert(tiny_sd2, picture, prompt, method=method, num_steps=20)
        # float32 sums in other orders, along a walk that a random network makes longer
        torch.testing.assert_close(one.trajectory, alone.trajectory, atol=1e-3, rtol=0)
        assert one.header.unet_evaluations == alone.header.unet_evaluations


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5, 20.0])
def test_the_guided_replay_is_exact_at_any_scale(tiny, photo, guidance):
    made = nulltext.invert(tiny, photo, PROMPT, num_steps=5, guidance_scale=guidance)
    with unet_passes() as seen:
        latents = run(nulltext.inversion.replay_steps(tiny, made))
    assert seen.total == 5  # one branch, as both have the same embedding
    torch.testing.assert_close(latents, made.trajectory[:1], atol=1e-4, rtol=0)  # float32
    assert torch.equal(made.null_embeds, made.prompt_embeds)


def test_an_edit_costs_three_evaluations_a_step(tiny, photo):
    made = nulltext.invert(tiny, photo, PROMPT, num_steps=4)
    edit = nulltext.edit(tiny, made, "a photo of a red cat")
    assert edit.unet_evaluations == 3 * 4
    assert edit.psnr_reconstruction == pytest.approx(made.header.psnr_bound, abs=1e-2)


def test_both_branches_give_what_one_gives(tiny, photo):
    """The source's one branch is the guided output that both would give."""
    made = nulltext.invert(tiny, photo, PROMPT, num_steps=4)
    moved = replace(made, null_embeds=made.null_embeds * (1 + 1e-7))
    one, both = (nulltext.edit(tiny, each, "a photo of a red cat") for each in (made, moved))
    assert both.unet_evaluations == 4 * 4
    torch.testing.assert_close(one.images, both.images, atol=2e-3, rtol=0)  # w (o_C - o_∅) rounds


@pytest.mark.parametrize("prompt", [DAHLIA_PROMPT, "", "a photo of a red bus"])
def test_the_bundled_model_replays_to_the_bound_for_little(flowers, prompt):
    made = nulltext.invert(flowers, EXAMPLE, prompt, num_steps=12, guidance_scale=7.5)
    header = made.header
    assert header.psnr_reconstruction == pytest.approx(header.psnr_bound, abs=1e-6)
    assert nulltext.replay(flowers, made).psnr == pytest.approx(header.psnr_bound, abs=1e-2)
    assert header.unet_evaluations <= 60
    bare = nulltext.replay(flowers, replace(made, corrections=None))
    assert bare.psnr > header.psnr_bound - 0.2  # the pivot itself, without what is added
    ddim = nulltext.invert(flowers, EXAMPLE, prompt, method="negative-prompt", num_steps=12)
    assert ddim.header.psnr_reconstruction < bare.psnr - 0.5


PIVOTAL = ["null-text", "direct", "negative-prompt", "global-null", "textual-pivot", "model-tuning"]


@pytest.mark.parametrize("name", PIVOTAL)
def test_pivotal_methods_work_around_either_pivot(tiny_sd1, photo, name):
    made = {}
    for pivot in ("ddim", "fixed-point"):
        method = method_named(name)
        if method.differentiates:
            method = with_options(method, inner_steps=1)
        method = with_options(method, pivot=pivot)
        made[pivot] = nulltext.invert(tiny_sd1, photo, PROMPT, method=method, num_steps=4)
        assert made[pivot].header.method_config["pivot"] == pivot
    assert not torch.equal(made["ddim"].trajectory, made["fixed-point"].trajectory)
    exact = nulltext.invert(tiny_sd1, photo, PROMPT, num_steps=4)
    torch.testing.assert_close(made["fixed-point"].trajectory, exact.trajectory)


def test_every_method_with_a_pivot_takes_its_name_and_no_other():
    for name in METHODS:
        if "pivot" in {field.name for field in fields(METHODS[name])}:
            with pytest.raises(OptionError, match="'ddim', 'fixed-point' or 'midpoint'"):
                with_options(method_named(name), pivot="wild")


def test_negative_prompt_around_the_exact_pivot_is_nearly_exact(flowers):
    gaps = {}
    for pivot in ("ddim", "fixed-point"):
        method = nulltext.inversion.NegativePrompt(pivot=pivot)
        header = nulltext.invert(
            flowers, EXAMPLE, DAHLIA_PROMPT, method=method, num_steps=12
        ).header
        gaps[pivot] = header.psnr_bound - header.psnr_reconstruction
    assert abs(gaps["fixed-point"]) < 0.2 < 0.5 < gaps["ddim"]


@pytest.mark.parametrize("options", [{"tolerance": -1.0}, {"most_evaluations": 0}])
def test_options_are_checked(options):
    with pytest.raises(OptionError, match="are usual"):
        FixedPoint(**options)


def test_the_header_tells_how_it_was_made(dahlia_inversion, flowers, tmp_path):
    header = dahlia_inversion.header
    assert (header.model, header.fingerprint) == ("flowers", flowers.fingerprint)
    assert header.method == "fixed-point"
    assert header.method_config == asdict(FixedPoint())
    assert (header.image_size, header.crop) == ([640, 427], [106, 0, 427, 427])
    assert dahlia_inversion.null_embeds.shape == (1, 32, 192)
    assert dahlia_inversion.corrections.shape == (10, 16, 16, 16)
    dahlia_inversion.save(tmp_path / "d.safetensors")
    loaded = nulltext.Inversion.load(tmp_path / "d.safetensors")
    assert loaded.header.unconverged == header.unconverged
    assert nulltext.replay(flowers, loaded).psnr == pytest.approx(
        header.psnr_reconstruction, abs=1e-3
    )

"""Steps that are the identity: every grid, method, solver and editor passes through them.

They come with the schedulers that people have: see `nulltext.diffusion.schedule`.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
)
from PIL import Image

import nulltext
from nulltext.diffusion.levels import affine
from nulltext.diffusion.schedule import DiscreteSchedule
from nulltext.editing.editors import EDITORS
from nulltext.inversion.base import Problem
from nulltext.inversion.registry import method_named
from nulltext.inversion.replay import Replaying, exact_source_step, source_step
from support.counting import unet_passes
from support.methods import GENERAL_EDITORS, GENERAL_METHODS

PROMPT = "a photo of a white daisy"
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NOTEBOOK = {"steps_offset": 0, "set_alpha_to_one": False}
GRIDS = (
    ("leading", 0, False),
    ("leading", 1, False),
    ("linspace", 1, False),
    ("linspace", 1, True),
    ("trailing", 1, False),
)
"""Spacing, `steps_offset` (which only the leading grid reads), `set_alpha_to_one` (by which the
last level is one of its own, whatever the spacing)."""
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
EDGES = {
    "one step": ({"timestep_spacing": "linspace", **NOTEBOOK}, 1, [0]),
    "one step from noise alone": (ZERO_SNR, 1, []),
    "noise alone": (ZERO_SNR | NOTEBOOK, 2, []),
    "all training steps": ({"num_train_timesteps": 3, **NOTEBOOK, "steps_offset": 1}, 3, [2]),
    "noise alone twice": (ZERO_SNR | {"trained_betas": [0.5, 1 - 1e-7, 0.5]}, 3, [0]),
}
"""Scheduler config, number of steps, indices of the steps that are the identity."""


def on_grid(model, **config):
    """The same weights under another scheduler config."""
    own = {"prediction_type": model.schedule.prediction}
    return replace(model, schedule=DiscreteSchedule.from_config(SD | own | config))


def eager(name, **options):
    """A method that makes one inner step, where it has some, and does not stop early."""
    method = method_named(name)
    own = {field.name for field in fields(method)}
    wanted = {"inner_steps": 1, "loss_tolerance": 0.0, "loss_tolerance_slope": 0.0} | options
    return replace(method, **{key: value for key, value in wanted.items() if key in own})


def assert_claims_hold(model, made, still):
    """Finite, replayed to the header's PSNR, and unchanged by the steps `still`, and no others."""
    fitted = [e for e in (made.null_embeds, made.prompt_embeds) if e is not None]
    assert all(tensor.isfinite().all() for tensor in (made.trajectory, *fitted))
    claimed = made.header.psnr_reconstruction
    # float32: both branches of guidance share a UNet call in a replay, and not in a fit
    assert nulltext.replay(model, made).psnr == pytest.approx(claimed, abs=1e-2)
    grid = model.schedule.grid(made.num_steps)
    steps = [affine(step.prediction, step.noisier, step.cleaner) for step in grid]
    assert [index for index, step in enumerate(steps) if step == (1.0, 0.0)] == still
    replaying, latents = Replaying.of(model, replace(made, corrections=None)), made.trajectory[-1:]
    for index in still:
        assert torch.equal(source_step(replaying, latents, index).latents, latents)
    for embeds in fitted:
        for index in (i for i in still if 0 < i < len(embeds)):
            assert torch.equal(embeds[index], embeds[index - 1])


@pytest.mark.parametrize("name", GENERAL_METHODS)
@pytest.mark.parametrize(("spacing", "offset", "to_one"), GRIDS)
def test_every_method_passes_every_grid(tiny_sd1, photo, spacing, offset, to_one, name):
    grid = {"timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": to_one}
    model = on_grid(tiny_sd1, **grid)
    made = nulltext.invert(model, photo, PROMPT, method=eager(name), num_steps=2)
    still = [1] if not to_one and (spacing, offset) in (("linspace", 1), ("leading", 0)) else []
    assert_claims_hold(model, made, still)
    if name == "direct":
        assert made.header.psnr_reconstruction == pytest.approx(made.header.psnr_bound, abs=1e-3)
    if still and name != "random-pivot":  # which draws another point for timestep 0
        assert torch.equal(made.trajectory[0], made.trajectory[1])


@pytest.mark.parametrize("name", ["direct", "null-text", "global-null", "model-tuning"])
@pytest.mark.parametrize("edge", EDGES)
def test_methods_pass_the_edges_under_v_prediction(tiny_sd2, photo, edge, name):
    config, num_steps, still = EDGES[edge]
    model = on_grid(tiny_sd2, **config)
    made = nulltext.invert(model, photo, PROMPT, method=eager(name), num_steps=num_steps)
    assert_claims_hold(model, made, still)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_no_fit_works_on_an_identity(tiny_sd1, prediction):
    model = on_grid(tiny_sd1, timestep_spacing="linspace", prediction_type=prediction, **NOTEBOOK)
    draw = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, 8, 8, generator=draw)
    model, embeds = model.counted(2), model.embed([PROMPT])
    grid = model.schedule.grid(3)
    problems = [Problem(row[None], embeds, grid, 7.5, draw) for row in latents]
    steps, spent, gradients = [], [], []
    for info in eager("null-text").batch_steps(model, problems):
        steps.append(info)
        spent.append(torch.tensor(model.passes.each))
        gradients.append((info.kept or {}).get("gradients"))
    fitted = [info for info in steps if info.stage == "optimise"]
    assert [info.inner_steps > 0 for info in fitted] == [True, True, False]
    assert (spent[-1] - spent[-2]).tolist() == [2, 2]  # each branch once, to advance
    assert (gradients[-1] - gradients[-2]).tolist() == [0, 0]
    assert fitted[-1].loss == pytest.approx(fitted[-2].loss)  # what is left stays, and is said


@pytest.mark.parametrize("name", ["global-null", "textual-pivot-shared", "model-tuning"])
def test_shared_fits_take_no_gradient_of_an_identity(tiny_sd1, name):
    model = on_grid(tiny_sd1, timestep_spacing="linspace", **NOTEBOOK)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    draw, grid = torch.Generator().manual_seed(0), model.schedule.grid(3)
    problem = Problem(latents, model.embed([PROMPT]), grid, 7.5, draw)
    model, losses = model.counted(), []
    with unet_passes() as seen:
        solution = nulltext.diffusion.run(
            eager(name).steps(model, problem), lambda info: losses.append(info.loss)
        )
    assert model.passes.total == seen.total
    assert solution.iterations == len(seen.backward) == 2
    assert losses[-1] > 0, "what the other steps left is reported"


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("null-text", 1 + 1e-9), ("textual-pivot", 1e-30)],
)
def test_a_branch_that_counts_for_nothing_is_left_alone(tiny_sd1, name, guidance):
    draw = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 4, 8, 8, generator=draw)
    grid = tiny_sd1.schedule.grid(3)
    problem = Problem(latents, tiny_sd1.embed([PROMPT]), grid, guidance, draw)
    model = tiny_sd1.counted()
    solution = nulltext.diffusion.run(eager(name).steps(model, problem))
    embeds = solution.prompt_embeds if name == "textual-pivot" else solution.null_embeds
    assert torch.equal(embeds, embeds[:1].expand_as(embeds))
    assert (solution.iterations, model.passes.total) == (0, 3 + 3 * 2)
    assert solution.replayed.isfinite().all()


@pytest.mark.parametrize("editor", GENERAL_EDITORS)
@pytest.mark.parametrize(
    ("family", "branch"),
    [
        ("tiny_sd1", source_step),
        ("tiny_sd1", exact_source_step),
        ("tiny_sd2", source_step),
        ("tiny_sdxl", source_step),
    ],
)
def test_every_editor_passes_an_identity(request, photo, family, branch, editor):
    model = on_grid(request.getfixturevalue(family), timestep_spacing="linspace", **NOTEBOOK)
    made = nulltext.invert(model, photo, "a white cat", method=eager("null-text"), num_steps=3)
    spec = nulltext.EditSpec("a white dog", editor=EDITORS[editor]())
    landed = []
    edit = nulltext.edit(
        *(model, made, spec),
        source_branch=branch,
        on_step=lambda info: landed.append(info.clean_estimate),
    )
    assert edit.images.isfinite().all()
    assert all(estimate.isfinite().all() for estimate in landed)
    shown = nulltext.replay(model, made).image
    if branch is exact_source_step:
        shown = model.decode(made.trajectory[:1])
    assert torch.equal(edit.reconstruction, shown)
    assert not torch.equal(edit.images, edit.reconstruction)


@pytest.mark.parametrize(
    "saved",
    [
        lambda sd: DPMSolverMultistepScheduler.from_config(sd, timestep_spacing="linspace"),
        lambda sd: EulerAncestralDiscreteScheduler.from_config(sd, timestep_spacing="linspace"),
        lambda sd: DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False),
    ],
    ids=["dpm", "euler-ancestral", "notebook"],
)
def test_a_folder_with_such_a_scheduler_edits(run, here, model, saved):
    folder = here / "own"
    folder.mkdir()
    for part in Path(model).iterdir():
        (folder / part.name).symlink_to(part)
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    (folder / "scheduler").unlink()
    saved(config).save_pretrained(folder / "scheduler")
    options = ("--source", "a white cat", "--target", "a white dog", "--steps", 3, "--json")
    code, out, err = run("edit", "cat.png", "--model", folder, *options, "-o", "dog.png")
    assert code == 0, err
    said = json.loads(out)
    assert said["psnr_reconstruction"] == pytest.approx(said["psnr_replay"], abs=1e-2)
    with Image.open("dog.png") as picture:
        assert len(set(picture.convert("RGB").get_flattened_data())) > 1

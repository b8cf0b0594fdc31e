"""Training of a flow: its formulae against others' code, and the recipe from photos to a folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0
from scipy.stats import norm
from torch import nn
from typer.testing import CliRunner

from nulltext.cli.main import app
from nulltext.errors import OptionError
from nulltext.models.known_figure import TOLERANCE, deviations, read_known
from nulltext.models.load import from_pipe, load
from nulltext.training.dataset import read_dataset
from nulltext.training.flow import (
    FlowStage,
    build_transformer,
    embed_twice,
    equal_snr_timesteps,
    flow_pipeline,
    folded,
    logit_normal_levels,
    stratified,
    teacher_velocity,
)
from nulltext.training.loop import (
    TrainingState,
    averaged_weights,
    checkpoint_path,
    learning_rate,
    step_generator,
    train,
)
from nulltext.training.recipe import (
    FlowRecipe,
    LoopSettings,
    Recipe,
    bundled_recipes,
    from_json,
    load_recipe,
)
from nulltext.training.views import EncodedViews
from support.dots import LOOP
from support.tiny import tiny_pipeline

SIZES = {"layers": 2, "heads": 2, "head_width": 16}
RECIPE = {
    "name": "flowing-dots",
    "makes": "flow",
    "resolution": 32,
    "photo_side": 36,
    "views": {"views": 2},
    "autoencoder": {"channels": [32, 32, 32], "norm_groups": 32, "crop": 16},
    "flow": SIZES | {"loop": LOOP | {"checkpoint_every": 3}, "prompts": ["a red dot"]},
}


@pytest.fixture(scope="module")
def teacher():
    return from_pipe(tiny_pipeline("sd1"))


@pytest.fixture
def stage(teacher, dots):
    return new_stage(teacher, dots)


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    tiny_pipeline("sd1").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "dots.json"
    path.write_text(json.dumps(RECIPE))
    return path


@pytest.fixture(scope="module")
def flow_folder(dots, recipe_file, teacher_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("models") / "flow"
    done = run(dots, output, recipe_file, "--init", str(teacher_folder), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model"] == str(output)
    return output


def run(dots, output, recipe_file, *options):
    arguments = ["train", str(dots), "-o", str(output), "--config", str(recipe_file)]
    return CliRunner().invoke(app, [*arguments, "--device", "cpu", *options])


def new_stage(teacher, dots, **flow):
    recipe = from_json(Recipe, RECIPE | {"flow": SIZES | flow}, "recipe")
    examples = tuple(read_dataset(dots)[:6])
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(6, 4, 8, 8, generator=generator)
    masks = torch.zeros(6, 8, 8, dtype=torch.uint8)
    masks[:, 2:6, 2:6] = 255
    views = EncodedViews(latents.half(), masks, examples)
    transformer = build_transformer(recipe, side=8, channels=4, text=32)
    return FlowStage(teacher, transformer, views, recipe, (latents[:3], examples[:3]))


def shaken(stage, seed=0):
    """Give the transformer weights without zeros, under which every input counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in stage.module.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return stage


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_logit_normal_and_shifted_as_the_scheduler_does(shift):
    uniform = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    u = 1.0 / (1.0 + np.exp(-norm.ppf(uniform.numpy())))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_shift(shift)
    scheduler.set_timesteps(sigmas=u.tolist())
    got = logit_normal_levels(uniform, shift)
    torch.testing.assert_close(got.float(), scheduler.sigmas[:-1], atol=1e-6, rtol=1e-6)


def test_draws_are_one_from_each_part_of_the_unit_interval():
    draws = stratified(16, torch.Generator().manual_seed(0))
    assert sorted((draws * 16).long().tolist()) == list(range(16))
    assert draws.tolist() != sorted(draws.tolist())


def test_the_timestep_has_the_levels_signal_to_noise_ratio(teacher):
    ab = torch.from_numpy(teacher.schedule.alphas_cumprod)
    at = torch.tensor([0, 1, 400, 999])
    levels = 1.0 / (1.0 + (ab[at] / (1.0 - ab[at])).sqrt())
    found = equal_snr_timesteps(ab, levels.double())
    torch.testing.assert_close(found, at.float(), atol=1e-3, rtol=0)  # float32 timesteps
    ends = equal_snr_timesteps(ab, torch.tensor([1e-4, 1.0 - 1e-6]))
    assert ends.tolist() == [0.0, 999.0]


def test_the_teachers_velocity_is_noise_less_its_own_photo(teacher):
    ab = teacher.schedule.alphas_cumprod
    at = 500
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(2)).unbind(0)
    scheduler = DDIMScheduler.from_config(teacher.to_diffusers().scheduler.config)
    scheduler.set_timesteps(10)
    z = scheduler.add_noise(clean, noise, torch.tensor([at]))
    embeds = teacher.embed(["a red dot"])
    with torch.no_grad():
        eps = teacher.unet(z, at, encoder_hidden_states=embeds).sample
        clean_estimate = scheduler.step(eps, at, z).pred_original_sample
        level = torch.tensor([1.0 / (1.0 + math.sqrt(ab[at] / (1.0 - ab[at])))]).float()
        latents = (1.0 - level) * clean + level * noise
        timesteps = equal_snr_timesteps(torch.from_numpy(ab), level)
        got = teacher_velocity(teacher, latents, level, embeds, timesteps)
    expected = eps - clean_estimate
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)  # float32, divided by 1 - s


def test_the_loss_is_the_error_of_the_velocity(teacher, dots):
    stage = new_stage(teacher, dots, teacher_share=0.0)
    parts = stage.loss(step_generator(0, 0), 4)[1]
    rng = step_generator(0, 0)  # the untrained transformer answers 0
    rows = torch.randint(6, (4,), generator=rng)
    clean = stage.views.latents[rows].float() * teacher.vae.config.scaling_factor
    stratified(4, rng)
    noise = torch.randn(clean.shape, generator=rng)
    assert parts["velocity"] == pytest.approx(float((noise - clean).square().mean()), rel=1e-5)


def test_teacher_targets_stop_at_their_share_of_the_training(stage):
    stage.follow(0.5)
    assert stage.teacher_share == 1.0
    stage.follow(0.75)
    assert stage.teacher_share == 0.0


def test_one_blank_token_stands_for_any_number(stage):
    shaken(stage)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    levels = torch.tensor([0.3, 0.8])
    features = embed_twice(
        stage.teacher, [list(stage.teacher.tokenize("a red dot").token_ids)] * 2
    )[1]
    own = stage.velocity(latents, levels, features, torch.tensor([math.log(9.0)]))
    library = folded(stage.transformer, stage.standardise)
    context = nn.functional.pad(features.context, (0, 0, 0, 9))
    library.set_attn_processor(JointAttnProcessor2_0())
    other = library(latents, context, features.pooled, 1000 * levels).sample
    assert own.std() > 0.01
    torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)  # float32, weights folded


def test_a_pipeline_of_it_samples_what_the_stage_does(stage):
    shaken(stage)
    prompts = ["a red dot", "a blue dot on grass"]
    expected = stage.sample_latents(prompts, num_steps=3, guidance_scale=2.0)
    pipe = flow_pipeline(stage.teacher, stage.transformer, stage.standardise, stage.recipe)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn(4, 8, 8, generator=step_generator(7, k)) for k in range(2)])
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "latent"}
    got = pipe(prompts, latents=noise, height=32, width=32, **options).images
    torch.testing.assert_close(expected, got, atol=1e-3, rtol=1e-3)  # float32, weights folded


def test_training_lowers_the_loss_with_a_teacher_and_words(teacher, dots):
    stage = new_stage(teacher, dots, highest_taught=0.5)  # its weights are random, its x0 wild
    stage.module.requires_grad_(True)
    loop = LoopSettings(40, 4, 3e-3, optimizer="muon", warmup_steps=5, ema_decay=0.8)
    state, losses = TrainingState(stage.module, loop), []
    before = stage.held_out_loss(of_teacher=False)
    for step in range(40):
        loss, parts = stage.loss(step_generator(0, step), 4)
        state.update(loss)
        losses.append(parts["velocity"])
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    with state.averaged():
        assert stage.held_out_loss() != before


def test_resumed_it_is_the_unbroken_run(teacher, dots, tmp_path):
    loop = LoopSettings(**LOOP | {"checkpoint_every": 3, "cooldown": 0.5})

    def steps(folder, count=None):
        folder.mkdir(exist_ok=True)
        stage = new_stage(teacher, dots, teacher_until=0.6)
        training = train(stage, loop, folder, seed=0, recipe="dots")
        for _, info in zip(range(count or 99), training, strict=False):
            assert info.parts["loss"] > 0
        return stage

    whole = steps(tmp_path / "whole").module
    steps(tmp_path / "cut", 4)
    cut = steps(tmp_path / "cut").module
    for (name, expected), got in zip(whole.named_parameters(), cut.parameters(), strict=True):
        assert torch.equal(expected, got), name


def test_a_cooled_rate_is_constant_and_then_falls_to_zero():
    loop = LoopSettings(100, 1, 2.0, warmup_steps=10, cooldown=0.2)
    rates = [learning_rate(loop, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[10:80] == [2.0] * 70
    assert rates[90] == pytest.approx(1.0)
    assert rates[100] == 0.0


def test_minutes_end_a_training_before_its_updates_do(teacher, dots, tmp_path):
    loop = LoopSettings(**LOOP | {"minutes": 1e-7, "cooldown": 0.2})
    done = list(train(new_stage(teacher, dots), loop, tmp_path, seed=0, recipe="dots"))
    assert len(done) == 1  # of 7
    assert checkpoint_path(tmp_path, "flow").is_file()
    assert learning_rate(replace(loop, minutes=1.0), 2, seconds=54.0) == pytest.approx(5e-4)


def test_what_it_makes_is_an_ordinary_pipeline(flow_folder, teacher_folder):
    pipe = StableDiffusion3Pipeline.from_pretrained(
        flow_folder, text_encoder_3=None, tokenizer_3=None, low_cpu_mem_usage=False
    )  # without T5, the library wants to be told
    pipe.set_progress_bar_config(disable=True)
    pipe = pipe.to(torch.float32)
    assert pipe.text_encoder_3 is None
    assert pipe.scheduler.config.shift == FlowRecipe().shift
    kept = load(teacher_folder, device="cpu")
    for name, tensor in kept.vae.state_dict().items():
        torch.testing.assert_close(
            pipe.vae.state_dict()[name], tensor, atol=1e-3, rtol=1e-3
        )  # half
    image = pipe("a red dot", height=32, width=32, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 32, 32, 3)
    path = checkpoint_path(flow_folder.with_name("flow.training"), "flow")
    average = averaged_weights(path)["proj_out.weight"]
    got = pipe.transformer.state_dict()["proj_out.weight"]
    torch.testing.assert_close(got, average, atol=1e-3, rtol=1e-3)  # half precision
    ours = load(flow_folder, device="cpu")
    assert ours.known_words.named[:2] == ("dot", "grass")
    known = read_known(flow_folder)  # what `nulltext doctor` holds it to
    assert known["fingerprint"] == ours.fingerprint
    assert max(deviations(ours, known).values()) < TOLERANCE / 10
    card = (flow_folder / "README.md").read_text()
    assert "7 of 7" in card
    assert max(p.stat().st_size for p in flow_folder.rglob("*") if p.is_file()) < 16e6


def test_a_flow_needs_a_teacher_that_fits(dots, recipe_file, teacher_folder, tmp_path):
    output = tmp_path / "new"
    assert "--init" in str(run(dots, output, recipe_file).exception)
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps(RECIPE | {"flow": RECIPE["flow"] | {"patch": 3}}))
    wrong = run(dots, output, odd, "--init", str(teacher_folder)).exception
    assert isinstance(wrong, OptionError)
    assert "multiple of 12" in str(wrong)
    other = tmp_path / "sd2"
    tiny_pipeline("sd2").save_pretrained(other)
    refused = run(dots, output, recipe_file, "--init", str(other)).exception
    assert "cannot teach" in str(refused)


@pytest.mark.parametrize("name", [n for n in bundled_recipes() if load_recipe(n).makes == "flow"])
def test_bundled_recipes_fit_the_bundled_model(name):
    recipe = load_recipe(name)
    transformer = build_transformer(recipe, side=16, channels=16, text=192)
    assert sum(w.numel() for w in transformer.parameters()) < 24e6
    assert recipe.stages == ("flow", "export")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"shift": 0.0}, "above 0"),
        ({"teacher_share": 1.5}, "share from 0 to 1"),
        ({"heads": 0}, "choose 1 or more"),
    ],
)
def test_impossible_flows_are_refused(fields, said):
    with pytest.raises(OptionError, match=said):
        FlowRecipe(**fields)

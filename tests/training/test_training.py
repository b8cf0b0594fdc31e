"""Training: the whole recipe on photos made here, killed and resumed, and each stage's formulae."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from nulltext.cli.main import app
from nulltext.errors import DataError, OptionError, OutputError
from nulltext.models.known_figure import TOLERANCE, deviations, read_known
from nulltext.models.load import load
from nulltext.storage.files import lock_folder
from nulltext.training.dataset import read_dataset
from nulltext.training.loop import (
    TrainingState,
    averaged_weights,
    checkpoint_path,
    learning_rate,
)
from nulltext.training.recipe import LoopSettings, load_recipe
from nulltext.training.stages import TrainingRun
from support.dots import COLOURS, LOOP
from support.processes import killed_when

RECIPE = {
    "name": "dots",
    "resolution": 32,
    "photo_side": 36,
    "tokenizer": {"vocabulary": 900, "length": 16},
    "views": {"views": 2},
    "autoencoder": {
        "channels": [16, 16, 32],
        "latent_channels": 4,
        "norm_groups": 8,
        "crop": 16,
        "loop": LOOP | {"checkpoint_every": 3, "sample_every": 5, "optimizer": "muon"},
        "decoder_loop": LOOP | {"steps": 3},
    },
    "denoiser": {
        "channels": [32, 64],
        "attention": [True, False],
        "heads": 2,
        "text_width": 32,
        "text_layers": 1,
        "text_heads": 2,
        "beta_end": 0.03,
        "loop": LOOP | {"checkpoint_every": 3},
        "prompts": ["a red dot"],
    },
}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "dots.json"
    path.write_text(json.dumps(RECIPE))
    return path


@pytest.fixture(scope="module")
def model_folder(dots, recipe_file, tmp_path_factory):
    """A model trained from end to end by the command line."""
    output = tmp_path_factory.mktemp("models") / "dots"
    done = run(dots, output, recipe_file, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model"] == str(output)
    return output


def run(dots, output, recipe_file, *options):
    arguments = ["train", str(dots), "-o", str(output), "--config", str(recipe_file)]
    return CliRunner().invoke(app, [*arguments, "--device", "cpu", *options])


def weights(output, stage):
    return averaged_weights(checkpoint_path(output.with_name(f"{output.name}.training"), stage))


def test_what_it_makes_is_an_ordinary_pipeline(model_folder):
    ours = load(model_folder)
    theirs = StableDiffusionPipeline.from_pretrained(model_folder, low_cpu_mem_usage=False)
    assert ours.resolution == (32, 32)
    embeds = ours.embed(["a red dot on grass"])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = ours.predict(latents, ours.schedule.level(500), embeds)
        other = theirs.unet.float()(latents, 500, encoder_hidden_states=embeds).sample
    torch.testing.assert_close(own, other)
    assert theirs.scheduler.config.prediction_type == "epsilon"
    assert theirs.scheduler.config.beta_end == RECIPE["denoiser"]["beta_end"]
    known = read_known(model_folder)  # what `nulltext doctor` holds it to
    assert known["fingerprint"] == ours.fingerprint
    assert max(deviations(ours, known).values()) < TOLERANCE / 10
    assert max(p.stat().st_size for p in model_folder.rglob("*") if p.is_file()) < 16e6
    card = (model_folder / "README.md").read_text()
    assert "7 of 7" in card
    assert "48 photos" not in card  # 47 of the 50 are trained on
    assert "47 photos" in card
    assert ours.known_words.words == {"a", *COLOURS, "dot", "on", "grass"}
    assert ours.known_words.named[:2] == ("dot", "grass")


def test_the_scale_gives_latents_unit_variance(model_folder, dots):
    model = load(model_folder)
    photos = [Image.open(p).convert("RGB").crop((4, 0, 44, 40)) for p in sorted(dots.glob("*.png"))]
    pixels = np.stack([np.asarray(photo.resize((32, 32), Image.LANCZOS)) for photo in photos])
    latents = model.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    assert latents.std().item() == pytest.approx(1.0, abs=0.1)  # views are also mirrored


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_weights(
    model_folder, dots, recipe_file, tmp_path
):
    output = tmp_path / "killed"
    killed_when(
        checkpoint_path(output.with_name("killed.training"), "autoencoder").exists,
        *("train", dots, "-o", output, "--config", recipe_file, "--device", "cpu"),
    )
    refused = run(dots, output, recipe_file)
    assert "--resume" in str(refused.exception)
    done = run(dots, output, recipe_file, "--resume")
    assert done.exit_code == 0, done.output
    for stage in ("autoencoder", "decoder", "denoiser"):
        expected, got = weights(model_folder, stage), weights(output, stage)
        assert expected.keys() == got.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, got[name]), f"{stage} {name}"


def test_no_updates_keep_the_autoencoder_of_another_model(model_folder, dots, tmp_path):
    kept = RECIPE["autoencoder"] | {
        "loop": LOOP | {"steps": 0},
        "decoder_loop": LOOP | {"steps": 0},
    }
    recipe_file = tmp_path / "continued.json"
    recipe_file.write_text(json.dumps(RECIPE | {"autoencoder": kept}))
    output = tmp_path / "continued"
    with pytest.raises(OptionError, match="--init"):
        raise run(dots, output, recipe_file).exception
    done = run(dots, output, recipe_file, "--fresh", "--init", str(model_folder))
    assert done.exit_code == 0, done.output
    before, after = load(model_folder), load(output)
    for name, tensor in before.vae.state_dict().items():
        assert torch.equal(tensor, after.vae.state_dict()[name]), name
    assert after.vae.config.scaling_factor == before.vae.config.scaling_factor
    weight = "conv_in.weight"
    assert not torch.equal(before.unet.state_dict()[weight], after.unet.state_dict()[weight])


def test_other_settings_are_not_mixed_with_a_checkpoint(model_folder, dots, tmp_path):
    changed = json.loads(json.dumps(RECIPE))
    changed["autoencoder"]["loop"]["learning_rate"] = 2e-3
    other = tmp_path / "other.json"
    other.write_text(json.dumps(changed))
    before = weights(model_folder, "autoencoder")
    done = run(dots, model_folder, other, "--resume", "--stage", "autoencoder")
    assert isinstance(done.exception, OptionError)
    assert "other settings" in str(done.exception)
    after = weights(model_folder, "autoencoder")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_checkpoint_of_another_schedule_is_not_exported(model_folder, dots, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps(RECIPE | {"denoiser": RECIPE["denoiser"] | {"beta_end": 0.012}}))
    done = run(dots, model_folder, other, "--resume", "--stage", "export")
    assert isinstance(done.exception, OptionError)
    assert "other settings" in str(done.exception)
    assert load(model_folder).schedule.alphas_cumprod[-1] < 1e-4


@pytest.mark.parametrize("options", [(), ("--fresh",), ("--resume",)])
def test_nothing_is_touched_before_everything_is_known_to_be_there(
    options, dots, recipe_file, tmp_path
):
    work = tmp_path / "old.training"
    work.mkdir()
    (work / "autoencoder.checkpoint.safetensors").write_bytes(b"precious")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("precious")
    wrong = run(tmp_path / "nowhere", tmp_path / "old", recipe_file, *options)
    assert isinstance(wrong.exception, DataError)
    taken = run(dots, tmp_path / "taken", recipe_file, *options)
    assert isinstance(taken.exception, OutputError)
    growing = tmp_path / "growing.json"
    own = RECIPE["autoencoder"] | {"loss": {"keep": 1.0}}
    growing.write_text(json.dumps(RECIPE | {"autoencoder": own}))
    unnamed = run(dots, tmp_path / "old", growing, *options)
    assert "--init" in str(unnamed.exception)
    growing.unlink()
    assert (work / "autoencoder.checkpoint.safetensors").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old.training", "taken"]


@pytest.mark.parametrize("options", [(), ("--fresh",), ("--resume",)])
def test_two_trainings_do_not_share_a_folder(options, dots, recipe_file, tmp_path):
    work = tmp_path / "one.training"
    work.mkdir()
    (work / "autoencoder.checkpoint.safetensors").write_bytes(b"precious")
    with lock_folder(work):
        refused = run(dots, tmp_path / "one", recipe_file, *options)
    assert isinstance(refused.exception, OutputError)
    assert "by another nulltext" in str(refused.exception)
    assert (work / "autoencoder.checkpoint.safetensors").read_bytes() == b"precious"


def test_other_captions_are_not_taken_for_the_old_ones(dots, recipe_file, tmp_path):
    def words(folder):
        recipe = load_recipe(str(recipe_file))
        return TrainingRun(recipe, folder, tmp_path, torch.device("cpu")).words

    changed = tmp_path / "changed"
    shutil.copytree(dots, changed)
    assert words(changed) == words(dots)
    (changed / "07.txt").write_text("a green dot on grass")
    assert words(changed) != words(dots)


def test_a_stage_says_which_one_must_come_first(dots, recipe_file, tmp_path):
    done = run(dots, tmp_path / "early", recipe_file, "--stage", "denoiser")
    assert isinstance(done.exception, OptionError)
    assert "--stage autoencoder" in str(done.exception)


def test_the_update_is_adamw_with_an_average():
    settings = LoopSettings(steps=10, batch_size=1, learning_rate=0.1, warmup_steps=1, clip_norm=9)
    module = nn.Linear(2, 1, bias=False)
    start = module.weight.detach().clone()
    state = TrainingState(module, settings)
    first, second, value, average = 0.0, 0.0, start.clone(), start.clone()
    for step in range(3):
        inputs = torch.tensor([[1.0, -2.0 + step]])
        state.update((module(inputs) ** 2).sum())
        gradient = 2 * (value @ inputs.T) * inputs
        rate = learning_rate(settings, step)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scaled = (first / (1 - 0.9 ** (step + 1))) / (
            (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        )
        value = value * (1 - rate * settings.weight_decay) - rate * scaled
        decay = min(settings.ema_decay, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    torch.testing.assert_close(module.weight.detach(), value)
    torch.testing.assert_close(state.ema["weight"], average)


def test_the_learning_rate_rises_and_falls():
    settings = LoopSettings(steps=100, batch_size=1, learning_rate=2.0, warmup_steps=10)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[50] == pytest.approx(2.0 * (0.02 + 0.98 * 0.5))
    assert rates[-1] == pytest.approx(2.0 * 0.02, rel=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nmae": 1}, "no field 'nmae'"),
        ({"autoencoder": {"crop": "big"}}, "recipe.autoencoder.crop is 'big'"),
        ({"autoencoder": {"crop": True}}, "expected int"),
        ({"resolution": 36}, "multiple of 8"),
        ({"photo_side": 16}, "no larger than the photos"),
        ({"denoiser": RECIPE["denoiser"] | {"attention": [True]}}, "one for each"),
        ({"autoencoder": RECIPE["autoencoder"] | {"loop": {"steps": 3}}}, "lacks the field"),
        ({"denoiser": {"channels": 3}}, "expected a list"),
        ({"denoiser": RECIPE["denoiser"] | {"beta_end": 0.0}}, "beta_end is 0.0"),
        ({"autoencoder": RECIPE["autoencoder"] | {"norm_groups": 7}}, "not all of its channels"),
        (
            {"autoencoder": RECIPE["autoencoder"] | {"loop": LOOP | {"checkpoint_every": 0}}},
            "choose 1 or more",
        ),
        (
            {"autoencoder": RECIPE["autoencoder"] | {"loop": LOOP | {"optimizer": "sgd"}}},
            "choose adamw or muon",
        ),
    ],
)
def test_a_slip_in_a_recipe_is_said(change, said, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(RECIPE | change))
    with pytest.raises(OptionError, match=said):
        load_recipe(str(path))


def test_a_recipe_survives_being_written(tmp_path):
    recipe = load_recipe("flowers")
    (tmp_path / "again.json").write_text(recipe.to_json())
    assert load_recipe(str(tmp_path / "again.json")) == recipe


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no captioned photo"),
        ({"labels.jsonl": '{"file": "gone.jpg"}'}, "which is not there"),
        ({"labels.jsonl": '{"file": "../a.jpg"}'}, "outside the folder"),
        ({"labels.jsonl": '{"file": "a.jpg", "kind": 3}'}, "line 1"),
        ({"captions.jsonl": '{"file": "a.jpg"}'}, "has no .caption."),
        ({"captions.jsonl": "["}, "no JSON"),
    ],
)
def test_a_bad_dataset_is_said(files, said, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_dataset(tmp_path)

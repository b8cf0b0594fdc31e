"""The captioner's stage and its verbs: trained on photos made here, stopped and resumed, used."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import nulltext
from nulltext.captioning import folder
from nulltext.captioning.captioner import Caption, CaptionWord
from nulltext.captioning.folder import bundled_captioners, load_captioner, save_captioner
from nulltext.cli.main import app
from nulltext.cli.train import Stage
from nulltext.errors import ModelError, OptionError, PromptError
from nulltext.models.side_files import KnownWords, write_words
from nulltext.training.captioner import (
    CaptionerStage,
    build_captioner,
    find_known_photos,
    word_loss,
)
from nulltext.training.dataset import Example
from nulltext.training.loop import averaged_weights, checkpoint_path
from nulltext.training.recipe import Augmentation, LoopSettings, load_recipe
from nulltext.training.stages import STAGES, TrainingRun, captioner_stage
from support import captioners
from support.tiny import tiny_pipeline

COLOURS = {"red": (210, 30, 30), "blue": (30, 50, 210), "white": (240, 240, 240)}
RECIPE = {
    "name": "dots",
    "resolution": 32,
    "photo_side": 36,
    "tokenizer": {"vocabulary": 700, "length": 20},
    "autoencoder": {"crop": 32},
    "captioner": {
        "side": 16,
        "width": 32,
        "vision_layers": 1,
        "heads": 2,
        "language_layers": 1,
        "prefix_length": 2,
        "hidden": 32,
        "loop": {
            "steps": 240,
            "batch_size": 12,
            "learning_rate": 6e-3,
            "warmup_steps": 5,
            "ema_decay": 0.9,
        },
    },
}


@pytest.fixture(scope="module")
def dots(tmp_path_factory):
    """Photos of dots in three colours, labelled; every sixth is held out."""
    folder, rows = tmp_path_factory.mktemp("dots"), []
    for number in range(30):
        colour = list(COLOURS)[number % 3]
        image = Image.new("RGB", (40, 40), (20, 90 + 2 * number, 30))
        left = 4 + number % 6
        ImageDraw.Draw(image).ellipse((left, 6, left + 24, 32), COLOURS[colour])
        image.save(folder / f"{number:02}.png")
        split = "validation" if number % 6 < 3 and number >= 24 else "train"
        row = {"file": f"{number:02}.png", "split": split, "kind": "dot", "colour": colour}
        rows.append(json.dumps(row | {"background": "green" if number % 2 else None}))
    (folder / "labels.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "dots.json"
    path.write_text(json.dumps(RECIPE))
    return path


@pytest.fixture(scope="module")
def trained(dots, recipe, tmp_path_factory):
    """A captioner's folder that the command line made."""
    output = tmp_path_factory.mktemp("models") / "dots"
    command = ["train", str(dots), "-o", str(output), "--config", str(recipe), "--json"]
    command += ["--stage", "captioner", "--device", "cpu", "--autocast", "off"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert values["model"] is None
    assert not output.exists()
    return values["captioner"]


def run_of(dots, recipe, folder, **loop):
    own = load_recipe(str(recipe))
    short = replace(own.captioner.loop, **loop)
    own = replace(own, captioner=replace(own.captioner, loop=short))
    folder.mkdir()
    return TrainingRun(own, dots, folder, torch.device("cpu"))


def test_what_was_trained_names_the_colours_of_photos_it_never_saw(trained, dots):
    captioner = load_captioner(trained)
    for number in (24, 25, 26):
        colour = list(COLOURS)[number % 3]
        for beams in (1, 5):
            text = captioner.caption(dots / f"{number}.png", beams=beams)
            assert f"a {colour} dot" in text, text


def test_the_command_says_a_caption(trained, dots):
    image = str(dots / "24.png")
    done = CliRunner().invoke(app, ["caption", image, "--captioner", trained, "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert values == {"caption": load_captioner(trained).caption(image), "captioner": "dots"}
    bad = CliRunner().invoke(app, ["caption", image, "--captioner", trained, "--beams", "0"])
    assert isinstance(bad.exception, OptionError)


def test_the_bundled_captioner_sees_that_the_dahlia_is_orange():
    assert bundled_captioners() == ("flowers",)
    dahlia = Path(__file__).parents[2] / "examples" / "dahlia.jpg"
    assert "an orange" in nulltext.load_captioner().caption(dahlia)
    held = (folder.BUNDLED_FOLDER / "flowers").rglob("*")
    assert sum(path.stat().st_size for path in held if path.is_file()) < 12e6
    done = CliRunner().invoke(app, ["caption", str(dahlia), "--json"])
    values = json.loads(done.stdout)
    assert "an orange" in values["caption"]
    assert {"known", "unsure"} <= values.keys()


def test_the_bundled_captioner_does_not_know_a_checkerboard(tmp_path):
    """It calls it by some flower's name, and says that this may be wrong."""
    squares = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((32, 32)))
    Image.fromarray((255 * squares).astype(np.uint8)).save(tmp_path / "board.png")
    done = CliRunner().invoke(app, ["caption", str(tmp_path / "board.png"), "--json"])
    assert json.loads(done.stdout)["known"] is False
    assert "unlike those that the captioner 'flowers' was trained on" in done.stderr


def test_without_a_bundled_captioner_it_says_how_to_get_one(dots, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "BUNDLED_FOLDER", tmp_path)
    done = CliRunner().invoke(app, ["caption", str(dots / "24.png")])
    assert isinstance(done.exception, ModelError)
    for said in ("without a captioner", "--stage captioner", "convert-captioner"):
        assert said in str(done.exception)


def test_stopped_and_resumed_it_ends_with_the_same_weights(dots, recipe, tmp_path):
    loop = {"steps": 7, "batch_size": 3, "checkpoint_every": 3}
    whole = run_of(dots, recipe, tmp_path / "whole", **loop)
    list(captioner_stage(whole))
    stopped = run_of(dots, recipe, tmp_path / "stopped", **loop)
    list(islice(captioner_stage(stopped), 5))  # two steps behind the checkpoint
    rest = list(captioner_stage(stopped))
    assert [info.step for info in rest] == [4, 5, 6, 7]
    ends = [averaged_weights(checkpoint_path(s.folder, "captioner")) for s in (whole, stopped)]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_the_loss_is_the_mean_log_probability_of_the_words(dots, recipe, tmp_path):
    run = run_of(dots, recipe, tmp_path / "loss")
    words = run.tokenizer()
    captioner = build_captioner(run.recipe.captioner, words, name="x", seed=3)
    model, stop = captioner.model.double(), captioner.stop
    features = torch.randn(2, 32, generator=torch.Generator().manual_seed(0)).double()
    captions = [[5, 9, stop], [7, stop]]
    total = 0.0
    for feature, tokens in zip(features, captions, strict=True):
        embeds = model.mapper(feature[None])
        for token in tokens:
            scores = model.gpt(inputs_embeds=embeds).logits[0, -1].softmax(-1)
            total -= math.log(float(scores[token]))
            embeds = torch.cat([embeds, model.gpt.transformer.wte.weight[token][None, None]], 1)
    padded = torch.tensor([captions[0], [*captions[1], -100]])
    assert word_loss(model, features, padded).item() == pytest.approx(total / 5, rel=1e-5)
    assert word_loss(model, features, torch.full_like(padded, -100)).item() == 0.0


def test_a_photo_without_a_required_label_teaches_no_words(dots, recipe, tmp_path):
    run = run_of(dots, recipe, tmp_path / "silent")
    unknown = [replace(example, background=None) for example in run.examples]
    captioned = [replace(example, captions=("a dot",)) for example in unknown]

    def words(examples, **own):
        own = replace(run.recipe.captioner, label_weight=1.0, **own)
        captioner = build_captioner(own, run.tokenizer(), name="x", seed=0)
        stage = CaptionerStage(captioner, run.pixels, run.held_out_pixels, examples, own)
        loss, parts = stage.loss(torch.Generator().manual_seed(0), 4)
        loss.backward()
        mapper = captioner.model.mapper.model[0].weight.grad.abs().max().item()
        seen = max(w.grad.abs().max().item() for w in captioner.model.vision.parameters())
        assert seen > 0  # by the heads, also where no word is taught
        return parts["words"], mapper

    loss, gradient = words(unknown)
    assert loss > 1
    assert gradient > 0
    assert words(unknown, required=("background",)) == (0.0, 0.0)
    assert words(unknown, required=("colour",)) == (loss, gradient)
    assert words(captioned, required=("background",))[0] > 1


def test_variation_keeps_colours_and_stays_inside(dots, recipe, tmp_path):
    run = run_of(dots, recipe, tmp_path / "vary")
    own = replace(run.recipe.captioner, augmentation=Augmentation(0.5, 0.4, 0.0))
    captioner = build_captioner(own, run.tokenizer(), name="x", seed=0)
    stage = CaptionerStage(captioner, run.pixels, run.held_out_pixels, run.examples, own)
    plain = torch.tensor([51, 102, 204], dtype=torch.uint8)[:, None, None].expand(3, 36, 36)
    left = plain.clone()
    left[:, :, :18] = 0
    rng, dark = torch.Generator().manual_seed(0), []
    for _ in range(40):
        seen = stage.vary(plain, rng)
        assert seen.shape == (1, 3, 16, 16)
        torch.testing.assert_close(seen.mean((0, 2, 3)), torch.tensor([0.2, 0.4, 0.8]))
        halves = stage.vary(left, rng)
        dark.append(float(halves[..., :4].mean() - halves[..., -4:].mean()) < 0)
    assert 0.2 < sum(dark) / len(dark) < 0.8  # mirrored about half of the time


def test_the_recipe_of_flowers_makes_a_folder_under_12_mb(trained, dots, recipe, tmp_path):
    run = run_of(dots, recipe, tmp_path / "size")
    words = run.tokenizer()
    own = load_recipe("flowers")
    model = build_captioner(own.captioner, words, name="x", seed=0).model
    more = (own.tokenizer.vocabulary - len(words)) * own.captioner.width
    numbers = sum(weight.numel() for weight in model.parameters()) + more
    assert 2 * numbers < 11.5e6  # float16; tokenizer and settings have the rest


def test_stages_and_settings_are_checked(recipe, tmp_path):
    assert {stage.value for stage in Stage} - {"export"} == set(STAGES)
    odd = RECIPE | {"captioner": RECIPE["captioner"] | {"patch": 5}}
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    with pytest.raises(OptionError, match="patches of 5"):
        load_recipe(str(tmp_path / "odd.json"))
    for field, said in [
        ({"required": ["size"]}, "label 'size'; labels are kind, colour"),
        ({"view": 1.5}, "view is 1.5; choose a share"),
    ]:
        (tmp_path / "odd.json").write_text(
            json.dumps(RECIPE | {"captioner": RECIPE["captioner"] | field})
        )
        with pytest.raises(OptionError, match=said):
            load_recipe(str(tmp_path / "odd.json"))
    assert load_recipe(str(recipe)).captioner.loop == LoopSettings(
        240, 12, 6e-3, warmup_steps=5, ema_decay=0.9
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline("sd1").save_pretrained(folder)
    return str(folder)


def test_auto_is_the_caption_shown_and_reported(trained, dots, model, tmp_path):
    image, caption = str(dots / "25.png"), load_captioner(trained).caption(dots / "25.png")
    common = ["--model", model, "--steps", "2", "--captioner", trained, "--json"]
    saved = tmp_path / "dot.safetensors"
    write_words(KnownWords(("photo",), ()), nulltext.load(model).fingerprint, Path(model))
    done = CliRunner().invoke(
        app, ["invert", image, "--prompt", "auto", "-o", str(saved), *common, "--method", "ddim"]
    )
    assert done.exit_code == 0, str(done.exception)
    assert json.loads(done.stdout)["prompt"] == caption
    assert caption in done.stderr
    assert nulltext.Inversion.load(saved).header.prompt == caption
    assert "has not learnt" in done.stderr
    done = CliRunner().invoke(
        app,
        [
            *("edit", image, "--source", "auto", "--target", "a photo", "--method", "ddim"),
            *("-o", str(tmp_path / "edited.png"), *common),
        ],
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["source"] == caption
    assert f'"{caption}"' in done.stderr
    assert "has not learnt" in done.stderr  # the caption's words: those of the target are known


@pytest.fixture(scope="module")
def doubtful(trained, dots, tmp_path_factory):
    """The captioner with what it knows of: the photos of dots, and none that is grey."""
    captioner = load_captioner(trained)
    shown = [Example(dots / f"{number:02}.png", "train") for number in range(30)] * 2
    known = find_known_photos(captioner, shown[:30], shown[30:], torch.Generator().manual_seed(0))
    output = tmp_path_factory.mktemp("doubtful") / "dots"
    save_captioner(replace(captioner, known_photos=known), output, dtype=torch.float32)
    Image.effect_noise((40, 40), 250).save(output.parent / "noise.png")
    return output


def test_a_photo_that_the_captioner_does_not_know_is_said(doubtful, dots, model, tmp_path):
    noise, common = str(doubtful.parent / "noise.png"), ["--captioner", str(doubtful), "--json"]
    unlike = "this photo is unlike those that the captioner 'dots' was trained on"
    done = CliRunner().invoke(app, ["caption", noise, *common])
    assert json.loads(done.stdout)["known"] is False
    assert unlike in done.stderr
    captioner = load_captioner(doubtful)
    photos = [str(dots / f"{number:02}.png") for number in range(30)]
    known = [photo for photo in photos if captioner.describe(photo).known]
    assert len(known) == 27
    done = CliRunner().invoke(app, ["caption", known[0], *common])
    assert json.loads(done.stdout)["known"] is True
    assert unlike not in done.stderr
    fast = ["--model", model, "--steps", "2", "--method", "ddim"]
    edit = ["--source", "auto", "--target", "a photo", "-o", str(tmp_path / "edited.png")]
    done = CliRunner().invoke(app, ["edit", noise, *edit, *fast, *common])
    values = json.loads(done.stdout)
    assert values["caption"]["known"] is False
    assert unlike in values["remarks"][0]
    assert done.stderr.count(unlike) == 1
    job = {"image": noise, "source": "auto", "target": "a photo", "captioner": str(doubtful)}
    (tmp_path / "jobs.json").write_text(json.dumps([{**job, "steps": 2, "method": "ddim"}]))
    output = tmp_path / "batch"
    batch = ["batch", str(tmp_path / "jobs.json"), "-o", str(output), "--model", model]
    done = CliRunner().invoke(app, batch)
    assert done.exit_code == 0, done.output
    (row,) = map(json.loads, (output / "results.jsonl").read_text().splitlines())
    assert row["caption"] == values["caption"]
    assert unlike in row["remarks"][0]


def test_too_few_held_out_photos_tell_nothing(trained, dots):
    shown = [Example(dots / f"{number:02}.png", "train") for number in range(30)]
    rng = torch.Generator().manual_seed(0)
    assert find_known_photos(load_captioner(trained), shown, shown[:19], rng) is None


def test_auto_is_refused_where_it_makes_no_sense(trained, dots, model, tmp_path):
    image = str(dots / "25.png")
    done = CliRunner().invoke(app, ["invert", image, "--prompt", "x", "--captioner", trained])
    assert "--captioner is for --prompt auto" in str(done.exception)
    edit = ["edit", image, "--source", "x", "--target", "y", "--captioner", trained]
    done = CliRunner().invoke(app, edit)
    assert "--captioner is for --source auto" in str(done.exception)


@pytest.mark.parametrize(
    ("words", "problem"), [("", "finds no words"), ("dot " * 90, "cannot read")]
)
def test_a_caption_that_is_no_prompt_is_said(words, problem, dots, model, tmp_path, monkeypatch):
    captioner = captioners.captioner()
    save_captioner(captioner, tmp_path / "odd", dtype=torch.float32)
    said = Caption(tuple(CaptionWord(word, 1.0) for word in words.split()), "odd")
    monkeypatch.setattr(type(captioner), "read", lambda self, pixels, beams: said)
    command = ["edit", str(dots / "25.png"), "--source", "auto", "--target", "a dot"]
    command += ["--captioner", str(tmp_path / "odd"), "--model", model, "-o", "unused.png"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, PromptError)
    assert problem in str(done.exception)
    assert "--source" in str(done.exception)

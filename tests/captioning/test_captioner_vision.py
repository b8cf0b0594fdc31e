"""A captioner whose vision model has learnt to see elsewhere: begun from a folder, kept, used."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModelWithProjection,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    EfficientNetImageProcessor,
    EfficientNetModel,
)
from typer.testing import CliRunner

from nulltext.captioning.captioner import ImagePreprocessing, embed, embedding_width
from nulltext.captioning.folder import load_captioner, read_preprocessing
from nulltext.cli.main import app
from nulltext.errors import ModelError, OptionError
from nulltext.training import stages
from nulltext.training.captioner import (
    CaptionerStage,
    PretrainedVision,
    build_captioner,
    preprocessing_for,
)
from nulltext.training.export import export_captioner
from nulltext.training.loop import averaged_weights, checkpoint_path
from nulltext.training.recipe import Augmentation, CaptionerRecipe, Recipe, load_recipe
from nulltext.training.stages import TrainingRun, captioner_stage
from support import captioners

SIDE = 16
PIXELS = {"crop_size": 224, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.25]}
RECIPE = {
    "name": "squares",
    "resolution": 32,
    "photo_side": 32,
    "tokenizer": {"vocabulary": 600, "length": 20},
    "autoencoder": {"crop": 32},
    "captioner": {
        "side": SIDE,
        "width": 16,
        "heads": 2,
        "language_layers": 1,
        "prefix_length": 2,
        "hidden": 16,
        "loop": {
            "steps": 5,
            "batch_size": 2,
            "learning_rate": 0.01,
            "warmup_steps": 1,
            "checkpoint_every": 2,
        },
    },
}


def efficientnet() -> EfficientNetForImageClassification:
    """One block on 8 channels, with statistics of batches that are not the initial ones."""
    config = EfficientNetConfig(
        width_coefficient=1 / 80,
        depth_coefficient=1.0,
        in_channels=[32],
        out_channels=[16],
        kernel_sizes=[3],
        strides=[2],
        num_block_repeats=[1],
        expand_ratios=[2],
        hidden_dim=16,
        num_labels=3,
    )
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EfficientNetForImageClassification(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.copy_(torch.rand(buffer.shape, generator=draw) + 0.1)
    for weight in model.parameters():
        weight.data.mul_(10.0)  # lively enough for features that differ
    return model


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """The folder of a classifier, as somebody has it."""
    folder = tmp_path_factory.mktemp("eyes") / "net"
    efficientnet().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    (folder / "LICENSE").write_text("Free as in beer.")
    return folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Six labelled photos of one colour each, and a recipe beside them."""
    folder, rows = tmp_path_factory.mktemp("squares"), []
    for number, colour in enumerate(["red", "blue", "white"] * 2):
        Image.new("RGB", (36, 36), colour).save(folder / f"{number}.png")
        rows.append(json.dumps({"file": f"{number}.png", "kind": "square", "colour": colour}))
    (folder / "labels.jsonl").write_text("\n".join(rows))
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    return folder


def recipe_of(squares: Path, **captioner: object) -> Recipe:
    own = load_recipe(str(squares / "recipe.json"))
    return replace(own, captioner=replace(own.captioner, **captioner))


def run_of(squares, net, folder):
    folder.mkdir()
    vision = PretrainedVision.load(net)
    return TrainingRun(recipe_of(squares), squares, folder, torch.device("cpu"), vision=vision)


def test_a_classifiers_folder_gives_its_network_and_the_mean_of_its_last_map(net):
    vision = PretrainedVision.load(net)
    assert isinstance(vision.module, EfficientNetModel)
    mean, deviation = tuple(PIXELS["image_mean"]), tuple(PIXELS["image_std"])
    assert preprocessing_for(
        CaptionerRecipe(side=20, patch=4, view=0.5), vision
    ) == ImagePreprocessing(20, mean, deviation, 0.5)
    pixels = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        last = efficientnet().efficientnet(pixels).last_hidden_state
        found = embed(vision.module, pixels)
    assert found.std() > 0.01
    assert embedding_width(vision.module) == found.shape[1] == 16
    torch.testing.assert_close(found, last.mean((2, 3)), rtol=1e-5, atol=1e-6)


def test_clip_looks_at_squares_of_its_own_size_only(tmp_path):
    words = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    whole = CLIPModel(
        CLIPConfig(
            text_config=words,
            vision_config=captioners.clip().config.to_dict(),
            projection_dim=captioners.FEATURES,
        )
    ).eval()
    whole.save_pretrained(tmp_path / "clip")  # as published: with the half that reads
    pixels = {"size": {"height": 16, "width": 16}, **PIXELS}
    del pixels["crop_size"]
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(pixels))
    vision = PretrainedVision.load(tmp_path / "clip")
    assert isinstance(vision.module, CLIPVisionModelWithProjection)
    assert preprocessing_for(CaptionerRecipe(side=16), vision) == vision.preprocessing
    seen = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        projected = whole.visual_projection(whole.vision_model(seen).pooler_output)
        torch.testing.assert_close(embed(vision.module, seen), projected)
    with pytest.raises(OptionError, match=r"16 pixels and the recipe's captioner at 20"):
        preprocessing_for(CaptionerRecipe(side=20, patch=4), vision)


def test_a_size_that_clip_does_not_see_is_said_before_anything_is_touched(squares, tmp_path):
    captioners.clip().save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    command = ["train", str(squares), "-o", str(tmp_path / "made"), "--stage", "captioner"]
    done = CliRunner().invoke(app, [*command, "--vision", str(tmp_path / "clip")])
    assert "16 pixels and the recipe's captioner at 64" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_stopped_and_resumed_it_is_the_same_and_statistics_stay(
    squares, net, tmp_path, monkeypatch
):
    whole, stopped = (run_of(squares, net, tmp_path / name) for name in ("whole", "stopped"))
    trained = []

    def spied(captioner, *rest):
        trained.append(captioner.model.vision)
        return CaptionerStage(captioner, *rest)

    monkeypatch.setattr(stages, "CaptionerStage", spied)
    list(captioner_stage(whole))
    assert not any(part.training for part in trained[0].modules())
    for name, buffer in PretrainedVision.load(net).module.named_buffers():
        assert torch.equal(buffer, dict(trained[0].named_buffers())[name]), name
    list(islice(captioner_stage(stopped), 3))  # a step behind the checkpoint
    list(captioner_stage(stopped))
    ends = [averaged_weights(checkpoint_path(s.folder, "captioner")) for s in (whole, stopped)]
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
    export_captioner(whole, tmp_path / "made")
    again = load_captioner(tmp_path / "made").model.vision.state_dict()
    begun = PretrainedVision.load(net).module.state_dict()
    moved = 0.0
    for name, tensor in again.items():
        if "running" in name:
            torch.testing.assert_close(tensor, begun[name].half().float())
        else:
            moved = max(moved, float((tensor.float() - begun[name].float()).abs().max()))
    assert moved > 0.005  # it learns, and not the mapper alone
    card = (tmp_path / "made" / "README.md").read_text()
    assert "EfficientNetModel at 16 pixels" in card
    assert "began with the weights of 'net'" in card
    assert (tmp_path / "made" / "efficientnet" / "LICENSE").read_text() == "Free as in beer."
    other = replace(whole, vision=None)
    with pytest.raises(OptionError, match="other settings"):
        list(captioner_stage(other))


def test_the_command_begins_from_a_folder(squares, net, tmp_path):
    command = ["train", str(squares), "-o", str(tmp_path / "made"), "--vision", str(net), "--json"]
    command += ["--config", str(squares / "recipe.json"), "--device", "cpu", "--autocast", "off"]
    done = CliRunner().invoke(app, command)
    assert "--stage captioner" in str(done.exception)
    done = CliRunner().invoke(app, [*command, "--stage", "captioner"])
    assert done.exit_code == 0, done.output
    made = load_captioner(json.loads(done.stdout)["captioner"])
    assert isinstance(made.model.vision, EfficientNetModel)
    made.caption(squares / "0.png")


def test_what_is_wrong_with_a_folder_is_said(net, tmp_path):
    with pytest.raises(OptionError, match=r"no folder of a vision model: it has no config\.json"):
        PretrainedVision.load(tmp_path / "gone")
    for name in ("words", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "words" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(OptionError, match="'bert'; a captioner looks with clip_vision_model"):
        PretrainedVision.load(tmp_path / "words")
    (tmp_path / "bin" / "config.json").write_bytes((net / "config.json").read_bytes())
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, which could run code"):
        PretrainedVision.load(tmp_path / "bin")


def copied(net: Path, folder: Path, file: str, **changes: object) -> Path:
    """A vision model's folder, with other settings in a file."""
    shutil.copytree(net, folder)
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | changes))
    return folder


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ({"depth_coefficient": 3e3}, "describes 24000 layers"),
        ({"depth_coefficient": math.inf}, "'inf' times"),
        ({"num_block_repeats": [3000]}, "3000 layers"),
        ({"num_block_repeats": [9], "depth_coefficient": 4.5}, "45 layers"),
        ({"num_block_repeats": [20]}, r"more than \d+ tensors"),
    ],
)
def test_blocks_without_end_are_not_built(net, tmp_path, setting, what):
    with pytest.raises(ModelError, match=what):
        PretrainedVision.load(copied(net, tmp_path / "deep", "config.json", **setting))


def test_a_small_config_inside_does_not_speak_for_a_large_one(net, tmp_path):
    small = json.loads((net / "config.json").read_text())
    folder = copied(net, tmp_path / "two", "config.json", **{"": small, "num_channels": 10**5})
    with pytest.raises(ModelError, match="numbers, its files hold"):
        PretrainedVision.load(folder)


def test_a_network_that_gives_no_embedding_is_refused(net, tmp_path):
    vision = PretrainedVision.load(copied(net, tmp_path / "odd", "config.json", return_dict=False))
    with pytest.raises(ModelError, match="'odd' makes no embeddings of 16 pixels"):
        preprocessing_for(CaptionerRecipe(side=SIDE), vision)


@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("preprocessor_config.json", {"image_std": [0.3, 0.2, 0.24]}),
        ("config.json", {"hidden_act": "relu"}),
    ],
)
def test_what_the_vision_model_sees_with_is_part_of_its_identity(net, tmp_path, file, setting):
    same = PretrainedVision.load(copied(net, tmp_path / "same", file))
    other = PretrainedVision.load(copied(net, tmp_path / "other", file, **setting))
    assert PretrainedVision.load(net).fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize("top", [{"include_top": True}, {"include_top": False}, {}])
def test_pixels_are_those_of_efficientnets_own_processor(tmp_path, top):
    stock = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.478, 0.473, 0.474], **top}
    stock |= {"size": {"height": SIDE, "width": SIDE}, "crop_size": 289, "do_center_crop": False}
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(stock | {"image_processor_type": "EfficientNetImageProcessor"}))
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    theirs = EfficientNetImageProcessor(**stock)(pixels, return_tensors="pt")["pixel_values"]
    preprocessing = read_preprocessing(path)
    assert preprocessing.side == SIDE
    torch.testing.assert_close(
        preprocessing.standardise(pixels[None] / 255), theirs, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("setting", [{"rescale_offset": True}, {"rescale_factor": 1 / 127.5}])
def test_pixels_of_another_kind_are_refused(net, tmp_path, setting):
    with pytest.raises(ModelError, match=f"says {next(iter(setting))}: .* only"):
        PretrainedVision.load(copied(net, tmp_path / "odd", "preprocessor_config.json", **setting))


def test_a_recipe_for_a_vision_model_does_not_begin_without_one(squares, tmp_path):
    command = ["train", str(squares), "-o", str(tmp_path / "made"), "--stage", "captioner"]
    done = CliRunner().invoke(app, [*command, "--config", "flowers-captioner"])
    assert "made to begin with efficientnet-lite0" in str(done.exception)
    assert "--vision" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("off_centre", [0.0, 0.1, 0.5])
def test_crops_stay_as_near_the_middle_as_is_asked(squares, tmp_path, off_centre):
    own = recipe_of(squares, augmentation=Augmentation(0.5, 0.2, 0.0, off_centre)).captioner
    run = TrainingRun(
        load_recipe(str(squares / "recipe.json")), squares, tmp_path, torch.device("cpu")
    )
    captioner = build_captioner(own, run.tokenizer(), name="x", seed=0)
    stage = CaptionerStage(captioner, run.pixels, run.held_out_pixels, run.examples, own)
    ramp = torch.linspace(0, 255, 101).round().to(torch.uint8).expand(3, 101, 101)
    rng = torch.Generator().manual_seed(0)
    middles = [float(stage.vary(ramp, rng).mean()) - 0.5 for _ in range(150)]
    furthest = max(abs(middle) for middle in middles)
    assert furthest <= off_centre + 0.01  # half a pixel of 101, and the rounding of grey values
    assert furthest >= min(off_centre, 0.25) * 0.85  # crops of half the side reach 0.25

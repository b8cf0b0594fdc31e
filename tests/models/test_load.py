"""Loading: four kinds of source, one result; everything else is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionInpaintPipeline, UNet2DModel
from safetensors.torch import load_file, save_file

import nulltext
from nulltext.errors import ModelError, OptionError
from nulltext.models.load import BUNDLED_FOLDER, bundled_models
from support.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny SD 1.x pipeline as a folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline("sd1").save_pretrained(folder)
    return folder


@pytest.fixture
def broken(saved, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(saved, tmp_path / "broken")


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_and_the_pipeline_in_hand_are_the_same_model(saved):
    from_folder, from_pipe = nulltext.load(saved), nulltext.load(tiny_pipeline("sd1"))
    assert from_folder.fingerprint == from_pipe.fingerprint
    latents = torch.randn(1, 4, 8, 8)
    for t in (1, 981):
        with torch.no_grad():
            a, b = (
                m.predict(latents, m.schedule.level(t), m.embed(["a"]))
                for m in (from_folder, from_pipe)
            )
        torch.testing.assert_close(a, b)


CACHED = """
import nulltext
model = nulltext.load("somebody/tiny")
print(model.name, model.fingerprint)
nulltext.load("somebody/else")
"""


def test_a_hub_id_loads_through_the_hub_client(saved, tmp_path, monkeypatch):
    """The client's own cache layout stands in for the network, which tests must not need."""
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CACHED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["somebody/tiny", nulltext.load(saved).fingerprint], done.stderr
    assert done.returncode == 1
    assert "ModelError" in done.stderr
    assert "somebody/else" in done.stderr


def test_sizes_and_limits_come_from_the_checkpoint(tiny_sd1, tiny_sd2, flowers):
    assert (tiny_sd1.resolution, tiny_sd2.resolution) == ((32, 32), (16, 16))
    assert (tiny_sd1.max_tokens, tiny_sd2.max_tokens, flowers.max_tokens) == (24, 30, 32)
    assert tiny_sd1.schedule.prediction == "epsilon"
    assert tiny_sd2.schedule.prediction == "v_prediction"
    assert flowers.latents_shape == (16, 16, 16)
    for model in (tiny_sd1, tiny_sd2, flowers):
        images = torch.rand(1, 3, *model.resolution) * 2 - 1
        scale = model.vae.config.scaling_factor
        with torch.no_grad():
            moments = model.vae.encode(images).latent_dist
            decoded = model.vae.decode(moments.mode()).sample
        torch.testing.assert_close(model.encode(images), moments.mode() * scale)
        torch.testing.assert_close(model.decode(model.encode(images)), decoded, atol=1e-4, rtol=0)


def test_v_prediction_is_turned_into_noise(tiny_sd2):
    latents = torch.randn(1, 4, 8, 8)
    embeds = tiny_sd2.embed(["a cat"])
    alpha = tiny_sd2.schedule.alphas_cumprod[500]
    with torch.no_grad():
        velocity = tiny_sd2.unet(latents, 500, embeds).sample
        noise = tiny_sd2.predict_noise(latents, tiny_sd2.schedule.level(500), embeds)
    clean = alpha**0.5 * latents - (1 - alpha) ** 0.5 * velocity
    rebuilt = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    torch.testing.assert_close(rebuilt, latents, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["flowers", "flowers-flow"])
def test_a_bundled_model_is_an_ordinary_diffusers_folder_below_64_mb(name):
    assert bundled_models() == ("flowers", "flowers-flow")
    folder = BUNDLED_FOLDER / name
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 64e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    for path in files:
        if path.suffix == ".safetensors":
            assert {t.dtype for t in load_file(path).values()} <= {torch.float16, torch.int64}
    assert (folder / "README.md").is_file()


def test_half_precision_keeps_the_fingerprint_and_the_autoencoder_in_float32(saved):
    half = nulltext.load(saved, dtype="bfloat16")
    assert half.fingerprint == nulltext.load(saved).fingerprint
    assert half.unet.dtype == torch.bfloat16
    assert half.vae.dtype == torch.float32


def test_any_changed_component_changes_the_fingerprint(saved, broken):
    known = nulltext.load(saved).fingerprint
    for name, file in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        path = broken / name / f"{file}.safetensors"
        before = path.read_bytes()
        tensors = load_file(path)
        changed = sorted(tensors)[len(tensors) // 2]
        tensors[changed] = tensors[changed] * 1.01 + 0.01
        save_file(tensors, path, metadata={"format": "pt"})
        assert nulltext.load(broken).fingerprint != known, name
        path.write_bytes(before)
    assert nulltext.load(broken).fingerprint == known


def test_the_same_weights_under_other_settings_are_another_model(saved, broken):
    known = nulltext.load(saved).fingerprint
    for file, change in (
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}),
        ("vae/config.json", {"scaling_factor": 1.0}),
    ):
        before = (broken / file).read_text()
        change_json(broken / file, **change)
        assert nulltext.load(broken).fingerprint != known, change
        (broken / file).write_text(before)
    assert nulltext.load(broken).fingerprint == known


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nothing-here", "neither bundled"),
        ("/no/such/folder", "neither bundled"),
        ("", "neither bundled"),
    ],
)
def test_missing_models_are_refused(model, words):
    with pytest.raises(ModelError, match=words):
        nulltext.load(model)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is empty"),
        ("model.safetensors", "text file"),
        ("model.CKPT", "text file"),
        ("notes.txt", "text file"),
    ],
)
def test_what_is_no_model_is_refused_by_what_it_is(tmp_path, name, words):
    """See test_foreign for all that is told apart."""
    if name:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=words):
        nulltext.load(tmp_path / name)


def test_other_pipelines_are_refused_by_name(broken, tmp_path):
    change_json(broken / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(ModelError, match="no text_encoder_2"):
        nulltext.load(broken)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with pytest.raises(ModelError, match="DDPMPipeline"):
        nulltext.load(DDPMPipeline(unet, DDPMScheduler()))


def test_an_inpainting_unet_is_refused(saved):
    pipe = tiny_pipeline("sd1")
    config = dict(pipe.unet.config) | {"in_channels": 9, "_use_default_values": []}
    pipe.unet = type(pipe.unet).from_config(config)
    with pytest.raises(ModelError, match="inpainting"):
        nulltext.load(pipe)
    inpaint = StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(ModelError, match="StableDiffusionInpaintPipeline"):
        nulltext.load(inpaint)


def test_foreign_components_are_refused_by_name(broken):
    change_json(broken / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])
    with pytest.raises(ModelError, match="T5EncoderModel"):
        nulltext.load(broken)


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_folders_are_refused_by_name(broken, file, damage):
    path = broken / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError) as caught:
        nulltext.load(broken)
    assert file.split("/")[0].split(".")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_byte_order_mark_in_every_text_changes_nothing(tmp_path, family, encoding):
    """Ours and the libraries' readers: configs, scheduler, index, vocabularies of both kinds."""
    tiny_pipeline(family).save_pretrained(tmp_path)
    for place in ("tokenizer", "tokenizer_2") if family == "sdxl" else ():
        own = json.loads((tmp_path / place / "tokenizer.json").read_text())["model"]
        merges = "\n".join(["#version: 0.2", *map(" ".join, own["merges"])])
        (tmp_path / place / "tokenizer.json").unlink()
        (tmp_path / place / "vocab.json").write_text(json.dumps(own["vocab"]))
        (tmp_path / place / "merges.txt").write_text(merges)
    plain = nulltext.load(tmp_path, device="cpu")
    texts = [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.txt")]
    assert len(texts) >= 7
    for path in texts:
        path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    marked = nulltext.load(tmp_path, device="cpu")
    assert marked.fingerprint == plain.fingerprint
    assert marked.tokenize("a red cat") == plain.tokenize("a red cat")


def test_missing_weights_are_never_made_up(broken):
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop("conv_in.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"conv_in\.weight"):
        nulltext.load(broken)


def test_pickled_weights_are_not_opened(broken):
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(ModelError, match="safetensors"):
        nulltext.load(broken)


@pytest.mark.parametrize("device", ["tpu9000", "cuda:99", "meta"])
def test_devices_that_are_not_there_are_refused(saved, device):
    with pytest.raises(OptionError, match=device):
        nulltext.load(saved, device=device)


def test_unknown_dtypes_are_refused(saved):
    with pytest.raises(OptionError, match="float32"):
        nulltext.load(saved, dtype="int8")

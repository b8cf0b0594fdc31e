"""Whatever is passed as a model and is none: said in one sentence, with what to pass instead."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDPMScheduler
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from nulltext.models.foreign import explain
from nulltext.storage.inversion_file import write_inversion
from support.headers import SD1, UNET, VAE
from support.tiny import tiny_pipeline

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def said(path):
    """What is said of a path: one sentence that ends, on one line, and names the path."""
    sentence = explain(str(path))
    assert sentence is not None
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert str(path) in sentence
    return sentence


def weights(path, tensors=UNET | VAE | SD1):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, path)
    return path


def saved_torch(path, content):
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    tiny_pipeline("sd1").save_pretrained(folder)
    return folder


@pytest.fixture
def copy(pipeline, tmp_path):
    shutil.copytree(pipeline, tmp_path / "copy")
    return tmp_path / "copy"


def index_of(folder, kind="StableDiffusionPipeline"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    return folder


# --- what may be a model --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("flowers", "owner/name", "owner/name@refs/pr/4", "nothing-here", "/no/such/folder"),
        *("", "a\0b", "x" * 5000, "~nobody-of-this-name/model"),
    ],
)
def test_names_and_ids_are_left_to_the_loader(text):
    assert explain(text) is None


def test_pipelines_and_checkpoints_are_left_to_the_loader(pipeline, tmp_path):
    assert explain(str(pipeline)) is None
    assert explain(str(weights(tmp_path / "sd15.safetensors"))) is None


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://huggingface.co/stabilityai/sdxl-turbo", "--model stabilityai/sdxl-turbo."),
        ("https://huggingface.co/stabilityai/sdxl-turbo/", "--model stabilityai/sdxl-turbo."),
        ("http://www.huggingface.co/a/b?library=x#y", "--model a/b."),
        ("huggingface.co/a/b", "--model a/b."),
        ("hf.co/a/b", "--model a/b."),
        ("hf://a/b", "--model a/b."),
        ("git@hf.co:a/b.git", "--model a/b."),
        ("https://huggingface.co/a/b/tree/main", "--model a/b."),
        ("https://huggingface.co/a/b/tree/fp16", "--model a/b@fp16."),
        ("https://huggingface.co/a/b/tree/refs%2Fpr%2F4/unet", "--model a/b@refs/pr/4."),
        ("https://huggingface.co/a/b/discussions/3", "--model a/b."),
        ("https://huggingface.co/api/models/a/b", "--model a/b."),
        (
            "https://huggingface.co/a/b/blob/main/v1-5.safetensors",
            "--model a/b, or download this file and pass it.",
        ),
        ("https://huggingface.co/a/b/resolve/main/unet/d.safetensors", "--model a/b."),
        ("https://huggingface.co/datasets/a/b", "a data set of the hub, not a model"),
        ("https://huggingface.co/spaces/a/b", "a Space of the hub, not a model"),
        ("https://huggingface.co/", "without a model"),
        ("https://huggingface.co/a", "without a model"),
        ("https://civitai.com/models/112902/dreamshaper-xl", "download the model's .safetensors"),
        ("civitai.com/api/download/models/128713", "download the model's .safetensors"),
        ("https://example.org/model.safetensors", "from which nulltext downloads nothing"),
        ("s3://bucket/model", "from which nulltext downloads nothing"),
        ("file:///models/sd15", "without 'file://'"),
        ("models--stabilityai--sd-turbo", "--model stabilityai/sd-turbo."),
    ],
)
def test_addresses_say_which_id_to_write(text, words):
    assert words in said(text)


def test_an_endless_address_is_said_shortly():
    sentence = explain("https://example.org/" + "x" * 100_000)
    assert sentence is not None
    assert len(sentence) < 500


# --- files ----------------------------------------------------------------------------------------


def picture(path):
    Image.new("RGB", (8, 8)).save(path)
    return path


def archived(path):
    data = b"x" * 100
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/unet.safetensors", data)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
            info = tarfile.TarInfo("model/unet.safetensors")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


FILES = {
    "photo.png": (picture, "is a picture, not a model"),
    "photo.jpg": (picture, "is a picture, not a model"),
    "photo.webp": (picture, "is a picture, not a model"),
    "photo.safetensors": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(90)), "a picture"),
    "notes.txt": (lambda p: p.write_text("My models.\nBest."), "is a text file, not a model"),
    "gone.safetensors": (
        lambda p: p.write_text("Entry not found"),
        "text file ('Entry not found')",
    ),
    "config.json": (lambda p: p.write_text("{}"), "a configuration, not a model; pass its folder"),
    "empty.safetensors": (lambda p: p.touch(), "is empty, as a download that failed"),
    "model.safetensors": (lambda p: p.write_text(POINTER), "run `git lfs pull` in its folder"),
    "page.safetensors": (
        lambda p: p.write_text("\n <!DOCTYPE html>\n<html><body>Log in</body></html>"),
        "is a web page",
    ),
    "m.onnx": (lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(90)), "exported to ONNX"),
    "flax_model.msgpack": (lambda p: p.write_bytes(b"\x81\xa4unet" + bytes(90)), "JAX (Flax)"),
    "m.gguf": (lambda p: p.write_bytes(b"GGUF\x03" + bytes(90)), "a quantised model (GGUF)"),
    "g.safetensors": (lambda p: p.write_bytes(b"GGUF\x03" + bytes(90)), "a quantised model (GGUF)"),
    "m.engine": (lambda p: p.write_bytes(b"ftrt" + bytes(90)), "one GPU (TensorRT)"),
    "m.plan": (lambda p: p.write_bytes(b"ftrt" + bytes(90)), "one GPU (TensorRT)"),
    "m.mlmodel": (lambda p: p.write_bytes(bytes(90)), "Core ML"),
    "m.zip": (archived, "an archive; unpack it"),
    "m.tar": (archived, "an archive; unpack it"),
    "m.tgz": (archived, "an archive; unpack it"),
    "m.7z": (lambda p: p.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(90)), "an archive; unpack it"),
    "m.dat": (lambda p: p.write_bytes(bytes(range(256)) * 4), "a file of an unknown kind"),
    "d.safetensors": (lambda p: p.write_bytes(bytes(range(256)) * 4), "but for its name; get it"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_hold_no_safetensors(name, tmp_path):
    make, words = FILES[name]
    make(tmp_path / name)
    assert words in said(tmp_path / name)


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    assert "no regular file" in said(tmp_path / "model.safetensors")


LORA = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (2, 8)}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (LORA, "is a LoRA, not a whole checkpoint; pass it as --lora {path}, beside the --model"),
        ({"<cat>": (8,)}, "is a learnt embedding, not a whole checkpoint; pass it as --embedding"),
        (VAE, "is an autoencoder (VAE), not a whole checkpoint; pass it as --vae {path}"),
        (UNET, "is a UNet without its text encoders, not a whole checkpoint; pass a text-to-image"),
    ],
)
def test_safetensors_that_are_something_else(tensors, words, tmp_path):
    path = weights(tmp_path / "a b.safetensors", tensors)
    assert words.format(path=shlex.quote(str(path))) in said(path)


def test_a_saved_inversion(tmp_path):
    path = tmp_path / "cat.safetensors"
    write_inversion(path, {"trajectory": torch.zeros(2, 4, 2, 2)}, {})
    assert f"a saved inversion, not a whole checkpoint; pass it as --inversion {path}" in said(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "name", ["it's a model.ckpt", "model.pt", "model.bin", "model.safetensors"]
)
def test_a_file_that_could_run_code_is_never_opened(name, zipped, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert "could run code" in said(tmp_path / name)


def test_what_is_said_to_convert_it_does(tmp_path):
    path = tmp_path / "it's a model.ckpt"
    tensors = {"a": torch.randn(3, 2).T, "b": torch.ones(2)}
    torch.save({"state_dict": tensors, "epoch": 3}, path)
    python, *arguments = shlex.split(said(path).split("`")[1])
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    back = load_file(path.with_suffix(".safetensors"))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


def test_parts_of_a_pipeline_name_the_pipeline(pipeline):
    for part in (
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae",
        "unet",
        "tokenizer",
        "scheduler",
    ):
        assert str(pipeline) in said(pipeline / part).removeprefix(f"'{pipeline / part}'")
        assert "one part of a pipeline" in said(pipeline / part)


# --- folders --------------------------------------------------------------------------------------


def test_an_empty_folder(tmp_path):
    assert "it is empty" in said(tmp_path)
    (tmp_path / ".gitattributes").touch()
    assert "it is empty" in said(tmp_path)


def test_a_folder_of_something_else_names_what_is_in_it(tmp_path):
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    assert "(no model_index.json, but a.png, b.png)" in said(tmp_path)


@pytest.mark.parametrize("part", ["model_index.json", "unet/diffusion_pytorch_model.safetensors"])
def test_pointers_of_git_lfs_inside_a_folder(part, copy):
    (copy / part).write_text(POINTER)
    sentence = said(copy)
    assert str(copy / part) in sentence
    assert "git lfs pull" in sentence


@pytest.mark.parametrize("below", ["unet", "unet/config.json", "model_index.json"])
def test_a_part_that_is_gone_is_left_to_the_loader(below, copy):
    """But for the index: without that, the parts say that it is missing."""
    part = copy / below
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    if below == "model_index.json":
        assert "has parts of a pipeline" in said(copy)
        assert "no model_index.json" in said(copy)
    else:
        assert explain(str(copy)) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}'])
def test_a_damaged_index_is_left_to_the_loader(text, copy):
    (copy / "model_index.json").write_text(text)
    assert explain(str(copy)) is None


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.onnx", b"\x08\x07", "exported to ONNX"),
        ("flax_model.msgpack", b"\x81", "JAX (Flax)"),
        ("openvino_model.xml", b"<?xml?><net/>", "exported to OpenVINO"),
        ("unet.engine", b"ftrt", "TensorRT"),
        ("unet.gguf", b"GGUF", "GGUF"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_weights_of_other_libraries(name, content, words, whole, copy, tmp_path):
    folder = copy if whole else tmp_path / "other"
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    if whole:
        (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / name).write_bytes(content)
    if name.startswith("openvino"):
        (folder / "unet/openvino_model.bin").write_bytes(bytes(90))
    assert words in said(folder)


def test_a_core_ml_package(tmp_path):
    (tmp_path / "Unet.mlpackage/Data").mkdir(parents=True)
    (tmp_path / "Unet.mlpackage/Manifest.json").write_text("{}")
    assert "Core ML" in said(tmp_path)
    assert "Core ML" in said(tmp_path / "Unet.mlpackage")


def test_single_models_of_the_libraries(pipeline, tmp_path):
    pipe = tiny_pipeline("sd1")
    pipe.unet.save_pretrained(tmp_path / "u")
    pipe.vae.save_pretrained(tmp_path / "v")
    pipe.text_encoder.save_pretrained(tmp_path / "t")
    DDPMScheduler().save_pretrained(tmp_path / "s")
    ControlNetModel.from_unet(pipe.unet).save_pretrained(tmp_path / "c")
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "g")
    assert "a UNet alone" in said(tmp_path / "u")
    weights_of_vae = tmp_path / "v/diffusion_pytorch_model.safetensors"
    assert f"pass it as --vae {weights_of_vae}" in said(tmp_path / "v")
    assert "a CLIPTextModel of transformers" in said(tmp_path / "t")
    assert "a DDPMScheduler alone" in said(tmp_path / "s")
    assert "a ControlNet" in said(tmp_path / "c")
    assert "a GPT2LMHeadModel of transformers" in said(tmp_path / "g")


def test_a_modular_pipeline(tmp_path):
    index = {"_class_name": "StableDiffusionXLModularPipeline"}
    (tmp_path / "modular_model_index.json").write_text(json.dumps(index))
    assert "a modular pipeline" in said(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensors", "option"),
    [
        ("pytorch_lora_weights.safetensors", LORA, "--lora"),
        ("adapter_model.safetensors", {"base_model.model.q.lora_A.weight": (2, 8)}, "--lora"),
        ("learned_embeds.safetensors", {"<cat>": (8,)}, "--embedding"),
        ("my style.safetensors", LORA, "--lora"),
    ],
)
def test_trained_adapters(name, tensors, option, tmp_path):
    path = weights(tmp_path / "out" / name, tensors)
    (tmp_path / "out/adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert f"pass it as {option} {shlex.quote(str(path))}" in said(tmp_path / "out")


def test_adapters_that_could_run_code(tmp_path):
    saved_torch(tmp_path / "learned_embeds.bin", {"<cat>": torch.ones(8)})
    assert "could run code" in said(tmp_path)


@pytest.mark.parametrize("lora", [True, False])
def test_a_training_that_is_not_done(lora, tmp_path):
    for step in (500, 1000):
        name = "pytorch_lora_weights" if lora else "unet/diffusion_pytorch_model"
        weights(tmp_path / f"checkpoint-{step}/{name}.safetensors", LORA if lora else UNET)
    sentence = said(tmp_path)
    assert "(checkpoint-500, checkpoint-1000)" in sentence
    last = tmp_path / "checkpoint-1000/pytorch_lora_weights.safetensors"
    assert (f"--lora {last}" if lora else "save_pretrained()") in sentence


@pytest.mark.parametrize("below", [".", "Stable-diffusion", "models/checkpoints"])
def test_folders_of_other_programs(below, tmp_path):
    first = weights(tmp_path / below / "a.safetensors")
    weights(tmp_path / below / "lora.safetensors", LORA)
    (tmp_path / below / "broken.safetensors").write_text(POINTER)
    one = said(tmp_path)
    assert f"a checkpoint in single files (a.safetensors); pass one file, as --model {first}" in one
    for letter in "bcdefg":
        weights(tmp_path / below / f"{letter}.safetensors")
    sentence = said(tmp_path)
    names = ", ".join(f"{letter}.safetensors" for letter in "abcde")
    assert f"checkpoints in single files ({names}, …); pass one file" in sentence


def test_a_folder_with_a_pointer_alone(tmp_path):
    (tmp_path / "sd15.safetensors").write_text(POINTER)
    assert "git lfs pull" in said(tmp_path)


def test_pipelines_one_level_below(tmp_path):
    index_of(tmp_path / "first")
    assert f"pass --model {tmp_path / 'first'}." in said(tmp_path)
    index_of(tmp_path / "second one")
    assert f"--model {tmp_path / 'first'} (and 1 more: second one)" in said(tmp_path)


def test_the_hubs_cache(tmp_path):
    root = tmp_path / "hub/models--owner--some-name"
    snapshot = index_of(root / "snapshots/b261bac6fd")
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    for place in (root, root / "snapshots", root / "blobs", root / "refs"):
        sentence = said(place)
        assert "pass --model owner/some-name, or its snapshot: --model " in sentence
        assert str(snapshot) in sentence
    assert explain(str(snapshot)) is None
    (root.parent / "models--other--two/snapshots/abc").mkdir(parents=True)
    for place in (root.parent, tmp_path):
        assert "with other/two, owner/some-name; pass one of its models" in said(place)
    part = root.parent / "models--other--two/snapshots/abc"
    assert "pass --model other/two." in said(part)
    lora = weights(part / "pytorch_lora_weights.safetensors", LORA)
    assert f"is a LoRA, not a whole checkpoint; pass it as --lora {lora}" in explain(str(part))


def test_what_must_not_be_read(tmp_path):
    """The superuser may read everything, so this asks as somebody else."""
    path = weights(tmp_path / "model.safetensors")
    folder = index_of(tmp_path / "folder")
    inner = weights(tmp_path / "around/model.safetensors").parent
    for locked in (path, folder, inner):
        locked.chmod(0)
    script = (
        "import os, sys; from nulltext.models.foreign import explain\n"
        "if os.geteuid() == 0: os.setegid(65534); os.seteuid(65534)\n"
        "for name in sys.argv[1:]: print(explain(name))"
    )
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    names = [str(path), str(folder), str(inner / "model.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", script, *names], capture_output=True, text=True, check=False
    )
    for locked in (path, folder, inner):
        locked.chmod(0o755)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    for name, line in zip(names, lines, strict=True):
        assert name in line
        assert "cannot be read (Permission denied); check who may read it." in line


def test_names_with_control_characters_stay_on_one_line(tmp_path):
    weights(tmp_path / "a\n\x1b[31mb.safetensors")
    sentence = said(tmp_path)
    assert "\x1b" not in sentence


def test_a_forged_folder_of_many_files_is_bounded(tmp_path):
    for number in range(1500):
        (tmp_path / f"{number:04}.dat").touch()
    assert len(said(tmp_path)) < 500

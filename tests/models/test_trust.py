"""Files made to do harm: models, inversions and pictures that ask for code, memory or time."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from nulltext.errors import ImageError, InversionFileError, ModelError, PromptError
from nulltext.image.opening import BOMB_PIXELS
from nulltext.image.photos import load_photo
from nulltext.inversion.record import Inversion
from nulltext.models import checkpoint
from nulltext.models.load import load
from nulltext.storage import inversion_file
from support.tiny import tiny_pipeline

CODE = "from pathlib import Path\nPath({mark!r}).touch()\nclass Evil: pass\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline("sd1").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a model's folder that may be spoilt: its files are links until they are written."""
    copy = tmp_path / "model"
    for path in saved.rglob("*"):
        target = copy / path.relative_to(saved)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    return copy


def rewrite(path, **changes):
    """A JSON file with some of its fields changed."""
    values = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps(values))


def refused(folder, *words):
    with pytest.raises(ModelError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    for word in words:
        assert word in message
    return message


def test_a_models_own_code_is_never_run(folder, tmp_path):
    mark = tmp_path / "ran"
    for place in (folder, *(p for p in folder.iterdir() if p.is_dir())):
        for name in ("evil", "pipeline", "__init__", "modeling_evil", "tokenization_evil"):
            (place / f"{name}.py").write_text(CODE.format(mark=str(mark)))
    auto = {"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.X"}
    for path in folder.glob("*/*config.json"):
        rewrite(path, auto_map=auto, custom_pipeline="evil", trust_remote_code=True)
    rewrite(folder / "model_index.json", custom_pipeline="evil", auto_map=auto)
    load(folder)
    assert not mark.exists()
    rewrite(folder / "model_index.json", unet=["evil", "Evil"])
    refused(folder, "of class Evil")
    rewrite(
        folder / "model_index.json",
        unet=["diffusers", "UNet2DConditionModel"],
        _class_name=["pipeline", "Evil"],
    )
    load(folder)  # the class is not asked for, its parts are plain
    assert not mark.exists()


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("text_encoder", {"attn_implementation": "somebody/kernel"}),
        ("text_encoder", {"_attn_implementation": "somebody/kernel"}),
        ("unet", {"quantization_config": {"quant_method": "gguf"}}),
        ("text_encoder", {"text_config": {"_attn_implementation": "somebody/kernel"}}),
    ],
)
def test_a_config_that_asks_for_code_is_refused(folder, part, setting):
    rewrite(folder / part / "config.json", **setting)
    refused(folder, part, "never run")


def test_a_config_that_names_another_in_its_place_is_refused(folder):
    config = folder / "text_encoder" / "config.json"
    (config.parent / "config.4.0.0.json").write_bytes(config.read_bytes())
    rewrite(config, configuration_files=["config.4.0.0.json"])
    refused(folder, "text_encoder", "configuration_files")


@pytest.mark.parametrize("ending", [".bin", ".ckpt", ".pt"])
def test_weights_that_could_run_code_are_not_opened(folder, ending, monkeypatch):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(ending))
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("opened"))
    refused(folder, f"diffusion_pytorch_model{ending}", "safe_serialization=True")


@pytest.mark.parametrize(
    "name",
    [
        "../vae/diffusion_pytorch_model.safetensors",
        "/etc/passwd",
        "weights.bin",
        "weights.gguf",
        "a\\b.safetensors",
        5,
    ],
)
@pytest.mark.parametrize(
    ("part", "stem"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")]
)
def test_an_index_names_safetensors_of_its_own_folder(folder, part, stem, name):
    index = {"metadata": {"total_size": 1}, "weight_map": {"conv_in.weight": name}}
    (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    whole = folder / part / f"{stem}.safetensors"
    whole.rename(folder / part / f"{stem}-00001-of-00001.safetensors")
    (folder / "unet" / "weights.bin").write_bytes(b"")
    refused(folder, part, "no safetensors file beside it")


@pytest.mark.parametrize(
    ("part", "setting", "words"),
    [
        ("unet", {"block_out_channels": [2**20, 2**20]}, "numbers, its files hold"),
        ("unet", {"cross_attention_dim": 2**34}, "numbers, its files hold"),
        ("unet", {"layers_per_block": 10**9}, "layers, its files hold"),
        ("vae", {"block_out_channels": [2**20] * 3}, ""),
        ("text_encoder", {"vocab_size": 2**40}, "numbers, its files hold"),
        ("text_encoder", {"num_hidden_layers": 10**9}, "layers, its files hold"),
        (
            "text_encoder",
            {"model_type": "clip", "vocab": {"model_type": "clip_text_model", "vocab_size": 2**40}},
            "tensors, its files hold",
        ),
    ],
)
def test_a_config_larger_than_its_weights_is_refused_before_room_is_made(
    folder, part, setting, words, monkeypatch
):
    rewrite(folder / part / "config.json", **setting)
    monkeypatch.setattr(checkpoint, "_library_class", guarded(checkpoint._library_class, setting))
    refused(folder, part, words)


def guarded(found, setting):
    """The library's classes, which may not load what the setting would make."""

    def library_class(name):
        kind = found(name)

        class Guarded(kind):
            @classmethod
            def from_pretrained(cls, source, *, subfolder, **options):
                config = json.loads((Path(source) / subfolder / "config.json").read_text())
                if setting.items() <= config.items():
                    pytest.fail("room was made")
                return kind.from_pretrained(source, subfolder=subfolder, **options)

        Guarded.__module__ = kind.__module__
        return Guarded

    return library_class


@pytest.mark.parametrize(
    "setting",
    [
        {"num_train_timesteps": 10**12},
        {"num_train_timesteps": "many"},
        {"beta_start": "low"},
        {"beta_start": -1},
        {"beta_end": float("nan")},
        {"trained_betas": []},
        {"trained_betas": [[0.1]]},
        {"trained_betas": "betas"},
        {"steps_offset": -5},
    ],
)
def test_a_schedule_that_is_none_is_refused(folder, setting):
    rewrite(folder / "scheduler" / "scheduler_config.json", **setting)
    refused(folder, "scheduler config")


def test_a_resolution_beyond_all_models_is_refused(folder):
    rewrite(folder / "unet" / "config.json", sample_size=10**7)
    refused(folder, "sample_size")


OFFLINE = """
import time, nulltext
from nulltext.errors import ModelError
import diffusers, transformers, huggingface_hub, nulltext.models.load
time.sleep = lambda seconds: print("waited before another try")
try:
    nulltext.load("somebody/model")
except ModelError as error:
    print(error)
"""


def test_a_hub_out_of_reach_is_noticed_without_half_a_minute_of_retries(tmp_path):
    """Nothing listens on port 9 here; the client alone would try for 23 seconds."""
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, check=True
    )
    assert "cannot be reached" in done.stdout
    assert "or pass a local folder" in done.stdout
    assert len(done.stdout.splitlines()) == 1, done.stdout


HEADER = {"version": 2}


def sparse(path, tensors, header="{}"):
    """A safetensors file of zeros, as large as its header says, that takes no room on disk."""
    entries, at = {"__metadata__": {"nulltext": header}}, 0
    for name, (shape, size) in tensors.items():
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


@pytest.mark.parametrize("steps", [1_000_000, 60_000])
def test_shapes_are_checked_before_room_is_made(tmp_path, monkeypatch, steps):
    """61 GB are refused by the file's size, 3.7 GB of wrong shapes by what the header says."""
    monkeypatch.setattr(safetensors.torch, "load_file", lambda *a, **k: pytest.fail("read"))
    shape = [steps, 4, 64, 64]
    sparse(
        tmp_path / "i.safetensors",
        {"trajectory": (shape, 4 * steps * 4 * 64 * 64), "photo": ([3, 8, 8], 3 * 8 * 8 * 4)},
        json.dumps(HEADER),
    )
    with pytest.raises(InversionFileError, match="damaged"):
        Inversion.load(tmp_path / "i.safetensors")


@pytest.mark.parametrize("length", [2**63, 2**32, inversion_file.MAX_HEADER_BYTES + 1])
def test_a_header_that_claims_too_much_is_not_read(tmp_path, length):
    path = tmp_path / "i.safetensors"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b"[" * 100)
        file.truncate(min(length, 2**33))
    with pytest.raises(InversionFileError, match="header claims"):
        Inversion.load(path)


def test_a_picture_of_many_pixels_in_few_bytes_is_refused(tmp_path):
    side = int(BOMB_PIXELS**0.5) + 8
    sheet = Image.new("RGB", (side, side))
    sheet.save(tmp_path / "bomb.webp", lossless=True)
    with pytest.raises(ImageError, match="made to fill memory"):
        load_photo(tmp_path / "bomb.webp")
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64)).save(jpeg, "JPEG", progressive=True)
    forged = bytearray(jpeg.getvalue())
    at = forged.index(b"\xff\xc2") + 5
    forged[at : at + 4] = (1800).to_bytes(2, "big") + (65_000).to_bytes(2, "big")
    (tmp_path / "forged.jpg").write_bytes(forged)
    with pytest.raises(ImageError, match="made to fill memory"):
        load_photo(tmp_path / "forged.jpg")


def test_a_large_mask_in_few_bytes_is_read(tmp_path):
    side = int(BOMB_PIXELS**0.5) + 8
    mask = Image.new("1", (side, side))
    mask.paste(1, (0, 0, 99, 99))
    mask.save(tmp_path / "mask.png")
    assert (tmp_path / "mask.png").stat().st_size < side * side / 2000
    assert load_photo(tmp_path / "mask.png").size == (side, side)


def test_a_huge_prompt_is_refused_at_once(flowers):
    with pytest.raises(PromptError, match="100,000,000 characters"):
        flowers.tokenize("a" * 100_000_000)

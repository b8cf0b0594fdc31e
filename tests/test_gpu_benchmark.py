"""The benchmark of a device runs at a small size, keeps its results, and goes on after faults."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.tiny import own_tokenizer

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def published(folder):
    """The layout of a published checkpoint's configs, with a vocabulary of the tests' own."""
    configs = {
        "unet": {
            "sample_size": 64,
            "block_out_channels": [320, 640, 1280, 1280],
            "layers_per_block": 2,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        "vae": {
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "latent_channels": 4,
        },
        "text_encoder": {"hidden_size": 768, "max_position_embeddings": 77, "vocab_size": 49408},
    }
    for part, config in configs.items():
        (folder / "sd15" / part).mkdir(parents=True)
        (folder / "sd15" / part / "config.json").write_text(json.dumps(config))
    (folder / "sd15" / "scheduler").mkdir()
    beta = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    (folder / "sd15" / "scheduler" / "scheduler_config.json").write_text(json.dumps(beta))
    index = {"_class_name": "StableDiffusionPipeline"}
    (folder / "sd15" / "model_index.json").write_text(json.dumps(index))
    own_tokenizer("<|endoftext|>", 77).save_pretrained(folder / "sd15" / "tokenizer")
    (folder / "clip").mkdir()
    return folder


@pytest.fixture
def bench(tmp_path):
    def call(*parts, seconds=500):
        command = [sys.executable, SCRIPT, "--small", "--out", "out", "--budget-seconds", seconds]
        command += ["--configs", tmp_path / "configs"]
        done = subprocess.run(
            [*map(str, command), "--parts", *parts],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_parts_are_measured_once_and_a_fault_stops_no_other(bench, tmp_path):
    parts = ("sd15-default-1", "sdxl-default-1", "sd15-published-1")
    published(tmp_path / "configs")
    first = bench(*parts)
    assert [line.split()[:2] for line in first.splitlines()] == [
        ["sd15-default-1", "ok"],
        ["sdxl-default-1", "failed"],  # there are no configs of it
        ["sd15-published-1", "ok"],
    ]
    said = {part: json.loads((tmp_path / "out" / f"{part}.json").read_text()) for part in parts}
    ours, theirs = said["sd15-default-1"]["result"], said["sd15-published-1"]["result"]
    assert (ours["dtype"], theirs["dtype"]) == ("float16", "float32")
    assert ours["evaluations_per_photo"] == 1 + 2 * 2  # the first guess takes one
    assert ours["timesteps_whole"] == 20
    assert theirs["timesteps"] == 2
    assert theirs["evaluations_per_photo"] == 2 + 2 * (1 + 2 * 10 + 2)
    assert theirs["evaluations_whole_per_photo"] == 50 * 24
    assert theirs["seconds_whole_per_photo"] == pytest.approx(
        25 * theirs["seconds"], rel=1e-2, abs=0.01
    )
    assert ours["peak_mib"] is None or ours["peak_mib"] >= 0
    assert "FileNotFoundError" in said["sdxl-default-1"]["reason"]

    before = (tmp_path / "out" / "sd15-default-1.json").stat().st_mtime_ns
    again = bench(*parts[:2], seconds=0)
    assert "sd15-default-1     finished before" in again
    assert "sdxl-default-1     out of time" in again  # it would be tried again
    assert (tmp_path / "out" / "sd15-default-1.json").stat().st_mtime_ns == before


def test_without_a_gpu_the_full_size_is_refused(tmp_path):
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pass --small" in done.stderr
    assert not (tmp_path / "out").exists()

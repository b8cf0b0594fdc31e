"""Copies of the bundled model, changed."""

from __future__ import annotations

import json
import shutil

import safetensors.torch

from nulltext.models.load import BUNDLED_FOLDER

SCHEDULER, VAE = "scheduler/scheduler_config.json", "vae/config.json"


BUNDLED = BUNDLED_FOLDER / "flowers"


def copy_of_the_model(folder):
    return shutil.copytree(BUNDLED, folder)


def shard_with(folder, name):
    """The file of weights that holds a tensor."""
    (index,) = folder.glob("*.safetensors.index.json")
    return folder / json.loads(index.read_text())["weight_map"][name]


def change(path, name, factor):
    """Multiply one tensor of a file of weights."""
    tensors = safetensors.torch.load_file(path)
    tensors[name] = tensors[name].float() * factor
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def configured(folder, part, **values):
    """A copy of the bundled model with some values of a config changed."""
    copy_of_the_model(folder)
    path = folder / part
    path.write_text(json.dumps(json.loads(path.read_text()) | values))

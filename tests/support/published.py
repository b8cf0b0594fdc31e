"""Checkpoints in the layouts in which Stable Diffusion is published, with random weights.

The configurations are those of the package, the names and files those of the uploads: text encoders
with the prefix `text_model.` and a `position_ids` buffer, the autoencoders of 1.x and 2.x with the
old names of attention weights, a safety checker that model_index.json asks for. A miniature has the
published blocks and the published vocabulary, but narrow layers. Every tensor is drawn under a seed
of its own, as float16: all layouts of a checkpoint hold the same numbers, in either precision.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import nulltext
from support.single_files import single_file

State = dict[str, Tensor]

KINDS = ("sd14", "sd15", "sd21", "sd21b", "sdxl")
CONFIGS = Path(nulltext.__path__[0]) / "models" / "published"
MAX_TOKENS = 77

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names in diffusers until 0.17."""

NOT_OF_TEXT_MODELS = ("architectures", "torch_dtype", "transformers_version", "_name_or_path")


def parts_of(kind: str) -> list[str]:
    """The folders of a kind that have weights which the model uses."""
    return sorted(path.parent.name for path in (CONFIGS / kind).glob("*/config.json"))


def config_of(kind: str, part: str, *, mini: bool) -> dict[str, Any]:
    """The published configuration, or one of the same architecture that is small."""
    config = json.loads((CONFIGS / kind / part / "config.json").read_text())
    return config | NARROW[part](kind, config) if mini else config


def _narrow_unet(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    levels = len(config["block_out_channels"])
    small = {"block_out_channels": [32, 64, 96, 96][:levels], "layers_per_block": 1}
    small["sample_size"] = 8
    if isinstance(config["attention_head_dim"], list):
        small["attention_head_dim"] = [2, 4, 4, 4][:levels]
    if kind != "sdxl":
        return small | {"cross_attention_dim": 48}
    pooled_and_sizes = 80 + 6 * config["addition_time_embed_dim"]
    return small | {
        "cross_attention_dim": 48 + 80,
        "transformer_layers_per_block": [1, 1, 2],
        "projection_class_embeddings_input_dim": pooled_and_sizes,
    }


def _narrow_vae(_: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"block_out_channels": [32, 64, 96, 96], "layers_per_block": 1, "sample_size": 64}


def _narrow_text(width: int, layers: int) -> dict[str, int]:
    small = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    return small | {"num_attention_heads": 4, "num_hidden_layers": layers}


NARROW = {
    "unet": _narrow_unet,
    "vae": _narrow_vae,
    # 2.x keeps its depth: diffusers knows the unused layer of a single file by its number, 23
    "text_encoder": lambda kind, _: _narrow_text(48, 23 if kind.startswith("sd2") else 3),
    "text_encoder_2": lambda *_: _narrow_text(80, 10),
}


def shapes_of(part: str, config: dict[str, Any]) -> dict[str, torch.Size]:
    """Of every weight of a component, under its name in the libraries' classes."""
    with torch.device("meta"):
        if part == "unet":
            module = UNet2DConditionModel.from_config(config)
        elif part == "vae":
            module = AutoencoderKL.from_config(config)
        else:
            own = {k: v for k, v in config.items() if k not in NOT_OF_TEXT_MODELS}
            classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
            module = classes[part](CLIPTextConfig(**own))
    state = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if not part.startswith("text_encoder"):
        return state
    prefix, outside = "text_model.", ("text_model.", "text_projection.")
    return {n if n.startswith(outside) else prefix + n: shape for n, shape in state.items()}


def drawn(name: str, shape: torch.Size) -> Tensor:
    """Draw a weight of this name, float16, as wide as PyTorch's own layers begin.

    Scales are near 1 and offsets near 0, but none is exactly that: two that are mixed up show.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.empty(shape, dtype=torch.float16)
    if len(shape) > 1:
        bound = shape[1:].numel() ** -0.5
        return values.uniform_(-bound, bound, generator=generator)
    middle = 1.0 if name.endswith("weight") else 0.0
    return values.uniform_(middle - 0.1, middle + 0.1, generator=generator)


def weights(kind: str, *, mini: bool = True) -> Iterator[tuple[str, State]]:
    """The components of a checkpoint one after another, under the libraries' own names."""
    for part in parts_of(kind):
        shapes = shapes_of(part, config_of(kind, part, mini=mini))
        yield part, {name: drawn(f"{kind}/{part}/{name}", size) for name, size in shapes.items()}


def published(part: str, state: State, *, old_attention: bool) -> State:
    """A component under the names that its upload has."""
    if part.startswith("text_encoder"):
        return state | {"text_model.embeddings.position_ids": torch.arange(MAX_TOKENS)[None]}
    if part == "unet" or not old_attention:
        return state
    renamed = {}
    for name, tensor in state.items():
        if "mid_block.attentions.0." in name:
            for new, old in OLD_ATTENTION.items():
                name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = tensor
    return renamed


def write_folder(
    kind: str,
    out: Path,
    *,
    mini: bool = True,
    dtype: torch.dtype = torch.float16,
    variant: str | None = None,
    shards: int = 1,
) -> Path:
    """Write a folder of diffusers' format; returns it.

    Args:
        variant: "fp16" gives `*.fp16.safetensors`.
        shards: files of each component. Several come from libraries newer than the old names of
            attention weights.
    """
    write_configs(kind, out, mini=mini)
    for part, state in weights(kind, mini=mini):
        state = published(part, state, old_attention=kind != "sdxl" and shards == 1)
        _write_weights(out / part, _cast(state, dtype), variant, shards)
    if "safety_checker" in json.loads((out / "model_index.json").read_text()):
        (out / "safety_checker").mkdir()
        (out / "safety_checker" / "config.json").write_text("{}")
        _write_weights(out / "safety_checker", {"empty": torch.zeros(1)}, variant, 1)
    return out


def write_configs(kind: str, out: Path, *, mini: bool) -> None:
    """Write all of a checkpoint but its weights."""
    shutil.copytree(CONFIGS / kind, out)
    for tokenizer in out.glob("tokenizer*"):
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(CONFIGS / "clip" / name, tokenizer)
    for part in parts_of(kind):
        config = config_of(kind, part, mini=mini)
        (out / part / "config.json").write_text(json.dumps(config, indent=2))


def _cast(state: State, dtype: torch.dtype) -> State:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}


def _write_weights(folder: Path, state: State, variant: str | None, shards: int) -> None:
    own = ("unet", "vae")
    stem = "diffusion_pytorch_model" if folder.name in own else "model"
    infix = f".{variant}" if variant else ""
    if shards == 1:
        save_file(state, folder / f"{stem}{infix}.safetensors", metadata={"format": "pt"})
        return
    where = {}
    for number in range(shards):
        file = f"{stem}{infix}-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(state.items())[number::shards])
        save_file(part, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / f"{stem}.safetensors.index{infix}.json").write_text(json.dumps(index, indent=2))


def write_linspace(folder: Path, out: Path) -> Path:
    """Link a folder's files under a DPM++ 2M scheduler, configured and saved by the library."""
    shutil.copytree(folder, out, copy_function=os.link)
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        (out / name).unlink()  # it is the other folder's, too
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    scheduler = DPMSolverMultistepScheduler.from_config(config, timestep_spacing="linspace")
    scheduler.save_pretrained(out / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DPMSolverMultistepScheduler"]
    (out / "model_index.json").write_text(json.dumps(index, indent=2))
    return out


def write_single_file(
    kind: str, out: Path, *, mini: bool = True, dtype: torch.dtype = torch.float16
) -> Path:
    """Write all components into one `.safetensors` of LDM names; returns it."""
    state = single_file(kind, dict(weights(kind, mini=mini)))
    out.parent.mkdir(exist_ok=True)
    save_file(_cast(state, dtype), out, metadata={"format": "pt"})
    return out

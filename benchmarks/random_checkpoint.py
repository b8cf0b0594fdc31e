"""Checkpoints of published sizes with random weights, made where they are used.

Nothing is read but configs (the folders of a published checkpoint without its weights) and CLIP's
vocabulary: modules are built on the meta device, then filled on the device in their precision.
Matrices and kernels are normal with variance 1 / fan-in, norms are ones and biases zeros, so that
numbers stay of the order of 1 however deep the network is.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

import nulltext

TEXT = ("text_encoder", "text_encoder_2")
NARROW_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}


def random_model(
    configs: Path, kind: str, device: str, dtype: torch.dtype, *, small: bool = False
) -> nulltext.LatentDiffusion:
    """A model of a published size.

    Args:
        configs: has the folders `kind` and clip (vocab.json, merges.txt).
        dtype: of UNet and text encoders; the autoencoder is float32, as after `load`.
        small: the same layout with narrow widths, at 128 px.
    """
    folder = configs / kind
    draw = torch.Generator(device).manual_seed(0)
    parts = {
        path.parent.name: _module(path, small)
        for path in sorted(folder.glob("*/config.json"))
        if path.parent.name in ("unet", "vae", *TEXT)
    }
    for name, module in parts.items():
        _fill(module, device, torch.float32 if name == "vae" else dtype, draw)
    return nulltext.from_pipe(_pipeline(folder, configs / "clip", parts))


def _module(path: Path, small: bool) -> Any:
    """One component on the meta device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    name, config = path.parent.name, json.loads(path.read_text())
    config.pop("_diffusers_version", None)  # an old one makes pipelines set the size to 512 px
    if small:
        config |= _narrow(name, config)
    with torch.device("meta"):
        if name == "unet":
            return UNet2DConditionModel.from_config(config)
        if name == "vae":
            return AutoencoderKL.from_config(config)
        kind = CLIPTextModel if name == "text_encoder" else CLIPTextModelWithProjection
        skip = {"architectures", "torch_dtype", "transformers_version", "_name_or_path"}
        return kind(CLIPTextConfig(**{k: v for k, v in config.items() if k not in skip}))


def _narrow(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Widths, heads and depth of the same layout, small."""
    if name == "vae":
        return {"block_out_channels": [32] * len(config["block_out_channels"])}
    if name in TEXT:
        return NARROW_TEXT | ({"projection_dim": 64} if "projection_dim" in config else {})
    blocks = config["block_out_channels"]
    found = {"block_out_channels": [32] * len(blocks), "layers_per_block": 1, "sample_size": 16}
    if config.get("addition_embed_type") != "text_time":
        return found | {"cross_attention_dim": 64, "attention_head_dim": 4}
    added = 64 + 6 * config["addition_time_embed_dim"]
    return found | {
        "cross_attention_dim": 128,
        "attention_head_dim": 4,
        "transformer_layers_per_block": 1,
        "projection_class_embeddings_input_dim": added,
    }


@torch.no_grad()
def _fill(module: Any, device: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    """Give a module of the meta device weights, in place."""
    positions = {name: len(b[0]) for name, b in module.named_buffers() if "position_ids" in name}
    module.to(dtype).to_empty(device=device)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 1.0 / math.sqrt(parameter[0].numel()), generator=draw)
    for name, parameter in module.named_parameters():
        if parameter.ndim <= 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    for name, buffer in module.named_buffers():
        if name in positions:
            buffer.copy_(torch.arange(positions[name], device=device)[None])


def _pipeline(folder: Path, vocabulary: Path, parts: dict[str, Any]) -> Any:
    import diffusers

    index = json.loads((folder / "model_index.json").read_text())
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    parts = parts | {"scheduler": diffusers.DDIMScheduler.from_config(config)}
    for path in folder.glob("tokenizer*"):
        parts[path.name] = _tokenizer(path, vocabulary)
    if index["_class_name"] == "StableDiffusionXLPipeline":
        return diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    return diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _tokenizer(folder: Path, vocabulary: Path) -> Any:
    """CLIP's vocabulary under a checkpoint's settings."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as whole:
        for path in (*folder.iterdir(), *vocabulary.iterdir()):
            shutil.copy(path, whole)
        return CLIPTokenizer.from_pretrained(whole)

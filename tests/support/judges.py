"""Small random-weight networks that look at pictures, made with the library's own classes."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    ViTConfig,
    ViTModel,
)

from nulltext.evaluation.pie_metrics import SqueezeLpips
from support.vocabularies import trained

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A complete CLIP with its processor; pictures of 32 x 32, prompts of 24 tokens."""
    tokenizer = trained("<|endoftext|>", 24)
    torch.manual_seed(seed)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 24}
    text |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    small = {**SMALL, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=text | small,
        vision_config={"image_size": 32, "patch_size": 8} | small,
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_dino(folder: Path, patch: int = 32) -> Path:
    """A ViT of two layers, three heads, made for pictures of 224 x 224."""
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=224,
        patch_size=patch,
        initializer_range=0.4,  # so that positions and pixels matter
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_lpips(path: Path) -> Path:
    """Weights of LPIPS on SqueezeNet, those of the distance at least 0."""
    draw = torch.Generator().manual_seed(2)
    weights = {}
    for name, parameter in SqueezeLpips().state_dict().items():
        shape = parameter.shape
        fan = max(1, torch.Size(shape[1:]).numel())
        weight = torch.randn(shape, generator=draw) * (2 / fan) ** 0.5
        weights[name] = weight.abs() if name.startswith("lin") else weight
    safetensors.torch.save_file(weights, path)
    return path

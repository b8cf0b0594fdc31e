"""Which layer a key of a LoRA file means, in each of the namings that are in use.

    diffusers   unet.down_blocks.0…attn1.to_q.lora.down.weight
                unet.down_blocks.0…attn1.processor.to_q_lora.down.weight
    PEFT        base_model.model.down_blocks.0…attn1.to_q.lora_A.weight
    kohya       lora_unet_down_blocks_0…attn1_to_q.lora_down.weight
    LDM         lora_unet_input_blocks_1_1…attn1_to_q.lora_down.weight (kohya's of SDXL)

A key is split into its stem and which factor it is; stems are compared with the layers that the
model has, with all separators as underscores, so that a key means a layer or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

FACTOR = re.compile(
    r"(.+?)[._]lora(?:[._]|_linear_layer\.)(down|up|mid|A|B)(?:\.[\w-]+)?\.weight", re.DOTALL
)
ALPHA = re.compile(r"(.+?)(?:[._]lora(?:_linear_layer)?)?\.alpha", re.DOTALL)
ROLES = {"A": "down", "B": "up"}

PREFIXES = {
    "base_model.model.": None,
    "lora_unet_": "unet",
    "unet.": "unet",
    "diffusion_model.": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
"""What precedes a layer's name, and the component that it says."""

OLD_PROJECTIONS = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "out_proj": "to_out",
}
"""Projections of text encoders as the first LoRAs of diffusers name them."""

LDM_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
LDM_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
BLOCK = re.compile(
    r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?"
    r"\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def split_key(key: str) -> tuple[str, str] | None:
    """A key's stem and role: "down", "up", "mid" or "alpha"; None for any other key."""
    match = FACTOR.fullmatch(key)
    if match:
        return match[1], ROLES.get(match[2], match[2])
    match = ALPHA.fullmatch(key)
    return (match[1], "alpha") if match else None


def split_stem(stem: str) -> tuple[str, str]:
    """The component that a stem names and its layer, separators as underscores.

    A stem without a component's name is the UNet's, or a text encoder's by how it begins.
    """
    component, rest = None, stem
    while True:
        prefix = next((prefix for prefix in PREFIXES if rest.startswith(prefix)), None)
        if prefix is None:
            break
        component, rest = PREFIXES[prefix] or component, rest.removeprefix(prefix)
    if component is None:
        component = "text_encoder" if rest.startswith("text_model") else "unet"
    return component, _flat(rest.replace(".processor.", "."))


def layer_names(component: str, module: nn.Module) -> dict[str, str]:
    """Paths of a component's layers, by each name that files have for them."""
    paths = [
        path
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and getattr(layer, "groups", 1) == 1
    ]
    names = {_flat(path): path for path in paths}
    others = _unet_names(module.config, paths) if component == "unet" else _text_names(paths)
    return dict(others) | names


def _flat(path: str) -> str:
    flat = path.replace(".", "_")
    return flat.removeprefix("text_model_")  # transformers has it for some encoders only


def _text_names(paths: list[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        head, _, last = path.rpartition(".")
        if last in OLD_PROJECTIONS:
            yield _flat(f"{head}.{OLD_PROJECTIONS[last]}"), path


def _unet_names(config: Any, paths: list[str]) -> Iterator[tuple[str, str]]:
    layers = config.layers_per_block
    per_block = layers + 1 if isinstance(layers, int) else None
    crossed = {path.split(".attentions.")[0] for path in paths if ".attentions." in path}
    for path in paths:
        names = [path, *_ldm_names(path, per_block, crossed)]
        for name in names:
            yield _flat(name.removesuffix(".0") if name.endswith("to_out.0") else name), path
            yield _flat(name), path


def _ldm_names(path: str, per_block: int | None, crossed: set[str]) -> Iterator[str]:
    """The name of a UNet's layer in the original code; none where blocks are of unequal depth.

    Args:
        per_block: entries of each block there: its layers, and a sampler or one layer more.
        crossed: blocks with attention, which is an entry's second part.
    """
    if path in LDM_OUTSIDE:
        yield LDM_OUTSIDE[path]
    match = BLOCK.fullmatch(path)
    if match is None or per_block is None:
        return
    block, number, kind, index, rest = match.groups()
    first, place = int(number or 0) * per_block, int(index)
    rest = LDM_RESNET.get(rest, rest) if kind == "resnets" else rest
    inner = int(kind == "attentions")
    if block == "mid_block":
        yield f"middle_block.{1 if inner else 2 * place}.{rest}"
    elif kind == "downsamplers":
        yield f"input_blocks.{first + per_block}.0.op"
    elif kind == "upsamplers":
        inner = 2 if f"up_blocks.{number}" in crossed else 1
        yield f"output_blocks.{first + per_block - 1}.{inner}.{rest}"
    elif block == "down_blocks":
        yield f"input_blocks.{1 + first + place}.{inner}.{rest}"
    else:
        yield f"output_blocks.{first + place}.{inner}.{rest}"


def by_component(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, str]]:
    """`layer_names` of the UNet and the text encoders among a model's modules."""
    return {
        name: layer_names(name, module)
        for name, module in modules.items()
        if name in set(PREFIXES.values())
    }

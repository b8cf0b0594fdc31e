"""Transformers of Stable Diffusion 3 and FLUX under the names of their authors' code, in one file.

Written from those layouts by hand, in the direction opposite to that of the package and of
diffusers: query, key and value are put together again, and shift before scale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from support.single_files import under, vae_state

State = dict[str, Tensor]

SD3_NAMES = {
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed.pos_embed": "pos_embed",
    "time_text_embed.timestep_embedder.linear_": "t_embedder.mlp.",
    "time_text_embed.text_embedder.linear_": "y_embedder.mlp.",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
SD3_TOGETHER = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
FLUX_NAMES = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
FLUX_SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}
FLUX_TOGETHER = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
SINGLE_TOGETHER = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}

BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)")


def transformer_state(network: Any) -> State:
    """A transformer under its authors' names."""
    blocks: dict[tuple[str, str], State] = {}
    outside = {}
    for name, tensor in network.state_dict().items():
        match = BLOCK.fullmatch(name)
        if match:
            blocks.setdefault((match[1], match[2]), {})[match[3]] = tensor
        else:
            outside[name] = swapped(tensor) if name.startswith("norm_out") else tensor
    if hasattr(network, "single_transformer_blocks"):
        found = {begun(name, FLUX_NAMES): tensor for name, tensor in outside.items()}
        for (kind, number), block in blocks.items():
            prefix, names, together = "double", FLUX_DOUBLE, FLUX_TOGETHER
            if kind.startswith("single"):
                prefix, names, together = "single", FLUX_SINGLE, SINGLE_TOGETHER
            found |= under(f"{prefix}_blocks.{number}.", block_state(block, names, together))
        return found
    found = {begun(name, SD3_NAMES): tensor for name, tensor in outside.items()}
    # layers 1 and 2 here, 0 and 2 there
    found = {name.replace("embedder.mlp.1", "embedder.mlp.0"): t for name, t in found.items()}
    last = blocks["transformer_blocks", str(len(network.transformer_blocks) - 1)]
    last |= {n: swapped(t) for n, t in last.items() if n.startswith("norm1_context")}
    for (_, number), block in blocks.items():
        found |= under(f"joint_blocks.{number}.", block_state(block, SD3_BLOCK, SD3_TOGETHER))
    return found


def block_state(
    block: State, names: Mapping[str, str], together: Mapping[str, tuple[str, ...]]
) -> State:
    """One block, with what is one layer there put together."""
    apart = {part for parts in together.values() for part in parts}
    found = {begun(n, names): t for n, t in block.items() if n.rpartition(".")[0] not in apart}
    for new, parts in together.items():
        for leaf in ("weight", "bias"):
            rows = [block[f"{part}.{leaf}"] for part in parts if f"{part}.{leaf}" in block]
            if rows:
                found[f"{new}.{leaf}"] = torch.cat(rows)
    return found


def begun(name: str, names: Mapping[str, str]) -> str:
    old = max((old for old in names if name.startswith(old)), key=len, default="")
    return names.get(old, "") + name.removeprefix(old)


def swapped(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def whole_file(pipe: Any, *, prefix: str = "model.diffusion_model.", texts: bool = True) -> State:
    """A checkpoint of Stable Diffusion 3 in one file, as it was published."""
    state = under(prefix, transformer_state(pipe.transformer))
    state |= under("first_stage_model.", vae_state(pipe.vae.state_dict()))
    if not texts:
        return state
    for part, name in (("", "clip_l"), ("_2", "clip_g"), ("_3", "t5xxl")):
        encoder = getattr(pipe, f"text_encoder{part}", None)
        if encoder is None:
            continue
        own = dict(encoder.state_dict())
        if name != "t5xxl":
            own = {
                n if n.startswith(("text_model.", "text_projection")) else f"text_model.{n}": t
                for n, t in own.items()
            }
        else:
            own.pop("encoder.embed_tokens.weight", None)
        if name == "clip_l":
            own.pop("text_projection.weight", None)
        state |= under(f"text_encoders.{name}.transformer.", own)
    return state

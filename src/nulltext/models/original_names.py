"""Names of a transformer's layers in the code of its authors, by which files are shared.

Stability AI's code (Stable Diffusion 3) and Black Forest Labs' (FLUX.1) keep together what
diffusers keeps apart. With W the weight of one of their layers, of `of` equal parts of rows,

    diffusers' W' = rows first/of … last/of of W

as of query, key and value in one matrix. Where a layer makes shift and scale at once, diffusers has
scale before shift: W' = W with its halves swapped. Single files and LoRAs are read by these names.
Source: the layouts of `sd3_impls.py` (sd3.5) and `model.py` (flux), as diffusers converts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Origin(NamedTuple):
    """Where a layer's weight is in the original code."""

    name: str
    """Of the layer there."""
    first: int = 0
    last: int = 1
    of: int = 1
    """Parts of equal size that its rows have."""
    swapped: bool = False
    """Whether its halves stand in the other order."""

    def rows(self, weight: Tensor) -> Tensor:
        """Take the layer's rows out of the original's [n, …]."""
        if self.swapped:
            return torch.cat(weight.chunk(2)[::-1])
        size = len(weight) // self.of
        return weight[self.first * size : self.last * size]


def _of_queries(here: Mapping[str, str]) -> Iterator[tuple[str, Origin]]:
    for names, there in here.items():
        for part, name in enumerate(names.split()):
            yield name, Origin(there, part, part + 1, 3)


def _whole(here: Mapping[str, str]) -> Iterator[tuple[str, Origin]]:
    return ((name, Origin(there)) for name, there in here.items())


JOINT, X, CONTEXT = "transformer_blocks.N", "joint_blocks.N.x_block", "joint_blocks.N.context_block"

STABLE_DIFFUSION_3: Mapping[str, Origin] = dict(
    [
        *_whole(
            {
                "pos_embed.proj": "x_embedder.proj",
                "context_embedder": "context_embedder",
                "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
                "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
                "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
                "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
                "proj_out": "final_layer.linear",
                f"{JOINT}.norm1.linear": f"{X}.adaLN_modulation.1",
                f"{JOINT}.norm1_context.linear": f"{CONTEXT}.adaLN_modulation.1",
                f"{JOINT}.attn.norm_q": f"{X}.attn.ln_q",
                f"{JOINT}.attn.norm_k": f"{X}.attn.ln_k",
                f"{JOINT}.attn.norm_added_q": f"{CONTEXT}.attn.ln_q",
                f"{JOINT}.attn.norm_added_k": f"{CONTEXT}.attn.ln_k",
                f"{JOINT}.attn.to_out.0": f"{X}.attn.proj",
                f"{JOINT}.attn.to_add_out": f"{CONTEXT}.attn.proj",
                f"{JOINT}.attn2.norm_q": f"{X}.attn2.ln_q",
                f"{JOINT}.attn2.norm_k": f"{X}.attn2.ln_k",
                f"{JOINT}.attn2.to_out.0": f"{X}.attn2.proj",
                f"{JOINT}.ff.net.0.proj": f"{X}.mlp.fc1",
                f"{JOINT}.ff.net.2": f"{X}.mlp.fc2",
                f"{JOINT}.ff_context.net.0.proj": f"{CONTEXT}.mlp.fc1",
                f"{JOINT}.ff_context.net.2": f"{CONTEXT}.mlp.fc2",
            }
        ),
        *_of_queries(
            {
                f"{JOINT}.attn.to_q {JOINT}.attn.to_k {JOINT}.attn.to_v": f"{X}.attn.qkv",
                f"{JOINT}.attn.add_q_proj {JOINT}.attn.add_k_proj {JOINT}.attn.add_v_proj": (
                    f"{CONTEXT}.attn.qkv"
                ),
                f"{JOINT}.attn2.to_q {JOINT}.attn2.to_k {JOINT}.attn2.to_v": f"{X}.attn2.qkv",
            }
        ),
        ("norm_out.linear", Origin("final_layer.adaLN_modulation.1", swapped=True)),
    ]
)

DOUBLE, SINGLE = "double_blocks.N", "single_blocks.N"
ALONE = "single_transformer_blocks.N"

FLUX: Mapping[str, Origin] = dict(
    [
        *_whole(
            {
                "x_embedder": "img_in",
                "context_embedder": "txt_in",
                "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
                "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
                "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
                "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
                "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
                "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
                "proj_out": "final_layer.linear",
                f"{JOINT}.norm1.linear": f"{DOUBLE}.img_mod.lin",
                f"{JOINT}.norm1_context.linear": f"{DOUBLE}.txt_mod.lin",
                f"{JOINT}.attn.norm_q": f"{DOUBLE}.img_attn.norm.query_norm",
                f"{JOINT}.attn.norm_k": f"{DOUBLE}.img_attn.norm.key_norm",
                f"{JOINT}.attn.norm_added_q": f"{DOUBLE}.txt_attn.norm.query_norm",
                f"{JOINT}.attn.norm_added_k": f"{DOUBLE}.txt_attn.norm.key_norm",
                f"{JOINT}.attn.to_out.0": f"{DOUBLE}.img_attn.proj",
                f"{JOINT}.attn.to_add_out": f"{DOUBLE}.txt_attn.proj",
                f"{JOINT}.ff.net.0.proj": f"{DOUBLE}.img_mlp.0",
                f"{JOINT}.ff.net.2": f"{DOUBLE}.img_mlp.2",
                f"{JOINT}.ff_context.net.0.proj": f"{DOUBLE}.txt_mlp.0",
                f"{JOINT}.ff_context.net.2": f"{DOUBLE}.txt_mlp.2",
                f"{ALONE}.norm.linear": f"{SINGLE}.modulation.lin",
                f"{ALONE}.attn.norm_q": f"{SINGLE}.norm.query_norm",
                f"{ALONE}.attn.norm_k": f"{SINGLE}.norm.key_norm",
                f"{ALONE}.proj_out": f"{SINGLE}.linear2",
            }
        ),
        *_of_queries(
            {
                f"{JOINT}.attn.to_q {JOINT}.attn.to_k {JOINT}.attn.to_v": f"{DOUBLE}.img_attn.qkv",
                f"{JOINT}.attn.add_q_proj {JOINT}.attn.add_k_proj {JOINT}.attn.add_v_proj": (
                    f"{DOUBLE}.txt_attn.qkv"
                ),
            }
        ),
        # Query, key, value and an MLP four times as wide, in one layer.
        (f"{ALONE}.attn.to_q", Origin(f"{SINGLE}.linear1", 0, 1, 7)),
        (f"{ALONE}.attn.to_k", Origin(f"{SINGLE}.linear1", 1, 2, 7)),
        (f"{ALONE}.attn.to_v", Origin(f"{SINGLE}.linear1", 2, 3, 7)),
        (f"{ALONE}.proj_mlp", Origin(f"{SINGLE}.linear1", 3, 7, 7)),
        ("norm_out.linear", Origin("final_layer.adaLN_modulation.1", swapped=True)),
    ]
)

XLABS: Mapping[str, Origin] = dict(
    [
        *_whole(
            {
                f"{JOINT}.attn.to_out.0": f"{DOUBLE}.proj1",
                f"{JOINT}.attn.to_add_out": f"{DOUBLE}.proj2",
                f"{ALONE}.proj_out": f"{SINGLE}.proj",
            }
        ),
        *_of_queries(
            {
                f"{JOINT}.attn.to_q {JOINT}.attn.to_k {JOINT}.attn.to_v": f"{DOUBLE}.qkv1",
                f"{JOINT}.attn.add_q_proj {JOINT}.attn.add_k_proj {JOINT}.attn.add_v_proj": (
                    f"{DOUBLE}.qkv2"
                ),
                f"{ALONE}.attn.to_q {ALONE}.attn.to_k {ALONE}.attn.to_v": f"{SINGLE}.qkv",
            }
        ),
    ]
)
"""Layers of FLUX as LoRAs of XLabs' trainer name them."""

TABLES = {
    "SD3Transformer2DModel": (STABLE_DIFFUSION_3,),
    "FluxTransformer2DModel": (FLUX, XLABS),
}
"""By the network's class: what files have, then other names that LoRAs have."""

NUMBER = re.compile(r"(?<=blocks\.)\d+")
SCALES = ("query_norm", "key_norm")
"""Layers whose weight is called a scale."""
POSITIONS = {"pos_embed.pos_embed": "pos_embed"}
"""Weights that belong to no layer."""


def origins_of(network: nn.Module, path: str) -> list[Origin]:
    """List where a layer of a transformer is in the original code; [] where it is not known."""
    number = NUMBER.search(path)
    found = []
    for table in TABLES.get(type(network).__name__, ()):
        origin = table.get(NUMBER.sub("N", path, count=1))
        if origin is not None:
            name = origin.name.replace("N", number[0], 1) if number else origin.name
            # Nothing follows Stable Diffusion 3's last context block: its norm is a final layer's.
            final = table is STABLE_DIFFUSION_3 and path == _last_norm(network)
            swapped = origin.swapped or final
            found.append(origin._replace(name=name, swapped=swapped))
    return found


def _last_norm(network: Any) -> str:
    return f"transformer_blocks.{len(network.transformer_blocks) - 1}.norm1_context.linear"


@dataclass(frozen=True)
class OriginalWeights(Mapping[str, Tensor]):
    """A transformer's weights by their names in diffusers, read from an original file."""

    tensors: Mapping[str, Tensor]
    places: Mapping[str, tuple[str, Origin]]
    """A weight's tensor in the file, and where it is in there."""

    @classmethod
    def of(cls, network: Any, tensors: Mapping[str, Tensor], prefix: str) -> OriginalWeights:
        """Find a network's weights among tensors whose names begin with a prefix."""
        places = {}
        for name in network.state_dict():
            path, _, leaf = name.rpartition(".")
            for origin in origins_of(network, path)[:1]:
                kept = "scale" if origin.name.endswith(SCALES) else leaf
                places[name] = (f"{prefix}{origin.name}.{kept}", origin)
            if name in POSITIONS:
                places[name] = (prefix + POSITIONS[name], Origin(POSITIONS[name]))
        return cls(tensors, {name: at for name, at in places.items() if at[0] in tensors})

    def __getitem__(self, name: str) -> Tensor:
        key, origin = self.places[name]
        return origin.rows(self.tensors[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

"""Convert published ClipCap weights to a captioner's folder.

    clip_project.model.0/2.*                     the MLP
    clip_project.linear.*, .prefix_const,
    clip_project.transformer.layers.N.*          the transformer
    gpt.*                                        GPT-2, without old masks (attn.bias)

Sizes are read off the weights. CLIP and the tokenizer are not in the file: they come from
transformers folders. This is the only place that opens a file of torch.save, and only its tensors:
`weights_only=True` refuses code.
Source: the published code and weights of Mokady, Hertz and Bermano 2021 (ClipCap).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nulltext.captioning.captioner import (
    CLIP,
    Captioner,
    CaptionModel,
    Mapper,
    MlpMapper,
    MlpSettings,
    TransformerMapper,
    TransformerSettings,
)
from nulltext.captioning.folder import (
    PREPROCESSOR,
    check_networks,
    load_tokenizer,
    read_preprocessing,
)
from nulltext.errors import ModelError
from nulltext.models.checkpoint import Checkpoint, first_line, quiet_libraries

OLD_BUFFERS = re.compile(r"gpt\.transformer\.h\.\d+\.attn\.(masked_)?bias")
"""Masks that old versions of transformers kept among the weights."""
TIED = ("gpt.transformer.wte.weight", "gpt.lm_head.weight")
"""GPT-2's table of input tokens and its output layer, which share their weights."""
PUBLISHED_HEADS = 8
"""Attention heads of the transformer, the one size that its weights do not show."""
SHOWN = 3
"""Weights that a message names."""


def convert(weights: Path, *, clip: Path, gpt2: Path, name: str) -> Captioner:
    """Make a captioner from a published `.pt` of weights.

    Args:
        clip: transformers folder of the CLIP model that it was trained with.
        gpt2: transformers folder of GPT-2, for its settings and its tokenizer.

    Raises:
        ModelError: a file cannot be read, a weight is missing, left over or of another shape, or
            CLIP is another than the weights were trained with.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    tensors = read_published(weights)
    mapper = _empty_mapper(tensors, weights)
    settings = Checkpoint.at(gpt2).json("config.json")
    if settings.get("model_type") != "gpt2":
        raise ModelError(f"'{gpt2}' is no GPT-2 (model_type {settings.get('model_type')!r}).")
    with quiet_libraries():
        language = GPT2LMHeadModel(GPT2Config.from_dict(settings))
    _fill(nn.ModuleDict({"clip_project": mapper, "gpt": language}), tensors, weights)
    with quiet_libraries():
        vision = Checkpoint.at(clip.parent).component(clip.name, CLIP)
        tokenizer = load_tokenizer("GPT2Tokenizer", gpt2)
    unit = isinstance(mapper, TransformerMapper)  # as in the published notebooks
    model = CaptionModel(vision, mapper, language, unit_features=unit)
    model.requires_grad_(False).eval()
    preprocessing = read_preprocessing(clip / PREPROCESSOR)
    check_networks(model, preprocessing, clip)
    return Captioner(name, model, tokenizer, preprocessing)


def read_published(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a published file by name, without old buffers.

    Raises:
        ModelError: it cannot be read, or holds something else than named tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files and refused code raise many kinds
        raise ModelError(
            f"'{path}' cannot be read as weights ({first_line(error)}); get the published file."
        ) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ModelError(f"'{path}' is no table of weights; get the published ClipCap file.")
    return {name: value for name, value in content.items() if not OLD_BUFFERS.fullmatch(name)}


def _empty_mapper(tensors: Mapping[str, Tensor], path: Path) -> Mapper:
    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise ModelError(f"'{path}' lacks the weight {name}; get the published ClipCap file.")
        return tuple(tensors[name].shape)

    width = shape("gpt.transformer.wte.weight")[-1]
    if "clip_project.model.0.weight" in tensors:
        hidden, features = shape("clip_project.model.0.weight")
        made = shape("clip_project.model.2.weight")[0]
        return MlpMapper(MlpSettings(features, hidden, made // width, width))
    made, features = shape("clip_project.linear.weight")
    numbers = [re.match(r"clip_project\.transformer\.layers\.(\d+)\.", name) for name in tensors]
    return TransformerMapper(
        TransformerSettings(
            features=features,
            clip_length=made // width,
            prefix_length=shape("clip_project.prefix_const")[0],
            width=width,
            layers=1 + max((int(found[1]) for found in numbers if found), default=0),
            heads=PUBLISHED_HEADS,
            hidden=shape("clip_project.transformer.layers.0.mlp.fc1.weight")[0],
        )
    )


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    wanted = module.state_dict()
    missing, extra = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    if missing:
        raise ModelError(f"'{path}' lacks the weights {_some(missing)}; get the published file.")
    if extra:
        raise ModelError(
            f"'{path}' has weights that ClipCap has not, {_some(extra)}; it is of another kind."
        )
    for name, weight in wanted.items():
        if weight.shape != tensors[name].shape:
            raise ModelError(
                f"{name} of '{path}' has the shape {list(tensors[name].shape)}, and "
                f"{list(weight.shape)} was expected; pass the GPT-2 that it was trained with."
            )
    if not torch.equal(*(tensors[name] for name in TIED)):
        raise ModelError(f"{' and '.join(TIED)} of '{path}' differ; they are one in GPT-2.")
    module.load_state_dict(tensors)


def _some(names: Collection[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(sorted(names)[:SHOWN]) + (f" and {more} more" if more > 0 else "")

"""Published ClipCap weights, once, to a captioner's folder.

    clip_project.model.0/2.*                     the MLP
    clip_project.linear.*, .prefix_const,
    clip_project.transformer.layers.N.*          the transformer
    gpt.*                                        GPT-2, without old masks (attn.bias)

Sizes are read off the weights. CLIP and the tokenizer are not in the file: they come from
transformers folders. This is the only place that opens a file of torch.save, and only its tensors:
`weights_only=True` refuses whatever would run code.
Source: the published code and weights of Mokady, Hertz and Bermano 2021 (ClipCap).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nulltext.captioning.captioner import Captioner, CaptionModel
from nulltext.captioning.folder import PREPROCESSOR, check_sight, read_eyes, read_tokenizer
from nulltext.captioning.mapping import (
    Mapper,
    MlpMapper,
    MlpSettings,
    TransformerMapper,
    TransformerSettings,
)
from nulltext.captioning.vision import CLIP
from nulltext.errors import ModelError
from nulltext.models.checkpoint import Checkpoint, first_line, quiet_libraries

MAPPER, GPT = "clip_project.", "gpt."
OLD_BUFFERS = re.compile(r"gpt\.transformer\.h\.\d+\.attn\.(masked_)?bias")
"""Masks that old versions of transformers kept among the weights."""
PUBLISHED_HEADS = 8
"""The one size of the transformer that its weights do not show."""
SHOWN = 3


def convert(weights: Path, *, clip: Path, gpt2: Path, name: str) -> Captioner:
    """A captioner from published weights.

    Args:
        weights: the published `.pt`. clip: transformers folder of the CLIP model that it was
            trained with. gpt2: transformers folder of GPT-2, for its settings and its tokenizer.

    Raises:
        ModelError: a file cannot be read, a weight is missing, left over or of another shape, or
            CLIP is another than the weights were trained with.
    """
    tensors = read_published(weights)
    mapper = _empty_mapper(tensors, weights)
    from transformers import GPT2LMHeadModel

    with quiet_libraries():
        language = GPT2LMHeadModel(_gpt2_config(gpt2))
    parts = {MAPPER + n: t for n, t in mapper.state_dict().items()}
    parts |= {GPT + n: t for n, t in language.state_dict().items()}
    _check_names(tensors, parts, weights)
    with torch.no_grad():
        for key, own in parts.items():
            own.copy_(tensors[key])
    _check_tied(tensors, weights)
    with quiet_libraries():
        eyes_model = Checkpoint.at(clip.parent).component(clip.name, CLIP)
        tokenizer = read_tokenizer("GPT2Tokenizer", gpt2)
    unit = isinstance(mapper, TransformerMapper)  # as in the published notebooks
    model = CaptionModel(eyes_model, mapper, language, unit_features=unit)
    model.requires_grad_(False).eval()
    eyes = read_eyes(clip / PREPROCESSOR)
    check_sight(model, eyes, clip)
    return Captioner(name, model, tokenizer, eyes)


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file by name, without old buffers.

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
    """A mapping network of the sizes that the weights have."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise ModelError(f"'{path}' lacks the weight {name}; get the published ClipCap file.")
        return tuple(tensors[name].shape)

    width = shape("gpt.transformer.wte.weight")[-1]
    if f"{MAPPER}model.0.weight" in tensors:
        hidden, features = shape(f"{MAPPER}model.0.weight")
        made = shape(f"{MAPPER}model.2.weight")[0]
        return MlpMapper(MlpSettings(features, hidden, made // width, width))
    made, features = shape(f"{MAPPER}linear.weight")
    numbers = [re.match(r"clip_project\.transformer\.layers\.(\d+)\.", name) for name in tensors]
    return TransformerMapper(
        TransformerSettings(
            features=features,
            clip_length=made // width,
            prefix_length=shape(f"{MAPPER}prefix_const")[0],
            width=width,
            layers=1 + max((int(found[1]) for found in numbers if found), default=0),
            heads=PUBLISHED_HEADS,
            hidden=shape(f"{MAPPER}transformer.layers.0.mlp.fc1.weight")[0],
        )
    )


def _check_names(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are missing, left over, or of another shape."""
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing:
        raise ModelError(f"'{path}' lacks the weights {_some(missing)}; get the published file.")
    if extra:
        raise ModelError(
            f"'{path}' has weights that ClipCap has not, {_some(extra)}; it is of another kind."
        )
    odd = [name for name in wanted if wanted[name].shape != found[name].shape]
    if odd:
        name = odd[0]
        raise ModelError(
            f"{name} of '{path}' has the shape {list(found[name].shape)}, and "
            f"{list(wanted[name].shape)} was expected; pass the GPT-2 that it was trained with."
        )


def _check_tied(tensors: Mapping[str, Tensor], path: Path) -> None:
    """GPT-2 reads and writes words by one table; two different ones would lose one silently."""
    tables = ("gpt.transformer.wte.weight", "gpt.lm_head.weight")
    if not torch.equal(*(tensors[name] for name in tables)):
        raise ModelError(f"{' and '.join(tables)} of '{path}' differ; they are one in GPT-2.")


def _gpt2_config(folder: Path) -> Any:
    from transformers import GPT2Config

    settings = Checkpoint.at(folder).json("config.json")
    if settings.get("model_type") != "gpt2":
        raise ModelError(f"'{folder}' is no GPT-2 (model_type {settings.get('model_type')!r}).")
    return GPT2Config.from_dict(settings)


def _some(names: Collection[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(sorted(names)[:SHOWN]) + (f" and {more} more" if more > 0 else "")

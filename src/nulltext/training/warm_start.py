"""Beginning from other weights: a checkpoint's, or another model's, also a smaller one's.

A tensor of the same name is copied; where the new one is longer along a dimension, the old one
fills its first corner and the rest stays as it was initialised. The encoder's last layers hold
means above log-variances, so each half is filled by itself.
Source: the idea of Net2Net (Chen et al. 2016), without its wish to keep the function exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nulltext.errors import OptionError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

    from nulltext.models.latent_diffusion import LatentDiffusion

BY_TOKEN = "token_embedding"
"""In the names of tensors whose rows belong to tokens: `warm_start_embeddings` fills them."""

STACKED = ("encoder.conv_out.", "quant_conv.")
"""Tensors of an autoencoder whose rows (and columns) are means, then log-variances."""


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Fill a module from a checkpoint.

    Raises:
        OptionError: the recipe's module is another one.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise OptionError(
            f"The checkpoint '{path}' was made with other settings; train with those, or into "
            "another folder."
        ) from error


@torch.no_grad()
def warm_start(module: nn.Module, old: Mapping[str, Tensor]) -> list[str]:
    """Fill a module's weights from `old` as far as names and shapes allow.

    Returns:
        names of parameters that found nothing and stay as initialised.
    """
    missing = []
    for name, weight in module.named_parameters():
        source = old.get(name)
        if BY_TOKEN in name:
            continue
        if source is None or source.ndim != weight.ndim:
            missing.append(name)
        elif name.startswith(STACKED) and source.shape != weight.shape:
            _fill_halves(weight, source)
        else:
            _fill_corner(weight, source)
    return missing


def _fill_corner(weight: Tensor, source: Tensor) -> None:
    corner = tuple(slice(min(a, b)) for a, b in zip(weight.shape, source.shape, strict=True))
    weight[corner] = source[corner].to(weight)


def _fill_halves(weight: Tensor, source: Tensor) -> None:
    for rows, old_rows in zip(weight.chunk(2), source.chunk(2), strict=True):
        if rows.ndim > 1 and rows.shape[1] == weight.shape[0]:  # quant_conv reads halves as well
            for part, old in zip(rows.chunk(2, dim=1), old_rows.chunk(2, dim=1), strict=True):
                _fill_corner(part, old)
        else:
            _fill_corner(rows, old_rows)


@torch.no_grad()
def warm_start_embeddings(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, origin: LatentDiffusion
) -> None:
    """Give each token the embedding that the same token had; the others keep theirs."""
    new = text_encoder.get_input_embeddings().weight
    encoder: Any = origin.components["text_encoder"]
    old = encoder.get_input_embeddings().weight
    numbers = origin.tokenizer.get_vocab()
    fresh = torch.empty_like(new).copy_(new)
    for token, row in tokenizer.get_vocab().items():
        if token in numbers:
            _fill_corner(fresh[row], old[numbers[token]])
    new.copy_(fresh)

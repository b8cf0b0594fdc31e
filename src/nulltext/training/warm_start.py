"""Beginning from other weights: a checkpoint's, or another model's, also a smaller one's.

A tensor of the same name is copied; where the new one is longer along a dimension, the old one
fills its first corner; what old outputs would read from new inputs is 0, and the rest stays as it
was initialised. The encoder's last layers hold means above log-variances, so each half is filled by
itself. An autoencoder that has more latent channels and nothing else new thus begins as exactly the
function that the old one was, and its first latents are the old one's (`grow_latents`).
Source: Net2Net (Chen et al. 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nulltext.errors import OptionError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    from nulltext.models.latent_diffusion import LatentDiffusion

BY_TOKEN = "token_embedding"
"""In the names of tensors whose rows belong to tokens: `warm_start_embeddings` fills them."""

STACKED = ("encoder.conv_out.", "quant_conv.")
"""Tensors of an autoencoder whose rows (and columns) are means, then log-variances."""

SURE = -6.0
"""Log-variance of new latent channels: a decoder learns to ignore what begins as noise."""
LOUD = 2.5
"""Gain of the new channels' first layer, which brings them to about unit variance."""


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
    if weight.ndim > 1:
        weight[: source.shape[0], source.shape[1] :] = 0.0
    weight[corner] = source[corner].to(weight)


@torch.no_grad()
def grow_latents(vae: AutoencoderKL, old: AutoencoderKL) -> None:
    """Fill an autoencoder from one with fewer latent channels; the new ones begin apart, and heard.

    The decoder reads nothing from them yet; its first step changes that.
    """
    warm_start(vae, dict(old.named_parameters()))
    had, has = old.config.latent_channels, vae.config.latent_channels
    if has <= had:
        return
    means, variances = slice(had, has), slice(has + had, 2 * has)
    read, sampled, given = vae.encoder.conv_out, vae.quant_conv, vae.post_quant_conv
    read.weight[means] *= LOUD
    for rows in (means, variances):
        read.bias[rows] = sampled.bias[rows] = 0.0
        _pass_on(sampled.weight, rows)
    sampled.bias[variances] = SURE
    _pass_on(given.weight, means)
    given.bias[means] = 0.0


def _pass_on(weight: Tensor, rows: slice) -> None:
    """Let these outputs of a 1 x 1 convolution be its inputs of the same numbers."""
    weight[rows] = 0.0
    weight[rows, rows, 0, 0] = torch.eye(rows.stop - rows.start)


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

"""From one vector of a photo to the words' space: the prefix that a language model continues.

    MLP            p = W2 tanh(W1 f + b1) + b2                       as [P, D]
    transformer    x = [W f + b as [K, D] ; c_1 … c_P],  x <- layers(x),  p = x's last P rows
    one layer      x <- x + A(norm x),  x <- x + V2 relu(V1 norm x + a1) + a2
    A(x)           softmax(Q K' / sqrt(D / heads)) V, heads side by side, then a linear map

f is CLIP's image embedding, D the language model's width, P the prefix's length; the constants c
are learnt. Queries, keys and values have no bias. Parameters bear the published checkpoints' names.
Source: Mokady, Hertz and Bermano 2021 (ClipCap), sec. 3.2, 3.3, and the layout of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class MlpSettings:
    """Sizes of the MLP; the defaults are the published ones, for ViT-B/32 and GPT-2."""

    features: int = 512
    """Width of CLIP's image embedding."""
    hidden: int = 3840
    """Width of the hidden layer."""
    prefix_length: int = 10
    """P: how many words' places the photo takes."""
    width: int = 768
    """D: width of the language model."""


@dataclass(frozen=True)
class TransformerSettings:
    """Sizes of the transformer; the published ones, for ViT-B/32 and GPT-2."""

    features: int = 512
    """Width of CLIP's image embedding."""
    clip_length: int = 40
    """K: rows that the embedding is spread over."""
    prefix_length: int = 40
    """P: learnt constants, and how many words' places the photo takes."""
    width: int = 768
    """D: width of the language model."""
    layers: int = 8
    """Layers."""
    heads: int = 8
    """Heads of each; divides the width."""
    hidden: int = 1536
    """Width of each layer's hidden layer: twice D as published."""


class MlpMapper(nn.Module):
    """Two linear maps with tanh between them."""

    def __init__(self, settings: MlpSettings) -> None:
        super().__init__()
        self.settings = settings
        self.model = nn.Sequential(
            nn.Linear(settings.features, settings.hidden),
            nn.Tanh(),
            nn.Linear(settings.hidden, settings.prefix_length * settings.width),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings [B, features] to prefixes [B, P, D]."""
        return self.model(features).unflatten(1, (self.settings.prefix_length, -1))


class TransformerMapper(nn.Module):
    """A transformer over the spread embedding and learnt constants, which become the prefix."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.linear = nn.Linear(settings.features, settings.clip_length * settings.width)
        self.prefix_const = nn.Parameter(torch.randn(settings.prefix_length, settings.width))
        self.transformer = nn.Module()
        self._layers = [_Layer(settings) for _ in range(settings.layers)]
        self.transformer.layers = nn.ModuleList(self._layers)

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings [B, features] to prefixes [B, P, D]."""
        spread = self.linear(features).unflatten(1, (self.settings.clip_length, -1))
        constants = self.prefix_const.expand(len(features), -1, -1)
        rows = torch.cat([spread, constants], dim=1)
        for layer in self._layers:
            rows = layer(rows)
        return rows[:, self.settings.clip_length :]


class _Attention(nn.Module):
    """A(x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, rows: Tensor) -> Tensor:
        queries = self.to_queries(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        both = self.to_keys_values(rows).unflatten(-1, (2, self.heads, -1))
        keys, values = both.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return self.project(mixed.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    """V2 relu(V1 x + a1) + a2."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, rows: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.fc1(rows)))


class _Layer(nn.Module):
    """One layer, normalised before each half."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(settings.width)
        self.attn = _Attention(settings.width, settings.heads)
        self.norm2 = nn.LayerNorm(settings.width)
        self.mlp = _Mlp(settings.width, settings.hidden)

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self.attn(self.norm1(rows))
        return rows + self.mlp(self.norm2(rows))


Mapper = MlpMapper | TransformerMapper

MAPPERS: dict[str, tuple[type, type]] = {
    "mlp": (MlpSettings, MlpMapper),
    "transformer": (TransformerSettings, TransformerMapper),
}
"""Name to settings and network."""


def name_of(mapper: Mapper) -> str:
    """The mapper's name in the registry."""
    return next(name for name, (_, network) in MAPPERS.items() if network is type(mapper))

"""The networks of a captioner: a vision model, a mapper, and GPT-2.

    CLIPVisionModelWithProjection   f = W norm(h_class), the class token projected
    EfficientNetModel               f = mean of the last feature map over its pixels

    MLP mapper            p = W2 tanh(W1 f + b1) + b2                   as [P, D]
    transformer mapper    x = [W f + b as [K, D] ; c_1 … c_P],  x <- layers(x),  p = x's last P rows
    one layer             x <- x + A(norm x),  x <- x + V2 relu(V1 norm x + a1) + a2
    A(x)                  softmax(Q K' / sqrt(D / heads)) V, heads side by side, then a linear map

f is the image embedding, p the prefix that GPT-2 continues, D GPT-2's width, P the prefix's length;
the constants c are learnt. Queries, keys and values have no bias. Parameters have the names of the
published checkpoints. ClipCap's vision model is CLIP.
Sources: Mokady, Hertz and Bermano 2021 (ClipCap), sec. 3.2, 3.3, and the layout of its weights;
Radford et al. 2021 (CLIP), sec. 2.4; Tan and Le 2019 (EfficientNet), table 1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nulltext.errors import ModelError

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

LONGEST = 67
"""Most tokens of a caption, as published."""


@dataclass(frozen=True)
class VisionClass:
    """How one of transformers' vision classes is stored and used."""

    folder: str
    """Its folder in a captioner's folder."""
    model_types: tuple[str, ...]
    """`model_type` in its config, also where it is a part of a larger model."""
    embedding: str
    """Field of its output that is the embedding, [B, width]."""
    width: str
    """Setting with the embedding's width."""
    side: str | None
    """Setting with the pixels of its only input size; None if it takes any size."""
    memory_format: torch.memory_format
    """Fastest order of pixels in memory on a CPU."""


CLIP = "CLIPVisionModelWithProjection"
"""The vision class of a captioner whose config names none."""
VISION_CLASSES: Mapping[str, VisionClass] = {
    CLIP: VisionClass(
        folder="clip",
        model_types=("clip_vision_model", "clip"),
        embedding="image_embeds",
        width="projection_dim",
        side="image_size",
        memory_format=torch.contiguous_format,
    ),
    "EfficientNetModel": VisionClass(
        folder="efficientnet",
        model_types=("efficientnet",),
        embedding="pooler_output",
        width="hidden_dim",
        side=None,
        memory_format=torch.channels_last,
    ),
}


def vision_class(vision: Any) -> VisionClass:
    return VISION_CLASSES[type(vision).__name__]


def embedding_width(vision: Any) -> int:
    return int(getattr(vision.config, vision_class(vision).width))


def fixed_side(vision: Any) -> int | None:
    """Read the only input size of a vision model in pixels; None if it takes any size."""
    setting = vision_class(vision).side
    return None if setting is None else int(getattr(vision.config, setting))


def embed(vision: nn.Module, pixels: Tensor) -> Tensor:
    """Compute embeddings [B, width] of standardised pixels [B, 3, side, side]."""
    kind = vision_class(vision)
    output = vision(pixel_values=pixels.contiguous(memory_format=kind.memory_format))
    return getattr(output, kind.embedding)


@dataclass(frozen=True)
class MlpSettings:
    """Sizes of the MLP mapper; the defaults are the published ones, for ViT-B/32 and GPT-2."""

    features: int = 512
    """Width of the image embedding."""
    hidden: int = 3840
    prefix_length: int = 10
    """P: tokens' places that the photo takes."""
    width: int = 768
    """D: width of GPT-2."""


class MlpMapper(nn.Module):
    """Two linear maps with tanh between them."""

    kind: ClassVar[str] = "mlp"
    settings_class: ClassVar[type] = MlpSettings

    def __init__(self, settings: MlpSettings) -> None:
        super().__init__()
        self.settings = settings
        self.model = nn.Sequential(
            nn.Linear(settings.features, settings.hidden),
            nn.Tanh(),
            nn.Linear(settings.hidden, settings.prefix_length * settings.width),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map embeddings [B, features] to prefixes [B, P, D]."""
        return self.model(features).unflatten(1, (self.settings.prefix_length, -1))


@dataclass(frozen=True)
class TransformerSettings:
    """Sizes of the transformer mapper; the published ones, for ViT-B/32 and GPT-2."""

    features: int = 512
    clip_length: int = 40
    """K: rows that the embedding is spread over."""
    prefix_length: int = 40
    """P: learnt constants, and tokens' places that the photo takes."""
    width: int = 768
    layers: int = 8
    heads: int = 8
    """Attention heads of each layer; divides the width."""
    hidden: int = 1536
    """Width of each layer's hidden layer: twice D as published."""


class TransformerMapper(nn.Module):
    """A transformer over the spread embedding and learnt constants, which become the prefix."""

    kind: ClassVar[str] = "transformer"
    settings_class: ClassVar[type] = TransformerSettings

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.linear = nn.Linear(settings.features, settings.clip_length * settings.width)
        self.prefix_const = nn.Parameter(torch.randn(settings.prefix_length, settings.width))
        layers = nn.Sequential(*(_Layer(settings) for _ in range(settings.layers)))
        self.transformer = nn.ModuleDict({"layers": layers})

    def forward(self, features: Tensor) -> Tensor:
        """Map embeddings [B, features] to prefixes [B, P, D]."""
        spread = self.linear(features).unflatten(1, (self.settings.clip_length, -1))
        constants = self.prefix_const.expand(len(features), -1, -1)
        rows = self.transformer["layers"](torch.cat([spread, constants], dim=1))
        return rows[:, self.settings.clip_length :]


class _Layer(nn.Module):
    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        width = settings.width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(width, settings.heads)
        parts = [
            ("fc1", nn.Linear(width, settings.hidden)),
            ("relu", nn.ReLU()),
            ("fc2", nn.Linear(settings.hidden, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self.attn(self.norm1(rows))
        return rows + self.mlp(self.norm2(rows))


class _Attention(nn.Module):
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


Mapper = MlpMapper | TransformerMapper
MAPPERS: Mapping[str, type[Mapper]] = {m.kind: m for m in (MlpMapper, TransformerMapper)}
"""Mapping networks by the name that a captioner's config has for them."""


class CaptionModel(nn.Module):
    """Vision model, mapper and GPT-2, checked to fit each other."""

    def __init__(
        self, vision: Any, mapper: Mapper, gpt: GPT2LMHeadModel, *, unit_features: bool
    ) -> None:
        """Combine the three networks.

        Args:
            vision: an instance of one of `VISION_CLASSES`.
            unit_features: whether embeddings are scaled to length 1.

        Raises:
            ModelError: the networks' sizes do not fit together.
        """
        super().__init__()
        self.vision, self.mapper, self.gpt = vision, mapper, gpt
        self.unit_features = unit_features
        made, wanted = embedding_width(vision), mapper.settings.features
        if made != wanted:
            raise ModelError(
                f"The vision model makes embeddings of {made} numbers and the mapper reads "
                f"{wanted}; take the one that the mapper was trained with."
            )
        width, read = mapper.settings.width, gpt.config.n_embd
        if width != read:
            raise ModelError(
                f"The mapper makes prefixes of width {width} and GPT-2 reads {read}; take the "
                "GPT-2 that the mapper was trained with."
            )

    def features(self, pixels: Tensor) -> Tensor:
        """Compute embeddings [B, features] of standardised pixels [B, 3, side, side]."""
        embeds = embed(self.vision, pixels)
        return functional.normalize(embeds, dim=-1) if self.unit_features else embeds

    def prefix(self, pixels: Tensor) -> Tensor:
        """Compute prefixes [B, P, D] of standardised pixels [B, 3, side, side]."""
        return self.mapper(self.features(pixels))

    @property
    def longest(self) -> int:
        """Most tokens of a caption: as published, or what GPT-2 has positions for."""
        return min(LONGEST, self.gpt.config.n_positions - self.mapper.settings.prefix_length)

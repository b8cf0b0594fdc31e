"""The networks that a captioner may look with, and where each has a photo's embedding.

    CLIPVisionModelWithProjection   f = W norm(h_class), the class token projected
    EfficientNetModel               f = mean of the last map over its pixels

CLIP's is ClipCap's own; it looks at squares of one size, for its positions are learnt. A
convolutional network looks at any.
Sources: Radford et al. 2021 (CLIP), sec. 2.4; Tan and Le 2019 (EfficientNet), table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Vision:
    """What must be known about one of transformers' classes."""

    folder: str
    """Where a captioner's folder keeps it."""
    model_types: tuple[str, ...]
    """What its config may call itself, also as a part of a larger model."""
    embedding: str
    """Field of its output that is the embedding, [B, width]."""
    width: str
    """Setting that says how wide it is."""
    side: str | None
    """Setting that says how many pixels it must see; None: any number."""
    memory_format: torch.memory_format
    """Order of pixels in memory that it is fast with on a CPU."""


VISIONS: Mapping[str, Vision] = {
    "CLIPVisionModelWithProjection": Vision(
        folder="clip",
        model_types=("clip_vision_model", "clip"),
        embedding="image_embeds",
        width="projection_dim",
        side="image_size",
        memory_format=torch.contiguous_format,
    ),
    "EfficientNetModel": Vision(
        folder="efficientnet",
        model_types=("efficientnet",),
        embedding="pooler_output",
        width="hidden_dim",
        side=None,
        memory_format=torch.channels_last,
    ),
}
"""Name of a class to what is known about it."""
CLIP = "CLIPVisionModelWithProjection"
"""What a captioner looks with that says nothing else."""


def about(vision: nn.Module) -> Vision:
    """What is known about a module's class."""
    return VISIONS[type(vision).__name__]


def width_of(vision: Any) -> int:
    """How many numbers its embeddings have."""
    return int(getattr(vision.config, about(vision).width))


def side_of(vision: Any) -> int | None:
    """Pixels of the squares that it must see; None: any number."""
    setting = about(vision).side
    return None if setting is None else int(getattr(vision.config, setting))


def embed(vision: nn.Module, pixels: Tensor) -> Tensor:
    """Embeddings [B, width] of standardised pixels [B, 3, side, side]."""
    own = about(vision)
    seen = pixels.contiguous(memory_format=own.memory_format)
    embeds: Tensor = getattr(vision(pixel_values=seen), own.embedding)
    return embeds

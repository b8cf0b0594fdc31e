"""Structure distance: how far the self-similarity of two pictures lies apart, seen by DINO.

    K      keys of the last self-attention, all heads side by side, [tokens, D]
    S_ij = K_i . K_j / (|K_i| |K_j|)
    d    = mean over i, j of (S_ij(a) - S_ij(b))^2

Pictures are scaled to 224 px (bilinear) and standardised with ImageNet's mean and deviation, but
from 0 to 255, not from 0 to 1: so does the published evaluation, whose figures would otherwise be
on another scale. Tables give 1000 d.
Source: Tumanyan et al. 2022 (Splicing ViT features), eq. 2 and 4; Ju et al. 2024, sec. 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from nulltext.errors import ModelError
from nulltext.evaluation.pretrained import pretrained
from nulltext.image.images import to_uint8

DINO_SOURCE = "facebook/dino-vitb8"
SIDE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of RGB in 0 to 1."""


@dataclass(frozen=True)
class StructureDistance:
    """DINO ViT-B/8, or another ViT."""

    vit: Any
    """transformers' ViTModel."""
    source: str

    @property
    def name(self) -> str:
        """What the settings call it."""
        return f"DINO ({Path(self.source).name})"

    @classmethod
    def load(
        cls, source: str, device: torch.device, *, local_only: bool = False
    ) -> StructureDistance:
        """From a folder or a hub id.

        Args:
            local_only: do not go to the hub for what is not in its cache.

        Raises:
            ModelError: it cannot be loaded, or has another layout.
        """
        from transformers import ViTModel

        options = {"add_pooling_layer": False, "local_files_only": local_only}
        vit = pretrained(ViTModel, source, device, "--dino", **options)
        if SIDE % int(vit.config.patch_size):
            raise ModelError(
                f"'{source}' has patches of {vit.config.patch_size} px, which do not tile "
                f"{SIDE} px; pass --dino {DINO_SOURCE}."
            )
        return cls(vit, source)

    def __call__(self, a: Tensor, b: Tensor) -> float:
        """d of two pictures [3, H, W] in [-1, 1], at least 0."""
        difference = self.similarity(a) - self.similarity(b)
        return float(difference.square().mean())

    @torch.no_grad()
    def similarity(self, image: Tensor) -> Tensor:
        """S of a picture: [tokens, tokens], the class token first, float64."""
        device = self.vit.device
        levels = to_uint8(image)[None].float().to(device)
        small = interpolate(levels, (SIDE, SIDE), mode="bilinear", align_corners=False)
        mean, deviation = (torch.tensor(x, device=device).view(3, 1, 1) for x in (MEAN, DEVIATION))
        kept: list[Tensor] = []
        last = self.vit.layers[-1].attention.k_proj
        hook = last.register_forward_hook(lambda module, given, keys: kept.append(keys[0]))  # noqa: ARG005
        try:
            self.vit(pixel_values=(small - mean) / deviation, interpolate_pos_encoding=True)
        finally:
            hook.remove()
        keys = normalize(kept[0].double().cpu(), dim=1)
        return keys @ keys.T

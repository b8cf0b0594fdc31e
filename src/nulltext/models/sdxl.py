"""Stable Diffusion XL (base): two text encoders, a pooled embedding, the picture's size.

With H1, H2 the penultimate hidden states [L, D1], [L, D2] of both encoders, p the pooled projection
[P] of the second, the embedded prompt is packed into R = L + ceil(P / (D1 + D2)) rows:

    rows 0 … L-1    H1 | H2                     attended to by the UNet
    rows L … R-1    p, filled up with zeros     added to the timestep's embedding

so that both encoders' null embeddings are optimised as one sequence, and a saved inversion holds
the pooled ones as well. The size (height, width) that SDXL is also conditioned on is no embedding:
original and target size are the true size of the picture that is sampled, its corner is (0, 0).
The empty prompt is all zeros where the checkpoint says so (`force_zeros_for_empty_prompt`).
Source: Podell et al. 2023 (SDXL), sec. 2.1, 2.2; the layout is diffusers'
`StableDiffusionXLPipeline`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from nulltext.errors import PromptError
from nulltext.models.text import ClipText
from nulltext.words.prompts import TokenizedPrompt

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TIME_IDS = 6
"""Numbers of the size conditioning: original size, corner of the crop, target size."""


@dataclass(frozen=True)
class StableDiffusionXLText:
    """SDXL base's two encoders."""

    first: ClipText
    """CLIP ViT-L; words are counted in its tokens."""
    second: ClipText
    """OpenCLIP bigG with projection; same vocabulary, another pad token."""
    zero_empty: bool
    """Whether the empty prompt is all zeros."""

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first."""
        return self.first.tokenizer

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """Both encoders."""
        return {"text_encoder": self.first.encoder, "text_encoder_2": self.second.encoder}

    @property
    def max_tokens(self) -> int:
        """L, 77 in all published checkpoints."""
        return min(self.first.max_tokens, self.second.max_tokens)

    @property
    def width(self) -> int:
        """D = D1 + D2, 2048 in SDXL."""
        return sum(int(clip.encoder.config.hidden_size) for clip in (self.first, self.second))

    @property
    def pooled_size(self) -> int:
        """P, 1280 in SDXL."""
        return int(self.second.encoder.config.projection_dim)

    @property
    def embeds_shape(self) -> tuple[int, int]:
        """(R, D), 78 and 2048 in SDXL."""
        return self.max_tokens + math.ceil(self.pooled_size / self.width), self.width

    @property
    def settings(self) -> str:
        """What the empty prompt is."""
        return f"empty prompt {'zeros' if self.zero_empty else 'encoded'}"

    def tokenize(self, prompt: str, *, allow_empty: bool = False) -> TokenizedPrompt:
        """See `ClipText.tokenize`; by the first tokenizer."""
        return self.first.tokenize(prompt, max_tokens=self.max_tokens, allow_empty=allow_empty)

    def embed(self, prompt: str) -> Tensor:
        """[1, R, D], packed.

        Raises:
            PromptError: see `ClipText.tokenize`, or the two tokenizers disagree.
        """
        read = self.tokenize(prompt, allow_empty=True)
        again = self.second.tokenize(prompt, max_tokens=self.max_tokens, allow_empty=True)
        if read.words != again.words:
            raise PromptError(
                f"The model's two tokenizers split {prompt!r} differently; load a learnt token "
                "into both (pipe.load_textual_inversion with each tokenizer and text encoder)."
            )
        outputs = [
            clip.encoder(clip.ids(tokens), output_hidden_states=True)
            for clip, tokens in ((self.first, read), (self.second, again))
        ]
        sequence = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        embeds = self.packed(sequence, outputs[1].text_embeds)
        return torch.zeros_like(embeds) if self.zero_empty and not read.words else embeds

    def packed(self, sequence: Tensor, pooled: Tensor) -> Tensor:
        """[B, L, D] and [B, P] to [B, R, D]."""
        rows = self.embeds_shape[0] - self.max_tokens
        filled = pad(pooled, (0, rows * self.width - self.pooled_size))
        return torch.cat([sequence, filled.unflatten(1, (rows, self.width))], dim=1)

    def unpacked(self, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """[B, R, D] to [B, L, D] and [B, P], which diffusers calls prompt and pooled embeddings."""
        pooled = embeds[:, self.max_tokens :].flatten(1)[:, : self.pooled_size]
        return embeds[:, : self.max_tokens], pooled

    def unet_inputs(self, embeds: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Sequence, pooled embedding, and the size as (original, corner, target)."""
        sequence, pooled = self.unpacked(embeds)
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=embeds.device)
        return {
            "encoder_hidden_states": sequence,
            "added_cond_kwargs": {
                "text_embeds": pooled,
                "time_ids": time_ids.expand(len(embeds), -1),
            },
        }

    def added_numbers(self, unet: Any) -> int | None:
        """P, and the embedded size: 2816 in SDXL."""
        return self.pooled_size + TIME_IDS * int(unet.addition_time_embed_dim)

    def pipeline(self, unet: Any, vae: Any, scheduler: Any) -> Any:
        """A `StableDiffusionXLPipeline`."""
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=self.first.encoder,
            text_encoder_2=self.second.encoder,
            tokenizer=self.first.tokenizer,
            tokenizer_2=self.second.tokenizer,
            unet=unet,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=self.zero_empty,
            add_watermarker=False,
        )

"""What a family's UNet is conditioned on: the one place where families differ.

A prompt becomes one tensor of rows [R, D], whatever the family; inversion methods, solvers and
editors store, batch and differentiate it without knowing what the rows are. Only the family's
`TextConditioner` packs them, and unpacks them at the UNet's door.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from nulltext.models.placement import execution_device
from nulltext.words.prompts import TokenizedPrompt, tokenize

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


class TextConditioner(Protocol):
    """How a family turns prompts into what its UNet is conditioned on."""

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer by which words and tokens are counted."""
        ...

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """The text encoders, by their names in a checkpoint's folder."""
        ...

    @property
    def max_tokens(self) -> int:
        """L: the length of a padded prompt."""
        ...

    @property
    def embeds_shape(self) -> tuple[int, int]:
        """(R, D) of an embedded prompt; its first L rows are the tokens' own."""
        ...

    @property
    def settings(self) -> str:
        """What beside the weights gives the embeddings their meaning, for the fingerprint."""
        ...

    def tokenize(self, prompt: str, *, allow_empty: bool = False) -> TokenizedPrompt:
        """Split a prompt into tokens and words; see `LatentDiffusion.tokenize`."""
        ...

    def embed(self, prompt: str) -> Tensor:
        """Embed a prompt, or "": [1, R, D], in the encoders' dtype."""
        ...

    def unet_inputs(self, embeds: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """The UNet's conditioning arguments for embeddings [B, R, D] and a picture of `size` =
        (height, width) pixels."""
        ...

    def added_numbers(self, unet: Any) -> int | None:
        """How many numbers `unet_inputs` adds to the timestep's, under this UNet config."""
        ...

    def pipeline(self, unet: Any, vae: Any, scheduler: Any) -> Any:
        """The family's stock diffusers pipeline around these parts."""
        ...


@dataclass(frozen=True)
class ClipText:
    """A CLIP text encoder with its tokenizer."""

    tokenizer: CLIPTokenizer
    encoder: Any

    @property
    def max_tokens(self) -> int:
        """Length of a padded prompt, begin and end of text included."""
        longest = self.encoder.config.max_position_embeddings
        return int(min(self.tokenizer.model_max_length, longest))

    def tokenize(
        self, prompt: str, *, max_tokens: int, allow_empty: bool = False
    ) -> TokenizedPrompt:
        """Split a prompt into tokens and words.

        Raises:
            PromptError: it is empty (unless allowed), too long, or unreadable to the tokenizer.
        """
        return tokenize(self.tokenizer, prompt, max_length=max_tokens, allow_empty=allow_empty)

    def ids(self, prompt: TokenizedPrompt) -> Tensor:
        """Token ids [1, L] where the encoder computes."""
        return torch.tensor([prompt.token_ids], device=execution_device(self.encoder))


@dataclass(frozen=True)
class StableDiffusionText:
    """Stable Diffusion 1.x and 2.x: the last hidden states of one encoder, R = L.

    Source: Rombach et al. 2022, sec. 3.3; the layout is diffusers' `StableDiffusionPipeline`.
    """

    clip: ClipText

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The only one."""
        return self.clip.tokenizer

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """The only encoder."""
        return {"text_encoder": self.clip.encoder}

    @property
    def max_tokens(self) -> int:
        """L, 77 in all published checkpoints."""
        return self.clip.max_tokens

    @property
    def embeds_shape(self) -> tuple[int, int]:
        """(L, D), D 768 (1.x) or 1024 (2.x)."""
        return self.max_tokens, int(self.clip.encoder.config.hidden_size)

    @property
    def settings(self) -> str:
        """None."""
        return ""

    def tokenize(self, prompt: str, *, allow_empty: bool = False) -> TokenizedPrompt:
        """See `ClipText.tokenize`."""
        return self.clip.tokenize(prompt, max_tokens=self.max_tokens, allow_empty=allow_empty)

    def embed(self, prompt: str) -> Tensor:
        """[1, L, D]; some checkpoints hide the padding from the encoder."""
        read = self.tokenize(prompt, allow_empty=True)
        ids, mask = self.clip.ids(read), None
        if getattr(self.clip.encoder.config, "use_attention_mask", False):
            mask = (torch.arange(read.length, device=ids.device) <= read.end_of_text)[None].long()
        embeds: Tensor = self.clip.encoder(ids, attention_mask=mask).last_hidden_state
        return embeds

    def unet_inputs(self, embeds: Tensor, size: tuple[int, int]) -> dict[str, Any]:  # noqa: ARG002
        """The embeddings as they are."""
        return {"encoder_hidden_states": embeds}

    def added_numbers(self, unet: Any) -> int | None:  # noqa: ARG002
        """None."""
        return None

    def pipeline(self, unet: Any, vae: Any, scheduler: Any) -> Any:
        """A `StableDiffusionPipeline`."""
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=self.clip.encoder,
            tokenizer=self.clip.tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

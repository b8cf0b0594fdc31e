"""What a family of models is made of, and how its denoising network is conditioned on prompts.

A prompt becomes one tensor of rows [R, D], whatever the family; inversion methods, solvers and
editors store, batch and differentiate it without knowing what the rows are. Only the family's
`TextConditioner` packs them, and unpacks them for the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor

from nulltext.errors import ModelError, shorten
from nulltext.models.placement import execution_device
from nulltext.models.tensor_files import WORKS
from nulltext.words.prompts import TokenizedPrompt, tokenize

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")

Parts = Mapping[str, Any]
"""Modules and tokenizers by their names in a checkpoint's folder."""


class TextConditioner(Protocol):
    """How a family turns prompts into what its network is conditioned on."""

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
        """Arguments of the network for embeddings [B, R, D] and a picture of `size` = (height,
        width) pixels."""
        ...

    def pipeline(self, unet: Any, vae: Any, scheduler: Any) -> Any:
        """Make the family's stock diffusers pipeline of these parts."""
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

    def tokenize(self, prompt: str, *, max_tokens: int, allow_empty: bool) -> TokenizedPrompt:
        """Split a prompt into tokens and words; see `LatentDiffusion.tokenize`."""
        return tokenize(self.tokenizer, prompt, max_length=max_tokens, allow_empty=allow_empty)

    def ids(self, prompt: TokenizedPrompt) -> Tensor:
        """Token ids [1, L] where the encoder computes."""
        return torch.tensor([prompt.token_ids], device=execution_device(self.encoder))


@dataclass(frozen=True)
class ClipConditioner:
    """CLIP text encoders that read the same prompt; words are counted in the first one's tokens."""

    clips: tuple[ClipText, ...]

    @classmethod
    def of(cls, parts: Parts, **settings: Any) -> Self:
        """Take the encoders and tokenizers out of a model's parts."""
        names = sorted(name for name in parts if name.startswith("tokenizer"))
        encoders = [parts[name.replace("tokenizer", "text_encoder")] for name in names]
        pairs = zip((parts[name] for name in names), encoders, strict=True)
        return cls(tuple(ClipText(*pair) for pair in pairs), **settings)

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first encoder's tokenizer."""
        return self.clips[0].tokenizer

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """The text encoders by name: text_encoder, text_encoder_2, …"""
        return {
            f"text_encoder_{number}" if number > 1 else "text_encoder": clip.encoder
            for number, clip in enumerate(self.clips, start=1)
        }

    @property
    def max_tokens(self) -> int:
        """L, 77 in all published checkpoints."""
        return min(clip.max_tokens for clip in self.clips)

    @property
    def width(self) -> int:
        """Sum of the encoders' widths: 768 (SD 1), 1024 (SD 2) or 2048 (SDXL)."""
        return sum(int(clip.encoder.config.hidden_size) for clip in self.clips)

    def tokenize(self, prompt: str, *, allow_empty: bool = False) -> TokenizedPrompt:
        """Split a prompt into tokens and words, by the first tokenizer."""
        return self.clips[0].tokenize(prompt, max_tokens=self.max_tokens, allow_empty=allow_empty)


@dataclass(frozen=True)
class Family:
    """Checkpoints of one layout."""

    pipelines: tuple[str, ...]
    """Names of the diffusers pipelines."""
    modules: Mapping[str, str]
    """Class of each component with weights."""
    tokenizers: tuple[str, ...]
    text: Callable[[Parts, Mapping[str, Any]], TextConditioner]
    """Makes the conditioner of the parts and the pipeline's config."""
    check_parts: Callable[[Parts, TextConditioner, str], None]
    """Raises ModelError where the parts of the model of some name do not fit together."""
    buckets: tuple[tuple[int, int], ...] = ()
    """Long and short sides that it was trained at, in sixteenths of the model's own side."""

    def check_index(self, index: Mapping[str, Any], model: str) -> None:
        """Refuse a model_index.json with a component of another class than the family's."""
        classes = {name: (kind,) for name, kind in self.modules.items()}
        for name, allowed in (classes | dict.fromkeys(self.tokenizers, TOKENIZERS)).items():
            entry = index.get(name)
            found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
            if found not in allowed:
                what = f"The {name} of the model '{model}' is of class {shorten(str(found))}"
                if found is None:
                    what = f"The model '{model}' has no {name}"
                raise ModelError(f"{what}, expected {allowed[0]}; {WORKS}.")

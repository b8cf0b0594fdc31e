"""What a family of models is made of, and what it has to do: condition its network on a prompt.

A prompt becomes one tensor of rows [R, D], whatever the family; inversion methods and editors
store, batch and differentiate it without knowing what the rows are. Only the family's
`TextConditioner` packs them, and unpacks them for its network. The first L rows are the tokens'
own, which are optimised; pooled embeddings stand below them (`Rows`):

    rows 0 … L-1    the sequence, L tokens of D numbers
    rows L … R-1    the pooled embedding [P], filled up with zeros     R = L + ceil(P / D)

One file has one kind of network: `unet` (Stable Diffusion 1, 2, XL), `mmdit` (3, 3.5 and FLUX).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from nulltext.constants import GUIDANCE_SCALE
from nulltext.diffusion.guidance import GuidanceScale
from nulltext.diffusion.levels import Level
from nulltext.diffusion.schedule import DiscreteSchedule, Schedule
from nulltext.errors import ModelError, shorten
from nulltext.models.placement import execution_device
from nulltext.models.tensor_files import WORKS
from nulltext.words.prompts import TokenizedPrompt, tokenize

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
T5_TOKENIZERS = ("T5TokenizerFast", "T5Tokenizer")

MAX_SIDE = 1024
"""Of the latents that a model may be made for: 8192 pixels in Stable Diffusion."""

Guidance = Literal["branches", "input", "none"]
"""By a null branch beside the prompt's, by a number that the network is fed, or not at all."""

Parts = Mapping[str, Any]
"""Modules and tokenizers by their names in a checkpoint's folder."""


class TextConditioner(Protocol):
    """How a family turns prompts into what its network is conditioned on."""

    @property
    def network(self) -> str:
        """Name of the denoising network in a checkpoint's folder."""
        ...

    @property
    def guidance(self) -> Guidance:
        """How a guidance scale other than 1 acts."""
        ...

    def step_scale(self, embeds: Tensor) -> float:
        """What learning rates of embeddings are multiplied by; `embeds`: of "", [1, R, D]."""
        ...

    @property
    def largest_side(self) -> int | None:
        """Latents along the longest side that the network knows places for; None: any."""
        ...

    @property
    def patch(self) -> int:
        """Latents along a side of a token: 1 of a UNet, which has none."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The tokenizer by which words are counted."""
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

    def output(
        self,
        network: Any,
        latents: Tensor,
        level: Level,
        embeds: Tensor,
        *,
        size: tuple[int, int],
        guidance: GuidanceScale | None = None,
    ) -> Tensor:
        """Run the network on latents [B, C, h, w] at a level: its own output, of their shape.

        Args:
            embeds: [B, R, D], in the network's precision.
            size: (height, width) of the picture in pixels.
            guidance: what a network that was distilled to take it is fed; None to others.
        """
        ...

    def pipeline(self, network: Any, vae: Any, scheduler: Any) -> Any:
        """Make the family's stock diffusers pipeline of these parts."""
        ...


@dataclass(frozen=True)
class Rows:
    """How a sequence and a pooled embedding are packed into the rows of one tensor."""

    tokens: int
    """L."""
    width: int
    """D."""
    pooled: int
    """P; 0 where there is none."""

    @property
    def shape(self) -> tuple[int, int]:
        """(R, D)."""
        return self.tokens + math.ceil(self.pooled / self.width), self.width

    def pack(self, sequence: Tensor, pooled: Tensor) -> Tensor:
        """[B, L, D] and [B, P] to [B, R, D]."""
        rows = self.shape[0] - self.tokens
        filled = pad(pooled, (0, rows * self.width - self.pooled))
        return torch.cat([sequence, filled.unflatten(1, (rows, self.width))], dim=1)

    def unpack(self, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """[B, R, D] to [B, L, D] and [B, P], which diffusers calls prompt and pooled embeddings."""
        return embeds[:, : self.tokens], embeds[:, self.tokens :].flatten(1)[:, : self.pooled]


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

    def ids(self, prompt: TokenizedPrompt) -> Tensor:
        """Token ids [1, L] where the encoder computes."""
        return torch.tensor([prompt.token_ids], device=execution_device(self.encoder))


@dataclass(frozen=True)
class ClipConditioner:
    """CLIP text encoders that read the same prompt; words are counted in the first one's tokens."""

    clips: tuple[ClipText, ...]

    @classmethod
    def of(cls, parts: Parts, **settings: Any) -> Self:
        names = sorted(name for name in parts if name.startswith("tokenizer"))
        encoders = [parts[name.replace("tokenizer", "text_encoder")] for name in names]
        pairs = zip((parts[name] for name in names), encoders, strict=True)
        return cls(tuple(ClipText(*pair) for pair in pairs), **settings)

    @property
    def tokenizer(self) -> CLIPTokenizer:
        return self.clips[0].tokenizer

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
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
        return tokenize(self.tokenizer, prompt, max_length=self.max_tokens, allow_empty=allow_empty)


@dataclass(frozen=True)
class Family:
    """Checkpoints of one layout."""

    pipelines: tuple[str, ...]
    modules: Mapping[str, str]
    tokenizers: tuple[str, ...]
    text: Callable[[Parts, Mapping[str, Any]], TextConditioner]
    """Makes the conditioner of the parts and the pipeline's config."""
    check_parts: Callable[[Parts, TextConditioner, str], None]
    """Raises ModelError where the parts of the model of some name do not fit together."""
    buckets: tuple[tuple[int, int], ...] = ()
    """Long and short sides that it was trained at, in sixteenths of the model's own side."""
    optional: tuple[str, ...] = ()
    """Parts that a checkpoint may leave out."""
    network: str = "unet"
    """Name of the denoising network in a checkpoint's folder."""
    guidance_scale: float = GUIDANCE_SCALE
    """w of its models where nothing else is suggested."""
    schedule: Callable[[Mapping[str, Any]], Schedule] = DiscreteSchedule.from_config
    """Reads the scheduler's config."""

    def present(self, index: Mapping[str, Any]) -> Family:
        """Return the family without optional parts that a model_index.json leaves out."""
        absent = {name for name in self.optional if _class_in(index, name) is None}
        absent |= {name.replace("text_encoder", "tokenizer") for name in absent}
        return replace(
            self,
            modules={name: kind for name, kind in self.modules.items() if name not in absent},
            tokenizers=tuple(name for name in self.tokenizers if name not in absent),
        )

    def tokenizer_classes(self, name: str) -> tuple[str, ...]:
        """Return the classes that a tokenizer may have, by the encoder that it is for."""
        encoder = self.modules[name.replace("tokenizer", "text_encoder")]
        return T5_TOKENIZERS if encoder == "T5EncoderModel" else TOKENIZERS

    def check_index(self, index: Mapping[str, Any], model: str) -> None:
        """Refuse a model_index.json with a component of another class than the family's."""
        classes = {name: (kind,) for name, kind in self.modules.items()}
        words = {name: self.tokenizer_classes(name) for name in self.tokenizers}
        for name, allowed in (classes | words).items():
            found = _class_in(index, name)
            if found not in allowed:
                what = f"The {name} of the model '{model}' is of class {shorten(str(found))}"
                if found is None:
                    what = f"The model '{model}' has no {name}"
                raise ModelError(f"{what}, expected {allowed[0]}; {WORKS}.")


def _class_in(index: Mapping[str, Any], name: str) -> object:
    """Return the class that a model_index.json gives a part; None where it has none."""
    entry = index.get(name)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def check_side(side: object, model: str) -> None:
    """Refuse a size of latents, a number or (height, width), that no model has.

    Raises:
        ModelError: it is out of bounds, or no size.
    """
    sides = side if isinstance(side, list | tuple) else [side]
    if not all(type(each) is int and 1 <= each <= MAX_SIDE for each in sides):
        raise ModelError(
            f"The network of the model '{model}' has a sample_size of {shorten(repr(side))}, "
            f"expected latents of 1 to {MAX_SIDE} a side; get the model again."
        )


def check_vocabularies(parts: Parts, text: TextConditioner, model: str) -> None:
    """Refuse tokenizers with more tokens than their encoders know.

    Raises:
        ModelError: the parts belong to different models.
    """
    for name, encoder in text.modules.items():
        tokenizer = name.replace("text_encoder", "tokenizer")
        tokens, known = len(parts[tokenizer]), encoder.get_input_embeddings().num_embeddings  # type: ignore[operator]
        if tokens > known:
            raise ModelError(
                f"The {tokenizer} of the model '{model}' has {tokens} tokens, its {name} knows "
                f"{known}; the parts belong to different models."
            )

"""What a family of models is made of, and how its network is conditioned: Stable Diffusion and XL.

A prompt becomes one tensor of rows [R, D], whatever the family; inversion methods and
editors store, batch and differentiate it without knowing what the rows are. Only the family's
`TextConditioner` packs them, and unpacks them for the network, a UNet that attends to them.

Stable Diffusion 1 and 2 take the last hidden states of one encoder, [L, D].
With H1, H2 the penultimate hidden states [L, D1], [L, D2] of XL's two encoders, p the pooled
projection [P] of the second, the embedded prompt is packed into R = L + ceil(P / (D1 + D2)) rows:

    rows 0 … L-1    H1 | H2                     attended to by the UNet
    rows L … R-1    p, filled up with zeros     added to the timestep's embedding

so that both encoders' null embeddings are optimised as one sequence, and a saved inversion holds
the pooled ones as well. The size (height, width) that SDXL is also conditioned on is no embedding:
original and target size are the true size of the picture that is sampled, its corner is (0, 0).
The empty prompt is all zeros where the checkpoint says so (`force_zeros_for_empty_prompt`).
Sources: Rombach et al. 2022, sec. 3.3; Podell et al. 2023 (SDXL), sec. 2.1, 2.2; the layouts are
those of diffusers' `StableDiffusionPipeline` and `StableDiffusionXLPipeline`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from nulltext.errors import ModelError, PromptError, shorten
from nulltext.image.images import SDXL_BUCKETS
from nulltext.models.placement import execution_device
from nulltext.models.tensor_files import WORKS, known_kinds
from nulltext.words.prompts import TokenizedPrompt, tokenize

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")

TIME_IDS = 6
"""Numbers of XL's size conditioning: original size, corner of the crop, target size."""

MAX_SIDE = 1024
"""Of the latents that a model may be made for: 8192 pixels in Stable Diffusion."""

PROMPT_WIDTHS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "the SDXL refiner",
    2048: "Stable Diffusion XL",
}
"""Models by the width of their prompts, which cross-attention reads."""

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


@dataclass(frozen=True)
class StableDiffusionText(ClipConditioner):
    """Conditioning of Stable Diffusion 1.x and 2.x: one encoder, R = L."""

    settings = ""

    @property
    def embeds_shape(self) -> tuple[int, int]:
        """(L, D), D 768 (1.x) or 1024 (2.x)."""
        return self.max_tokens, self.width

    def embed(self, prompt: str) -> Tensor:
        """[1, L, D]; some checkpoints hide the padding from the encoder."""
        (clip,), read = self.clips, self.tokenize(prompt, allow_empty=True)
        ids, mask = clip.ids(read), None
        if getattr(clip.encoder.config, "use_attention_mask", False):
            mask = (torch.arange(read.length, device=ids.device) <= read.end_of_text)[None].long()
        embeds: Tensor = clip.encoder(ids, attention_mask=mask).last_hidden_state
        return embeds

    def unet_inputs(self, embeds: Tensor, size: tuple[int, int]) -> dict[str, Any]:  # noqa: ARG002
        return {"encoder_hidden_states": embeds}

    def pipeline(self, unet: Any, vae: Any, scheduler: Any) -> Any:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=self.clips[0].encoder,
            tokenizer=self.tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


@dataclass(frozen=True)
class StableDiffusionXLText(ClipConditioner):
    """Conditioning of SDXL base: CLIP ViT-L, and OpenCLIP bigG with projection.

    Both have the same vocabulary, and other pad tokens.
    """

    zero_empty: bool = True

    @property
    def pooled_size(self) -> int:
        """P, 1280 in SDXL."""
        return int(self.clips[1].encoder.config.projection_dim)

    @property
    def embeds_shape(self) -> tuple[int, int]:
        """(R, D), 78 and 2048 in SDXL."""
        return self.max_tokens + math.ceil(self.pooled_size / self.width), self.width

    @property
    def settings(self) -> str:
        return f"empty prompt {'zeros' if self.zero_empty else 'encoded'}"

    def embed(self, prompt: str) -> Tensor:
        """[1, R, D], packed.

        Raises:
            PromptError: see `tokenize`, or the two tokenizers disagree.
        """
        read = [
            tokenize(clip.tokenizer, prompt, max_length=self.max_tokens, allow_empty=True)
            for clip in self.clips
        ]
        if read[0].words != read[1].words:
            raise PromptError(
                f"The model's two tokenizers split {prompt!r} differently; load a learnt token "
                "into both (pipe.load_textual_inversion with each tokenizer and text encoder)."
            )
        outputs = [
            clip.encoder(clip.ids(tokens), output_hidden_states=True)
            for clip, tokens in zip(self.clips, read, strict=True)
        ]
        sequence = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        embeds = self.packed(sequence, outputs[1].text_embeds)
        return torch.zeros_like(embeds) if self.zero_empty and not read[0].words else embeds

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

    def pipeline(self, unet: Any, vae: Any, scheduler: Any) -> Any:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(
            vae=vae,
            **self.modules,
            tokenizer=self.tokenizer,
            tokenizer_2=self.clips[1].tokenizer,
            unet=unet,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=self.zero_empty,
            add_watermarker=False,
        )


def _check_parts(parts: Parts, text: TextConditioner, model: str) -> None:
    unet, vae = parts["unet"].config, parts["vae"].config
    reason = _unfit_latents(unet, vae, model) or _unfit_conditioning(unet, text, model)
    if reason is not None:
        raise ModelError(f"{reason}; {WORKS}.")
    sides = unet.sample_size if isinstance(unet.sample_size, list | tuple) else [unet.sample_size]
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise ModelError(
            f"The UNet of the model '{model}' has a sample_size of "
            f"{shorten(repr(unet.sample_size))}, expected latents of 1 to {MAX_SIDE} a side; "
            "get the model again."
        )
    _, width = text.embeds_shape
    if unet.cross_attention_dim != width:
        raise ModelError(
            f"The text encoders of the model '{model}' have width {width}, its UNet expects "
            f"{unet.cross_attention_dim}; the parts belong to different models."
        )
    for name, encoder in text.modules.items():
        tokenizer = name.replace("text_encoder", "tokenizer")
        tokens, known = len(parts[tokenizer]), encoder.get_input_embeddings().num_embeddings  # type: ignore[operator]
        if tokens > known:
            raise ModelError(
                f"The {tokenizer} of the model '{model}' has {tokens} tokens, its {name} knows "
                f"{known}; the parts belong to different models."
            )


def _unfit_latents(unet: Any, vae: Any, model: str) -> str | None:
    if unet.in_channels != vae.latent_channels:
        extra = known_kinds()["extra_channels"].get(str(unet.in_channels), {})
        return (
            f"The UNet of the model '{model}' takes {unet.in_channels} channels "
            f"({extra.get('what', 'those of another kind of model')}) where its autoencoder has "
            f"{vae.latent_channels}"
        )
    if getattr(vae, "latents_mean", None) is not None:
        return (
            f"The autoencoder of the model '{model}' normalises its latents by mean and deviation "
            "(latents_mean), as no Stable Diffusion does"
        )
    return None


def _unfit_conditioning(unet: Any, text: TextConditioner, model: str) -> str | None:
    if unet.time_cond_proj_dim is not None:
        return (
            f"The model '{model}' is a consistency model (its UNet takes the guidance scale as an "
            "input), whose guidance cannot be split into two branches"
        )
    xl = text if isinstance(text, StableDiffusionXLText) else None
    added = "text_time" if xl else None
    extras = (unet.addition_embed_type, unet.class_embed_type, unet.encoder_hid_dim_type)
    if extras != (added, None, None):
        family = (STABLE_DIFFUSION_XL if xl else STABLE_DIFFUSION).pipelines[0]
        named = ", ".join(str(extra) for extra in extras if extra) or "nothing"
        return (
            f"The UNet of the model '{model}' takes {named} beside the prompt, expected "
            f"{added or 'nothing'} in a {family}"
        )
    made = xl.pooled_size + TIME_IDS * int(unet.addition_time_embed_dim) if xl else None
    wanted = unet.projection_class_embeddings_input_dim
    if made != wanted:
        return (
            f"The UNet of the model '{model}' expects {wanted} numbers of pooled text and size, "
            f"and there are {made}: its size conditioning is another (as the SDXL refiner's)"
        )
    return None


BACKBONE = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}

STABLE_DIFFUSION = Family(
    pipelines=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    modules=BACKBONE,
    tokenizers=("tokenizer",),
    text=lambda parts, _: StableDiffusionText.of(parts),
    check_parts=_check_parts,
)
STABLE_DIFFUSION_XL = Family(
    pipelines=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    modules={**BACKBONE, "text_encoder_2": "CLIPTextModelWithProjection"},
    tokenizers=("tokenizer", "tokenizer_2"),
    text=lambda parts, config: StableDiffusionXLText.of(
        parts, zero_empty=bool(config.get("force_zeros_for_empty_prompt", True))
    ),
    check_parts=_check_parts,
    buckets=SDXL_BUCKETS,
)

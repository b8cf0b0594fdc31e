"""Stable Diffusion 1, 2 and XL base: a UNet that attends to CLIP's embedding of the prompt.

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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from nulltext.errors import ModelError, PromptError, shorten
from nulltext.image.images import SDXL_BUCKETS
from nulltext.models.family import ClipConditioner, Family, Parts, TextConditioner
from nulltext.models.tensor_files import WORKS, known_kinds

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
        """Pass the embeddings on as they are."""
        return {"encoder_hidden_states": embeds}

    def pipeline(self, unet: Any, vae: Any, scheduler: Any) -> Any:
        """Make a `StableDiffusionPipeline`."""
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
    """Whether the empty prompt is all zeros."""

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
        """Name what the empty prompt is."""
        return f"empty prompt {'zeros' if self.zero_empty else 'encoded'}"

    def embed(self, prompt: str) -> Tensor:
        """[1, R, D], packed.

        Raises:
            PromptError: see `ClipText.tokenize`, or the two tokenizers disagree.
        """
        read = [
            clip.tokenize(prompt, max_tokens=self.max_tokens, allow_empty=True)
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
        """Make a `StableDiffusionXLPipeline`."""
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


def _sdxl_text(parts: Parts, config: Mapping[str, Any]) -> StableDiffusionXLText:
    zero_empty = bool(config.get("force_zeros_for_empty_prompt", True))
    return StableDiffusionXLText.of(parts, zero_empty=zero_empty)


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
    text=_sdxl_text,
    check_parts=_check_parts,
    buckets=SDXL_BUCKETS,
)

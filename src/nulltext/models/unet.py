"""Stable Diffusion 1, 2 and XL: a UNet that attends to the prompt's rows.

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

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nulltext.diffusion.guidance import GuidanceScale
from nulltext.diffusion.levels import Level
from nulltext.errors import ModelError, PromptError
from nulltext.image.images import SDXL_BUCKETS
from nulltext.models.families import (
    ClipConditioner,
    Family,
    Guidance,
    Parts,
    Rows,
    TextConditioner,
    check_side,
    check_vocabularies,
)
from nulltext.models.tensor_files import WORKS, known_kinds
from nulltext.words.prompts import tokenize

TIME_IDS = 6
"""Numbers of XL's size conditioning: original size, corner of the crop, target size."""

PROMPT_WIDTHS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "the SDXL refiner",
    2048: "Stable Diffusion XL",
}
"""Models by the width of their prompts, which cross-attention reads."""


@dataclass(frozen=True)
class UNetText(ClipConditioner):
    """Conditioning of a UNet."""

    network = "unet"
    guidance: ClassVar[Guidance] = "branches"
    patch = 1
    largest_side = None

    def step_scale(self, embeds: Tensor) -> float:  # noqa: ARG002
        """Return 1: learning rates are the published ones, of these families."""
        return 1.0

    def unet_inputs(self, embeds: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Arguments of the UNet for embeddings [B, R, D] and a picture of `size` = (height,
        width) pixels."""
        raise NotImplementedError

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
        """Run the UNet, fed the level's timestep; see `TextConditioner`."""
        assert guidance is None, "a UNet takes no guidance scale"
        output: Tensor = network(latents, level.fed, **self.unet_inputs(embeds, size)).sample
        return output


@dataclass(frozen=True)
class StableDiffusionText(UNetText):
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

    def pipeline(self, network: Any, vae: Any, scheduler: Any) -> Any:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=self.clips[0].encoder,
            tokenizer=self.tokenizer,
            unet=network,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


@dataclass(frozen=True)
class StableDiffusionXLText(UNetText):
    """Conditioning of SDXL base: CLIP ViT-L, and OpenCLIP bigG with projection.

    Both have the same vocabulary, and other pad tokens.
    """

    zero_empty: bool = True

    @property
    def pooled_size(self) -> int:
        """P, 1280 in SDXL."""
        return int(self.clips[1].encoder.config.projection_dim)

    @property
    def rows(self) -> Rows:
        """L + 1 rows of D = 2048 numbers in SDXL."""
        return Rows(self.max_tokens, self.width, self.pooled_size)

    @property
    def embeds_shape(self) -> tuple[int, int]:
        """(R, D), 78 and 2048 in SDXL."""
        return self.rows.shape

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
        embeds = self.rows.pack(sequence, outputs[1].text_embeds)
        return torch.zeros_like(embeds) if self.zero_empty and not read[0].words else embeds

    def unet_inputs(self, embeds: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Sequence, pooled embedding, and the size as (original, corner, target)."""
        sequence, pooled = self.rows.unpack(embeds)
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=embeds.device)
        return {
            "encoder_hidden_states": sequence,
            "added_cond_kwargs": {
                "text_embeds": pooled,
                "time_ids": time_ids.expand(len(embeds), -1),
            },
        }

    def pipeline(self, network: Any, vae: Any, scheduler: Any) -> Any:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(
            vae=vae,
            **self.modules,
            tokenizer=self.tokenizer,
            tokenizer_2=self.clips[1].tokenizer,
            unet=network,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=self.zero_empty,
            add_watermarker=False,
        )


def _check_parts(parts: Parts, text: TextConditioner, model: str) -> None:
    unet, vae = parts["unet"].config, parts["vae"].config
    reason = _unfit_latents(unet, vae, model) or _unfit_conditioning(unet, text, model)
    if reason is not None:
        raise ModelError(f"{reason}; {WORKS}.")
    check_side(unet.sample_size, model)
    _, width = text.embeds_shape
    if unet.cross_attention_dim != width:
        raise ModelError(
            f"The text encoders of the model '{model}' have width {width}, its UNet expects "
            f"{unet.cross_attention_dim}; the parts belong to different models."
        )
    check_vocabularies(parts, text, model)


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

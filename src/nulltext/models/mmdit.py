"""Stable Diffusion 3, 3.5 and FLUX.1: a transformer in which text and image tokens attend jointly.

The network looks at a flow's level s and its output is eps - x0. What it is conditioned on:

    Stable Diffusion 3    H1 | H2 | 0        L1 = 77 rows: the penultimate states of two CLIPs
                          H3                 256 rows: T5's, or zeros where T5 is left out
                          p1 | p2            the CLIPs' pooled projections, added to the level
    FLUX.1                H                  512 rows: T5's
                          p                  CLIP's pooled output, added to the level
                          g                  the guidance scale, where it was distilled into it

so an embedded prompt has the rows of all its encoders, one below the other, then the pooled ones
(`families.Rows`). A word owns tokens in every encoder that has rows (`words.prompts.joined`).

FLUX takes 2 x 2 latents for a token and is given them packed, with the place of each; Stable
Diffusion 3 cuts its patches itself. FLUX.1 [dev] has no null branch of its own, as guidance was
distilled into an input, and [schnell] has no guidance at all; with `true_cfg` both are guided by an
empty prompt like the others, the input held at 1.
Sources: Esser et al. 2024 (Stable Diffusion 3), sec. 4; the layouts are those of diffusers'
`StableDiffusion3Pipeline` and `FluxPipeline`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from nulltext.diffusion.flow_schedule import FlowSchedule
from nulltext.diffusion.guidance import GuidanceScale
from nulltext.diffusion.levels import Level
from nulltext.errors import ModelError
from nulltext.models.families import (
    ClipText,
    Family,
    Guidance,
    Parts,
    Rows,
    TextConditioner,
    check_side,
    check_vocabularies,
)
from nulltext.models.placement import execution_device
from nulltext.models.tensor_files import WORKS
from nulltext.words.prompts import TokenizedPrompt, blank_prompt, joined, tokenize

if TYPE_CHECKING:
    from transformers import T5TokenizerFast

SD3_T5_TOKENS, FLUX_T5_TOKENS = 256, 512
"""Rows of T5's, as the stock pipelines have them."""

PATCH = 2
"""Latents per token, along a side."""

STEP = 25.0
"""By measurement on the bundled flow model (docs/flow.md)."""

FED = 1000.0
"""What FLUX's levels are divided by: it is fed s, Stable Diffusion 3 what the scheduler says."""


@dataclass(frozen=True)
class T5Text:
    """A T5 text encoder with its tokenizer."""

    tokenizer: T5TokenizerFast
    encoder: Any
    max_tokens: int
    """Rows that it makes, padding included."""

    def tokenize(self, prompt: str, *, allow_empty: bool = False) -> TokenizedPrompt:
        """Split a prompt into its tokens; see `words.prompts.tokenize` for the errors."""
        return tokenize(
            self.tokenizer, prompt, max_length=self.max_tokens, allow_empty=allow_empty, reader="T5"
        )

    def embed(self, prompt: TokenizedPrompt) -> Tensor:
        """[1, L, D]; padding is read like words, as in the stock pipelines."""
        ids = torch.tensor([prompt.token_ids], device=execution_device(self.encoder))
        states: Tensor = self.encoder(ids)[0]
        return states


def step_scale(sequence: Tensor) -> float:
    """Return `STEP` times the root mean square of a sequence's rows [1, L, D] that are not zero.

    Every block normalises its text rows, so that only steps relative to their size count, and how
    large rows are differs from encoder to encoder.
    """
    rows = sequence[sequence.abs().sum(dim=-1) > 0]
    return STEP * float(rows.float().square().mean().sqrt()) if len(rows) else 1.0


def _of_clip(clip: ClipText, prompt: str) -> TokenizedPrompt:
    return tokenize(
        clip.tokenizer, prompt, max_length=clip.max_tokens, allow_empty=True, reader="CLIP"
    )


@dataclass(frozen=True)
class StableDiffusion3Text:
    """Conditioning of Stable Diffusion 3 and 3.5: two CLIPs, and T5 if it is there."""

    clips: tuple[ClipText, ClipText]
    t5: T5Text | None
    width: int
    """D, what the transformer takes: 4096 in published checkpoints."""
    largest_side: int
    """Latents along the longest side that the transformer knows places for."""

    network = "transformer"
    guidance: ClassVar[Guidance] = "branches"
    patch = PATCH

    @classmethod
    def of(cls, parts: Parts) -> StableDiffusion3Text:
        clips = (
            ClipText(parts["tokenizer"], parts["text_encoder"]),
            ClipText(parts["tokenizer_2"], parts["text_encoder_2"]),
        )
        t5 = None
        if "text_encoder_3" in parts:
            t5 = T5Text(parts["tokenizer_3"], parts["text_encoder_3"], SD3_T5_TOKENS)
        config = parts["transformer"].config
        side = int(config.pos_embed_max_size or config.sample_size // PATCH) * PATCH
        return cls(clips, t5, int(config.joint_attention_dim), side)

    @property
    def tokenizer(self) -> Any:
        return self.clips[0].tokenizer

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        own = {"text_encoder": self.clips[0].encoder, "text_encoder_2": self.clips[1].encoder}
        return own if self.t5 is None else own | {"text_encoder_3": self.t5.encoder}

    @property
    def clip_tokens(self) -> int:
        """L1, 77 in published checkpoints."""
        return min(clip.max_tokens for clip in self.clips)

    @property
    def max_tokens(self) -> int:
        """L: rows of the CLIPs and of T5, 77 + 256."""
        return self.clip_tokens + SD3_T5_TOKENS

    @property
    def rows(self) -> Rows:
        """L rows, and one of the pooled projections."""
        pooled = sum(int(clip.encoder.config.projection_dim) for clip in self.clips)
        return Rows(self.max_tokens, self.width, pooled)

    @property
    def embeds_shape(self) -> tuple[int, int]:
        """(R, D), 334 and 4096 in published checkpoints."""
        return self.rows.shape

    @property
    def settings(self) -> str:
        return "" if self.t5 is None else "with T5"

    def tokenize(self, prompt: str, *, allow_empty: bool = False) -> TokenizedPrompt:
        read = tokenize(
            self.tokenizer,
            prompt,
            max_length=self.clip_tokens,
            allow_empty=allow_empty,
            reader="CLIP",
        )
        further = blank_prompt(read.text, SD3_T5_TOKENS)
        if self.t5 is not None:
            further = self.t5.tokenize(prompt, allow_empty=allow_empty)
        return joined([read, further])

    def step_scale(self, embeds: Tensor) -> float:
        return step_scale(self.rows.unpack(embeds)[0])

    def embed(self, prompt: str) -> Tensor:
        """[1, R, D], packed."""
        outputs = [
            clip.encoder(clip.ids(_of_clip(clip, prompt)), output_hidden_states=True)
            for clip in self.clips
        ]
        states = torch.cat(
            [output.hidden_states[-2][:, : self.clip_tokens] for output in outputs], dim=-1
        )
        states = pad(states, (0, self.width - states.shape[-1]))
        if self.t5 is None:
            further = states.new_zeros(1, SD3_T5_TOKENS, self.width)
        else:
            read = self.t5.tokenize(prompt, allow_empty=True)
            further = self.t5.embed(read).to(states.device, states.dtype)
        sequence = torch.cat([states, further], dim=1)
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
        return self.rows.pack(sequence, pooled)

    def output(
        self,
        network: Any,
        latents: Tensor,
        level: Level,
        embeds: Tensor,
        *,
        size: tuple[int, int],  # noqa: ARG002
        guidance: GuidanceScale | None = None,
    ) -> Tensor:
        """Run the transformer, fed 1000 s; see `TextConditioner`."""
        assert guidance is None, "Stable Diffusion 3 takes no guidance scale"
        sequence, pooled = self.rows.unpack(embeds)
        output: Tensor = network(
            hidden_states=latents,
            timestep=torch.full((len(latents),), level.fed, device=latents.device),
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
        ).sample
        return output

    def pipeline(self, network: Any, vae: Any, scheduler: Any) -> Any:
        from diffusers import StableDiffusion3Pipeline

        return StableDiffusion3Pipeline(
            transformer=network,
            scheduler=scheduler,
            vae=vae,
            text_encoder=self.clips[0].encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.clips[1].encoder,
            tokenizer_2=self.clips[1].tokenizer,
            text_encoder_3=None if self.t5 is None else self.t5.encoder,
            tokenizer_3=None if self.t5 is None else self.t5.tokenizer,
        )


@dataclass(frozen=True)
class FluxText:
    """Conditioning of FLUX.1: T5's rows, and CLIP's pooled output."""

    clip: ClipText
    t5: T5Text
    guidance: Guidance
    """By an input in [dev], none in [schnell]."""

    largest_side = None
    network = "transformer"
    patch = PATCH
    settings = ""

    @classmethod
    def of(cls, parts: Parts) -> FluxText:
        return cls(
            ClipText(parts["tokenizer"], parts["text_encoder"]),
            T5Text(parts["tokenizer_2"], parts["text_encoder_2"], FLUX_T5_TOKENS),
            "input" if parts["transformer"].config.guidance_embeds else "none",
        )

    @property
    def tokenizer(self) -> Any:
        return self.t5.tokenizer

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"text_encoder": self.clip.encoder, "text_encoder_2": self.t5.encoder}

    @property
    def max_tokens(self) -> int:
        """L: T5's rows, 512."""
        return self.t5.max_tokens

    @cached_property
    def rows(self) -> Rows:
        """L rows, and one of the pooled output."""
        config = self.t5.encoder.config
        return Rows(self.max_tokens, int(config.d_model), int(self.clip.encoder.config.hidden_size))

    @property
    def embeds_shape(self) -> tuple[int, int]:
        """(R, D), 513 and 4096 in published checkpoints."""
        return self.rows.shape

    def tokenize(self, prompt: str, *, allow_empty: bool = False) -> TokenizedPrompt:
        """Split a prompt into T5's tokens and words; CLIP has to have room for it, too."""
        read = self.t5.tokenize(prompt, allow_empty=allow_empty)
        _of_clip(self.clip, prompt)
        return read

    def step_scale(self, embeds: Tensor) -> float:
        return step_scale(self.rows.unpack(embeds)[0])

    def embed(self, prompt: str) -> Tensor:
        """[1, R, D], packed."""
        sequence = self.t5.embed(self.t5.tokenize(prompt, allow_empty=True))
        pooled = self.clip.encoder(self.clip.ids(_of_clip(self.clip, prompt))).pooler_output
        return self.rows.pack(sequence, pooled.to(sequence.device, sequence.dtype))

    def output(
        self,
        network: Any,
        latents: Tensor,
        level: Level,
        embeds: Tensor,
        *,
        size: tuple[int, int],  # noqa: ARG002
        guidance: GuidanceScale | None = None,
    ) -> Tensor:
        """Run the transformer on packed latents, fed s; see `TextConditioner`."""
        sequence, pooled = self.rows.unpack(embeds)
        batch, (height, width) = len(latents), latents.shape[-2:]
        device = latents.device
        timestep = torch.full((batch,), level.fed, device=device).to(latents.dtype)
        scale = None
        if guidance is not None:
            scales = [guidance] * batch if isinstance(guidance, float | int) else list(guidance)
            scale = torch.tensor(scales, dtype=torch.float32, device=device)
        places = _places(height // PATCH, width // PATCH).to(device, latents.dtype)
        output: Tensor = network(
            hidden_states=packed(latents),
            timestep=timestep / FED,
            guidance=scale,
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            txt_ids=torch.zeros(self.max_tokens, 3, device=device, dtype=latents.dtype),
            img_ids=places,
        ).sample
        return unpacked(output, height, width)

    def pipeline(self, network: Any, vae: Any, scheduler: Any) -> Any:
        from diffusers import FluxPipeline

        return FluxPipeline(
            scheduler=scheduler,
            vae=vae,
            text_encoder=self.clip.encoder,
            tokenizer=self.clip.tokenizer,
            text_encoder_2=self.t5.encoder,
            tokenizer_2=self.t5.tokenizer,
            transformer=network,
        )


def packed(latents: Tensor) -> Tensor:
    """[B, C, h, w] to [B, h/2 w/2, 4 C]: each token has a square of 2 x 2 latents."""
    squares = latents.unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, h/2 w/2, 4 C] to [B, C, h, w]."""
    squares = tokens.unflatten(1, (height // PATCH, width // PATCH))
    squares = squares.unflatten(-1, (-1, PATCH, PATCH))
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(-2).flatten(-3, -2)


def _places(rows: int, columns: int) -> Tensor:
    """Row and column of each token, behind a zero: [rows columns, 3]."""
    places = torch.zeros(rows, columns, 3)
    places[..., 1] = torch.arange(rows)[:, None]
    places[..., 2] = torch.arange(columns)
    return places.flatten(0, 1)


def _check_sd3(parts: Parts, text: TextConditioner, model: str) -> None:
    network, vae = parts["transformer"].config, parts["vae"].config
    assert isinstance(text, StableDiffusion3Text)
    check_side(network.sample_size, model)
    _check_channels(network.in_channels, vae.latent_channels, model)
    if network.patch_size != PATCH or network.sample_size % PATCH:
        raise ModelError(
            f"The transformer of the model '{model}' takes {network.patch_size} latents for a side "
            f"of a token of {network.sample_size}, expected {PATCH}; {WORKS}."
        )
    if text.largest_side < network.sample_size:
        raise ModelError(
            f"The transformer of the model '{model}' knows places of {network.pos_embed_max_size} "
            f"tokens a side, and its own size has {network.sample_size // PATCH}; get the model "
            "again."
        )
    widths = [int(clip.encoder.config.hidden_size) for clip in text.clips]
    t5 = None if text.t5 is None else int(text.t5.encoder.config.d_model)
    if sum(widths) > text.width or t5 not in (None, text.width):
        raise ModelError(
            f"The text encoders of the model '{model}' have widths {widths[0]}, {widths[1]}"
            f"{'' if t5 is None else f' and {t5}'}, its transformer expects {text.width}; the "
            "parts belong to different models."
        )
    _check_pooled(text.rows.pooled, network.pooled_projection_dim, model)
    check_vocabularies(parts, text, model)


def _check_flux(parts: Parts, text: TextConditioner, model: str) -> None:
    network, vae = parts["transformer"].config, parts["vae"].config
    assert isinstance(text, FluxText)
    stride = 2 ** (len(vae.block_out_channels) - 1)
    check_side(vae.sample_size // stride if type(vae.sample_size) is int else None, model)
    _check_channels(network.in_channels // PATCH**2, vae.latent_channels, model)
    if network.patch_size != 1 or network.out_channels not in (None, network.in_channels):
        raise ModelError(
            f"The transformer of the model '{model}' gives other channels than it takes, as FLUX's "
            f"tools and variants do; {WORKS}."
        )
    axes = network.axes_dims_rope
    if sum(axes) != network.attention_head_dim or (vae.sample_size // stride) % PATCH:
        raise ModelError(
            f"The transformer of the model '{model}' has places of {sum(axes)} numbers for heads "
            f"of {network.attention_head_dim}, or its autoencoder's sample_size {vae.sample_size} "
            "is no whole number of tokens; get the model again."
        )
    if text.rows.width != network.joint_attention_dim:
        raise ModelError(
            f"The text encoder T5 of the model '{model}' has width {text.rows.width}, its "
            f"transformer expects {network.joint_attention_dim}; the parts belong to different "
            "models."
        )
    _check_pooled(text.rows.pooled, network.pooled_projection_dim, model)
    check_vocabularies(parts, text, model)


def _check_channels(taken: int, given: int, model: str) -> None:
    if taken != given:
        raise ModelError(
            f"The transformer of the model '{model}' takes {taken} channels where its autoencoder "
            f"has {given}; {WORKS}."
        )


def _check_pooled(given: int, taken: int, model: str) -> None:
    if given != taken:
        raise ModelError(
            f"The text encoders of the model '{model}' give {given} pooled numbers, its "
            f"transformer expects {taken}; the parts belong to different models."
        )


CLIP_WITH_PROJECTION, T5 = "CLIPTextModelWithProjection", "T5EncoderModel"

STABLE_DIFFUSION_3 = Family(
    pipelines=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
    modules={
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": CLIP_WITH_PROJECTION,
        "text_encoder_2": CLIP_WITH_PROJECTION,
        "text_encoder_3": T5,
    },
    optional=("text_encoder_3", "tokenizer_3"),
    tokenizers=("tokenizer", "tokenizer_2", "tokenizer_3"),
    text=lambda parts, _: StableDiffusion3Text.of(parts),
    check_parts=_check_sd3,
    network="transformer",
    schedule=FlowSchedule.from_config,
    guidance_scale=7.0,
)
FLUX = Family(
    pipelines=("FluxPipeline", "FluxImg2ImgPipeline"),
    modules={
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": T5,
    },
    tokenizers=("tokenizer", "tokenizer_2"),
    text=lambda parts, _: FluxText.of(parts),
    check_parts=_check_flux,
    network="transformer",
    schedule=lambda config: FlowSchedule.from_config(config, start="linspace"),
    guidance_scale=3.5,
)

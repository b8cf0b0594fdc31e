"""A latent diffusion model as four functions: encode, decode, embed, predict noise.

    z_0 = s (mode of q(z | x) - m)      encode, s the autoencoder's scaling factor, m its shift
    x   = D(z_0 / s + m)                decode
    C   = text encoder(prompt)          embed
    eps = UNet(z_t, t, C)               predict_noise, v and x0 predictions converted to eps

Everything that depends on the checkpoint (scale, prediction type, token limit, resolution) is read
from its configs. Source: Rombach et al. 2022, sec. 3; the layout is diffusers'
`StableDiffusionPipeline`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nulltext.errors import PromptError
from nulltext.models.weight_delta import applied
from nulltext.prompts import TokenizedPrompt, tokenize
from nulltext.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class LatentDiffusion:
    """A loaded checkpoint. Its weights are never changed."""

    name: str
    """What it was loaded as: a bundled name, a folder, a hub id."""
    fingerprint: str
    """Identifies the weights; a saved inversion is bound to it."""
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    schedule: Schedule
    weight_delta: Mapping[str, Tensor] | None = None
    """A low-rank difference that the UNet runs with; the weights themselves stay."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unet.device

    @property
    def vae_stride(self) -> int:
        """Pixels per latent pixel: 8 in Stable Diffusion."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def latents_shape(self) -> tuple[int, int, int]:
        """[C, h, w] of one photo's latents at the model's own resolution."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.unet.config.in_channels), int(height), int(width)

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) in pixels that the model was made for."""
        _, height, width = self.latents_shape
        return height * self.vae_stride, width * self.vae_stride

    @property
    def max_tokens(self) -> int:
        """Length of a padded prompt, L, begin and end of text included."""
        return int(
            min(
                self.tokenizer.model_max_length,
                self.text_encoder.config.max_position_embeddings,
            )
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode photos to latents, deterministically (the posterior's mode).

        Args:
            images: [B, 3, H, W] in [-1, 1], H and W multiples of `vae_stride`.

        Returns:
            scaled latents [B, C, h, w], float32, on the model's device.
        """
        images = images.to(self.vae.device, self.vae.dtype)
        latents = self.vae.encode(images).latent_dist.mode().float()
        return (latents - self._vae_shift) * self._vae_scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [B, C, h, w] to images [B, 3, H, W], float32, about [-1, 1]."""
        latents = latents / self._vae_scale + self._vae_shift
        images: Tensor = self.vae.decode(latents.to(self.vae.device, self.vae.dtype)).sample
        return images.float()

    def tokenize(self, prompt: str, *, allow_empty: bool = False) -> TokenizedPrompt:
        """Split a prompt into tokens and words.

        Raises:
            PromptError: it is empty (unless allowed), too long, or unreadable to the tokenizer, or
                names a learnt token of several vectors.
        """
        added = self.tokenizer.get_added_vocab()
        for token in added:
            if f"{token}_1" in added and token in prompt:
                raise PromptError(
                    f"'{token}' is a textual-inversion token of several vectors, which nulltext "
                    f"cannot align; write its parts out: {token} {token}_1 …"
                )
        return tokenize(self.tokenizer, prompt, max_length=self.max_tokens, allow_empty=allow_empty)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts, "" included: [B, L, D], float32.

        Raises:
            PromptError: a prompt is too long or unreadable to the tokenizer.
        """
        tokenized = [self.tokenize(prompt, allow_empty=True) for prompt in prompts]
        ids = torch.tensor([t.token_ids for t in tokenized], device=self.text_encoder.device)
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            lengths = torch.tensor([t.end_of_text + 1 for t in tokenized], device=ids.device)
            mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        embeds: Tensor = self.text_encoder(ids, attention_mask=mask).last_hidden_state
        return embeds.float()

    def predict_noise(self, latents: Tensor, timestep: int, prompt_embeds: Tensor) -> Tensor:
        """Predict eps; costs B single-image UNet evaluations, differentiable in the embeddings.

        Args:
            latents: [B, C, h, w], scaled. prompt_embeds: [B, L, D]. Both any float dtype.

        Returns:
            eps [B, C, h, w], float32.
        """
        dtype = self.unet.dtype
        with applied(self.unet, self.weight_delta):
            output = self.unet(
                latents.to(dtype), timestep, encoder_hidden_states=prompt_embeds.to(dtype)
            ).sample
        return self.schedule.noise_from_output(output.float(), latents.float(), timestep)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let no UNet weight collect gradients inside the block; restore the flags after it."""
        trainable = [p for p in self.unet.parameters() if p.requires_grad]
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)

    def to_diffusers(self) -> StableDiffusionPipeline:
        """This model as a stock diffusers pipeline with its DDIM scheduler; weights are shared."""
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        schedule = self.schedule
        final_is_one = schedule.final_alpha_cumprod == 1.0
        betas = 1.0 - schedule.alphas_cumprod / [1.0, *schedule.alphas_cumprod[:-1]]
        scheduler = DDIMScheduler(
            num_train_timesteps=schedule.train_steps,
            trained_betas=betas.tolist(),
            clip_sample=False,
            set_alpha_to_one=final_is_one,
            steps_offset=schedule.steps_offset,
            prediction_type=schedule.prediction,
            timestep_spacing=schedule.spacing,
        )
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    @property
    def _vae_scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def _vae_shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)

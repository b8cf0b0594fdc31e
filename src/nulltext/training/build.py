"""A recipe's networks, untrained, as diffusers' and transformers' own classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from nulltext.training.recipe import BETA_START, Recipe

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

MLP_RATIO = 4


def build_scheduler(recipe: Recipe) -> DDIMScheduler:
    """The schedule of Stable Diffusion 1.x, or a noisier one where the recipe wants it."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=BETA_START,
        beta_end=recipe.denoiser.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def build_autoencoder(recipe: Recipe) -> AutoencoderKL:
    """The autoencoder, with weights drawn from the recipe's seed."""
    from diffusers import AutoencoderKL

    own = recipe.autoencoder
    levels = len(own.channels)
    with _seeded(recipe.seed):
        return AutoencoderKL(
            block_out_channels=own.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=own.layers,
            latent_channels=own.latent_channels,
            norm_num_groups=own.norm_groups,
            sample_size=recipe.resolution,
            mid_block_add_attention=False,
            scaling_factor=1.0,
        )


def build_text_encoder(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder, with weights drawn from the recipe's seed."""
    from transformers import CLIPTextConfig, CLIPTextModel

    own = recipe.denoiser
    with _seeded(recipe.seed + 1):
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=own.text_width,
                intermediate_size=MLP_RATIO * own.text_width,
                projection_dim=own.text_width,
                num_hidden_layers=own.text_layers,
                num_attention_heads=own.text_heads,
                max_position_embeddings=recipe.tokenizer.length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )


def build_unet(recipe: Recipe) -> UNet2DConditionModel:
    """The UNet, with weights drawn from the recipe's seed."""
    from diffusers import UNet2DConditionModel

    own = recipe.denoiser
    down = ["CrossAttnDownBlock2D" if looks else "DownBlock2D" for looks in own.attention]
    up = ["CrossAttnUpBlock2D" if looks else "UpBlock2D" for looks in reversed(own.attention)]
    stride = 2 ** (len(recipe.autoencoder.channels) - 1)
    with _seeded(recipe.seed + 2):
        return UNet2DConditionModel(
            sample_size=recipe.resolution // stride,
            in_channels=recipe.autoencoder.latent_channels,
            out_channels=recipe.autoencoder.latent_channels,
            block_out_channels=own.channels,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            layers_per_block=own.layers,
            cross_attention_dim=own.text_width,
            attention_head_dim=own.heads,  # what diffusers calls so is the number of heads
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The libraries draw initial weights from torch's own generator: lend it one, give it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield

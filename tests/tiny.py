"""Small random-weight Stable Diffusion pipelines, made with the library's own classes."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from vocabularies import trained

Family = Literal["sd1", "sd2"]

MAX_TOKENS = {"sd1": 24, "sd2": 30}
WIDTH = 32


def tiny_pipeline(family: Family, seed: int = 0) -> StableDiffusionPipeline:
    """A complete text-to-image pipeline with latents of 8 x 8 and photos of 16 x 16 or 32 x 32."""
    torch.manual_seed(seed)
    second = family == "sd2"
    tokenizer = trained("!" if second else "<|endoftext|>", MAX_TOKENS[family])
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4) if second else 4,
        use_linear_projection=second,
        upcast_attention=second,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32) if second else (32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * (2 if second else 3),
        up_block_types=("UpDecoderBlock2D",) * (2 if second else 3),
        latent_channels=4,
        scaling_factor=0.3 if second else 0.18215,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS[family],
            hidden_act="gelu" if second else "quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if second else "epsilon",
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )

"""Small random-weight Stable Diffusion pipelines, made with the library's own classes."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from support.vocabularies import trained

Family = Literal["sd1", "sd2", "sdxl"]

MAX_TOKENS = {"sd1": 24, "sd2": 30, "sdxl": 24}
WIDTH = 32
SECOND_WIDTH = 48
POOLED = 40
SIZE_EMBEDDING = 8


def tiny_pipeline(family: Family, seed: int = 0) -> Any:
    """A complete text-to-image pipeline with latents of 8 x 8 and photos of 16 x 16 or 32 x 32."""
    torch.manual_seed(seed)
    return tiny_sdxl_pipeline() if family == "sdxl" else tiny_sd_pipeline(family)


def tiny_sd_pipeline(family: Family) -> StableDiffusionPipeline:
    second = family == "sd2"
    tokenizer = own_tokenizer("!" if second else "<|endoftext|>", MAX_TOKENS[family])
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
    config = text_config(tokenizer, MAX_TOKENS[family], WIDTH, "gelu" if second else "quick_gelu")
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler("v_prediction" if second else "epsilon"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl_pipeline() -> StableDiffusionXLPipeline:
    """Two encoders of unequal width, whose tokenizers differ in their pad token."""
    tokens = MAX_TOKENS["sdxl"]
    tokenizers = own_tokenizer("<|endoftext|>", tokens), own_tokenizer("!", tokens)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=WIDTH + SECOND_WIDTH,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_EMBEDDING,
        projection_class_embeddings_input_dim=POOLED + 6 * SIZE_EMBEDDING,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        scaling_factor=0.13025,
    )
    first = CLIPTextModel(text_config(tokenizers[0], tokens, WIDTH, "quick_gelu"))
    second = CLIPTextModelWithProjection(
        text_config(tokenizers[1], tokens, SECOND_WIDTH, "gelu", projection_dim=POOLED)
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=scheduler("epsilon"),
        add_watermarker=False,
    )


def own_tokenizer(pad_token: str, tokens: int) -> CLIPTokenizer:
    """One that a test may add tokens to."""
    return copy.deepcopy(trained(pad_token, tokens))


def text_config(
    tokenizer: CLIPTokenizer, tokens: int, width: int, activation: str, **more: int
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokens,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def scheduler(prediction: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )

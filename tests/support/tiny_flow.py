"""Small random-weight Stable Diffusion 3 and FLUX pipelines, made of the library's own classes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from support.tiny import own_tokenizer, text_config

Kind = Literal["sd3", "sd35", "flux-dev", "flux-schnell"]
KINDS: tuple[Kind, ...] = ("sd3", "sd35", "flux-dev", "flux-schnell")

TOKENS = 24
JOINT = 48
"""Width of the joint attention's text: T5's."""
CHANNELS = 4
WORDS = ("a", "photo", "of", "on", "cat", "dog", "sofa", "red", "white", "flower")


def tiny_flow_pipeline(kind: Kind, seed: int = 0) -> Any:
    """A complete pipeline with latents of 8 x 8 and photos of 32 x 32.

    sd3: no T5. sd35: T5, dual attention and normed queries and keys. flux-dev: embedded guidance.
    """
    torch.manual_seed(seed)
    return tiny_flux(kind) if kind.startswith("flux") else tiny_sd3(kind)


def tiny_sd3(kind: Kind) -> StableDiffusion3Pipeline:
    later = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if kind == "sd35" else {}
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=JOINT,
        caption_projection_dim=16,
        pooled_projection_dim=16 + 16,
        pos_embed_max_size=8,
        **later,
    )
    return StableDiffusion3Pipeline(
        transformer=spread(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(1.5305, 0.0609),
        text_encoder=clip(16),
        tokenizer=own_tokenizer("<|endoftext|>", TOKENS),
        text_encoder_2=clip(32),
        tokenizer_2=own_tokenizer("!", TOKENS),
        text_encoder_3=t5() if kind == "sd35" else None,
        tokenizer_3=t5_tokenizer() if kind == "sd35" else None,
    )


def tiny_flux(kind: Kind) -> FluxPipeline:
    dev = kind == "flux-dev"
    transformer = FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=JOINT,
        pooled_projection_dim=32,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=dev,
    )
    tokenizer = own_tokenizer("<|endoftext|>", TOKENS)
    return FluxPipeline(
        transformer=spread(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if dev else 1.0, use_dynamic_shifting=dev
        ),
        vae=autoencoder(0.3611, 0.1159),
        text_encoder=CLIPTextModel(text_config(tokenizer, TOKENS, 32, "quick_gelu")),
        tokenizer=tokenizer,
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )


def spread(transformer: Any) -> Any:
    """Draw the last projection, which is zero where nothing was trained."""
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.3)
    for block in [*transformer.transformer_blocks]:
        for norm in (block.norm1, block.norm1_context):
            torch.nn.init.normal_(norm.linear.weight, std=0.2)
    return transformer


def autoencoder(scale: float, shift: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=CHANNELS,
        sample_size=32,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def clip(width: int) -> CLIPTextModelWithProjection:
    tokenizer = own_tokenizer("<|endoftext|>", TOKENS)
    return CLIPTextModelWithProjection(
        text_config(tokenizer, TOKENS, width, "gelu", projection_dim=16)
    )


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            d_model=JOINT,
            d_ff=32,
            d_kv=8,
            num_heads=2,
            num_layers=1,
            feed_forward_proj="gated-gelu",
            vocab_size=256,
            tie_word_embeddings=False,
        )
    )


def t5_tokenizer() -> T5TokenizerFast:
    """A unigram tokenizer with T5's special tokens and conventions."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS]
    pieces += [(chr(code), -8.0) for code in range(33, 127)]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=2))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unigram.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return T5TokenizerFast(
        tokenizer_object=unigram,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_ids=0,
        model_max_length=512,
    )

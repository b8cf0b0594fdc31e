"""Small random-weight Stable Diffusion 3, 3.5 and FLUX pipelines, of the library's own classes."""

from __future__ import annotations

from functools import lru_cache
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
from support.vocabularies import VOCABULARY

FlowKind = Literal["sd3", "sd35", "flux-dev", "flux-schnell"]

KINDS: tuple[FlowKind, ...] = ("sd3", "sd35", "flux-dev", "flux-schnell")
TOKENS = 24
WIDTH, SECOND_WIDTH, JOINT_WIDTH = 32, 48, 96
HEADS, HEAD = 2, 16


def tiny_flow_pipeline(kind: FlowKind, seed: int = 0) -> Any:
    """A complete pipeline with latents of 8 x 8 and photos of 32 x 32; only sd35 has T5."""
    torch.manual_seed(seed)
    pipe = _flux(kind) if kind.startswith("flux") else _sd3(kind)
    # fresh layers of these classes are nearly the identity: let levels and words count
    for name, weight in pipe.transformer.named_parameters():
        if name.endswith("weight") and weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.08)
    return pipe


def _sd3(kind: FlowKind) -> StableDiffusion3Pipeline:
    newer = kind == "sd35"
    tokenizers = own_tokenizer("<|endoftext|>", TOKENS), own_tokenizer("!", TOKENS)
    widths = (WIDTH, SECOND_WIDTH)
    clips = [
        CLIPTextModelWithProjection(
            text_config(tokenizer, TOKENS, width, "gelu", projection_dim=width)
        )
        for tokenizer, width in zip(tokenizers, widths, strict=True)
    ]
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=3,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=JOINT_WIDTH,
        caption_projection_dim=HEADS * HEAD,
        pooled_projection_dim=sum(widths),
        out_channels=16,
        pos_embed_max_size=24,
        qk_norm="rms_norm" if newer else None,
        dual_attention_layers=(0, 1) if newer else (),
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(1.5305, 0.0609),
        text_encoder=clips[0],
        tokenizer=tokenizers[0],
        text_encoder_2=clips[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=_t5() if newer else None,
        tokenizer_3=t5_tokenizer() if newer else None,
    )


def _flux(kind: FlowKind) -> FluxPipeline:
    tokenizer = own_tokenizer("<|endoftext|>", TOKENS)
    dev = kind == "flux-dev"
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=JOINT_WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=dev,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if dev else 1.0, use_dynamic_shifting=dev
        ),
        vae=_autoencoder(0.3611, 0.1159),
        text_encoder=CLIPTextModel(text_config(tokenizer, TOKENS, WIDTH, "quick_gelu")),
        tokenizer=tokenizer,
        text_encoder_2=_t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def _autoencoder(scale: float, shift: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=16,
        sample_size=32,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=256,
            d_model=JOINT_WIDTH,
            d_ff=64,
            d_kv=16,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


@lru_cache
def t5_tokenizer() -> T5TokenizerFast:
    """A unigram tokenizer with T5's special tokens; words beyond a few are spelled."""
    words = [word for word in VOCABULARY if word.isascii() and word != ","]
    pieces = [
        *(("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)),
        *((f"\u2581{word}", -3.0) for word in [*words, "photo", "of", "on", "sofa", "white"]),
        ("\u2581", -6.0),
        *((chr(code), -8.0) for code in range(33, 127)),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return T5TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_ids=0,
        model_max_length=512,
    )

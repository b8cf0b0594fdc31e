"""Small random-weight Stable Diffusion pipelines, made with the library's own classes."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

Family = Literal["sd1", "sd2"]

SENTENCES = [
    "a photo of an orange flower with a dark background",
    "a photo of a white daisy, and a yellow sunflower on a blue sofa",
    "a cat sitting next to a mirror",
]
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = {"sd1": 24, "sd2": 30}
WIDTH = 32


@cache
def tiny_tokenizer(max_tokens: int, pad_token: str = END) -> CLIPTokenizer:
    """A CLIP-style byte-level BPE that can read anything: some words whole, others in pieces."""
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = Sequence([NFC(), Replace("  ", " "), Lowercase()])
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=620,
        special_tokens=[BEGIN, END],
        end_of_word_suffix="</w>",
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    vocabulary = bpe.get_vocab()
    for symbol in ByteLevel.alphabet():
        vocabulary.setdefault(f"{symbol}</w>", len(vocabulary))
    merges = [tuple(pair) for pair in _merges(bpe)]
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        pad_token=pad_token,
        model_max_length=max_tokens,
    )


def _merges(bpe: Tokenizer) -> list[list[str]]:
    import json

    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [merge if isinstance(merge, list) else merge.split(" ") for merge in merges]


def tiny_pipeline(family: Family, seed: int = 0) -> StableDiffusionPipeline:
    """A complete text-to-image pipeline with latents of 8 x 8 and photos of 16 x 16 or 32 x 32."""
    torch.manual_seed(seed)
    second = family == "sd2"
    tokenizer = tiny_tokenizer(MAX_TOKENS[family], "!" if second else END)
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

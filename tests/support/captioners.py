"""A small captioner with random weights, of either mapper, with the bundled model's words."""

from __future__ import annotations

import torch
from transformers import (
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
)

from nulltext.captioning.captioner import (
    Captioner,
    CaptionModel,
    ImagePreprocessing,
    MlpMapper,
    MlpSettings,
    TransformerMapper,
    TransformerSettings,
)
from nulltext.training.components import train_tokenizer
from nulltext.training.recipe import TokenizerSettings

FEATURES, WIDTH, PREFIX = 12, 16, 3
WORDS = ["a photo of a red rose", "a photo of a yellow tulip with a dark background"]
LIVELY = 5.0
"""Initial weights are enlarged so that some next tokens are clearly likelier than others."""


def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(WORDS, TokenizerSettings(700, 32))


def clip(features: int = FEATURES) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=features,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return CLIPVisionModelWithProjection(config)


def gpt(vocabulary: int, positions: int = 80) -> GPT2LMHeadModel:
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    shape = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": positions}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **shape, **ends)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(LIVELY)
    return model


def mapper(kind: str) -> MlpMapper | TransformerMapper:
    if kind == "mlp":
        return MlpMapper(MlpSettings(FEATURES, 24, PREFIX, WIDTH))
    return TransformerMapper(TransformerSettings(FEATURES, 2, PREFIX, WIDTH, 2, 8, 32))


def captioner(kind: str = "mlp", *, seed: int = 0) -> Captioner:
    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CaptionModel(clip(), mapper(kind), gpt(len(words)), unit_features=kind != "mlp")
    model.requires_grad_(False).eval()
    return Captioner("tiny", model, words, ImagePreprocessing(16))

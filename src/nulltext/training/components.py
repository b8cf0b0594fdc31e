"""A recipe's untrained components, as diffusers' and transformers' own classes, and their start.

The tokenizer learns byte pairs as CLIP's, from the captions and from plain English: every byte has
a token, alone and at a word's end, so that nothing is unreadable; each word of the captions and
each common English word becomes one token as far as the vocabulary goes.

Networks begin with random weights or with another model's, also a smaller one's. A tensor of the
same name is copied; where the new one is longer along a dimension, the old one fills its first
corner; what old outputs would read from new inputs is 0, and the rest stays as it was initialised.
The encoder's last layers hold means above log-variances, so each half is filled by itself. An
autoencoder that has more latent channels and nothing else new thus begins as exactly the function
that the old one was, and its first latents are the old one's (`grow_latents`).
Sources: Sennrich et al. 2016 (BPE), alg. 1; Radford et al. 2021 (CLIP), sec. 2.4; Net2Net (Chen et
al. 2016).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nulltext.training.recipe import BETA_START, Recipe, TokenizerSettings

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

MLP_RATIO = 4
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
EMPHASIS = 50
"""Weight of a caption's word when byte pairs are counted; a word of plain English has 1."""
BY_TOKEN = "token_embedding"
"""Part of the names of tensors whose rows belong to tokens; see `warm_start_embeddings`."""
STACKED = ("encoder.conv_out.", "quant_conv.")
"""Tensors of an autoencoder whose rows (and columns) are means, then log-variances."""
NEW_LOGVAR = -6.0
"""Log-variance of new latent channels: a decoder learns to ignore what begins as noise."""
NEW_GAIN = 2.5
"""Gain of the new channels' first layer, which brings them to about unit variance."""


def common_words() -> list[str]:
    text = (resources.files("nulltext.training") / "words.txt").read_text(encoding="utf-8")
    return text.split()


def train_tokenizer(captions: Iterable[str], settings: TokenizerSettings) -> CLIPTokenizer:
    """Learn a tokenizer; the same captions give the same one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    bpe.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    ends = [byte + WORD_END for byte in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary - 2,
        initial_alphabet=alphabet,
        special_tokens=ends,  # else they are numbered in no fixed order, and ties with them
        end_of_word_suffix=WORD_END,
        min_frequency=1,
        show_progress=False,
    )
    texts = [text.lower() for text in captions]
    bpe.train_from_iterator([*texts * EMPHASIS, *common_words()], trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    merged = ("".join(pair) for pair in merges)
    symbols = dict.fromkeys([BEGIN, END, *alphabet, *ends, *merged])
    return CLIPTokenizer(
        vocab={symbol: number for number, symbol in enumerate(symbols)},
        merges=merges,
        pad_token=END,
        model_max_length=settings.length,
    )


def build_scheduler(recipe: Recipe) -> DDIMScheduler:
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
    from diffusers import AutoencoderKL

    sizes = recipe.autoencoder
    with seeded(recipe.seed):
        return AutoencoderKL(
            block_out_channels=sizes.channels,
            down_block_types=("DownEncoderBlock2D",) * len(sizes.channels),
            up_block_types=("UpDecoderBlock2D",) * len(sizes.channels),
            layers_per_block=sizes.layers,
            latent_channels=sizes.latent_channels,
            norm_num_groups=sizes.norm_groups,
            sample_size=recipe.resolution,
            mid_block_add_attention=False,
            scaling_factor=1.0,
        )


def build_text_encoder(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = recipe.denoiser
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.text_width,
        intermediate_size=MLP_RATIO * sizes.text_width,
        projection_dim=sizes.text_width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        max_position_embeddings=recipe.tokenizer.length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(recipe.seed + 1):
        return CLIPTextModel(config)


def build_unet(recipe: Recipe) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    sizes = recipe.denoiser
    kinds = ["CrossAttn" if attention else "" for attention in sizes.attention]
    with seeded(recipe.seed + 2):
        return UNet2DConditionModel(
            sample_size=recipe.resolution // recipe.autoencoder.stride,
            in_channels=recipe.autoencoder.latent_channels,
            out_channels=recipe.autoencoder.latent_channels,
            block_out_channels=sizes.channels,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            layers_per_block=sizes.layers,
            cross_attention_dim=sizes.text_width,
            attention_head_dim=sizes.heads,  # diffusers' name for the number of heads
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's own generator, from which the libraries draw initial weights, in the block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def warm_start(module: nn.Module, old: Mapping[str, Tensor]) -> None:
    for name, weight in module.named_parameters():
        source = old.get(name)
        if BY_TOKEN in name or source is None or source.ndim != weight.ndim:
            continue
        if name.startswith(STACKED) and source.shape != weight.shape:
            for rows, old_rows in zip(weight.chunk(2), source.chunk(2), strict=True):
                both = rows.ndim > 1 and rows.shape[1] == len(weight)  # quant_conv reads halves too
                parts = [x.chunk(2, dim=1) if both else (x,) for x in (rows, old_rows)]
                for part, old_part in zip(*parts, strict=True):
                    _fill_corner(part, old_part)
        else:
            _fill_corner(weight, source)


def _fill_corner(weight: Tensor, source: Tensor) -> None:
    corner = tuple(slice(min(a, b)) for a, b in zip(weight.shape, source.shape, strict=True))
    if weight.ndim > 1:
        weight[: source.shape[0], source.shape[1] :] = 0.0
    weight[corner] = source[corner].to(weight)


@torch.no_grad()
def grow_latents(vae: AutoencoderKL, old: AutoencoderKL) -> None:
    """Fill an autoencoder from one with fewer latent channels.

    The new channels carry what the first layers see of the photo; the decoder reads nothing from
    them until its first update.
    """
    warm_start(vae, dict(old.named_parameters()))
    before, now = old.config.latent_channels, vae.config.latent_channels
    if now <= before:
        return
    means, variances = slice(before, now), slice(now + before, 2 * now)
    first, sampled, given = vae.encoder.conv_out, vae.quant_conv, vae.post_quant_conv
    first.weight[means] *= NEW_GAIN
    for layer, rows in ((sampled, means), (sampled, variances), (given, means)):  # 1 x 1 identities
        layer.weight[rows] = 0.0
        layer.weight[rows, rows, 0, 0] = torch.eye(now - before)
        layer.bias[rows] = 0.0
    first.bias[means] = first.bias[variances] = 0.0
    sampled.bias[variances] = NEW_LOGVAR


@torch.no_grad()
def warm_start_embeddings(
    new: nn.Embedding,
    old: nn.Embedding,
    *,
    tokens: Mapping[str, int],
    old_tokens: Mapping[str, int],
) -> None:
    for token, row in tokens.items():
        if token in old_tokens:
            _fill_corner(new.weight[row], old.weight[old_tokens[token]])

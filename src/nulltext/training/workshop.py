"""Where a model is made: recipe, photos, folder, and what has been made there so far."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nulltext.errors import DataError, OptionError
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.load import from_pipe
from nulltext.training.build import (
    build_autoencoder,
    build_scheduler,
    build_text_encoder,
    build_unet,
)
from nulltext.training.captions import CaptionSettings, compose
from nulltext.training.collection import TRAIN, Example, digest, load_pixels, read_collection
from nulltext.training.eyes import Sight
from nulltext.training.latents import Views
from nulltext.training.loop import averaged_weights, checkpoint_path, step_generator
from nulltext.training.recipe import Recipe
from nulltext.training.vocabulary import train_tokenizer
from nulltext.training.warm_start import load_weights, warm_start, warm_start_embeddings

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

HELD_OUT_SHARE = 0.05
"""Share of the photos that is kept for the sample pictures where no split is given."""
SHOWN_AT_MOST = 64


@dataclass(frozen=True)
class Workshop:
    """A recipe, its photos, and the place where the work is done."""

    recipe: Recipe
    photos: Path
    """The folder of captioned photos."""
    folder: Path
    """Checkpoints, sample pictures, encoded views."""
    device: torch.device
    autocast: torch.dtype | None = None
    """Dtype of the matrix products, None for float32."""
    origin: LatentDiffusion | None = None
    """A model to begin from, as far as its tensors fit."""
    sight: Sight | None = None
    """A vision model for the captioner to begin with; None: one that has seen nothing."""

    @cached_property
    def examples(self) -> tuple[list[Example], list[Example]]:
        """What is trained on, and what is held out."""
        everything = read_collection(self.photos)
        trained = [example for example in everything if example.split == TRAIN]
        held_out = [example for example in everything if example.split != TRAIN]
        if not held_out:
            every = max(2, round(1 / HELD_OUT_SHARE))
            trained = [e for i, e in enumerate(everything) if i % every]
            held_out = everything[::every]
        if not trained:
            raise DataError(f"'{self.photos}' has no photo of the split '{TRAIN}' to train on.")
        return trained, held_out

    @cached_property
    def pixels(self) -> tuple[Tensor, Tensor]:
        """Trained and held-out photos, uint8 [N, 3, S, S]."""
        trained, held_out = self.examples
        side = self.recipe.photo_side
        return load_pixels(trained, side), load_pixels(held_out[:SHOWN_AT_MOST], side)

    @cached_property
    def words(self) -> str:
        """Digest of all captions and labels, and of the tokenizer's settings."""
        said = [(e.captions, e.kind, e.colour, e.background) for e in self.examples[0]]
        return hashlib.sha256(repr((said, self.recipe.tokenizer)).encode()).hexdigest()[:16]

    @cached_property
    def identity(self) -> str:
        """What every stage depends on."""
        own = self.recipe
        parts = (own.resolution, own.photo_side, digest(self.pixels[0]))
        return repr((*parts, None if self.origin is None else self.origin.fingerprint))


def tokenizer_of(shop: Workshop) -> CLIPTokenizer:
    """The tokenizer's stage: learnt in seconds, kept in the work folder."""
    from transformers import CLIPTokenizer

    kept = shop.folder / f"tokenizer-{shop.words}"
    if (kept / "tokenizer.json").is_file():
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(kept)
        return tokenizer
    trained, _ = shop.examples
    everything = CaptionSettings(empty=0.0, filler=0.0)
    captions = [text for e in trained for text in e.captions]
    rng = step_generator(shop.recipe.seed, 0)
    captions += [compose(e, everything, (), rng).text for e in trained if not e.captions]
    tokenizer = train_tokenizer(captions, shop.recipe.tokenizer)
    tokenizer.save_pretrained(kept)
    return tokenizer


def untrained(shop: Workshop, vae: AutoencoderKL, views: Views) -> LatentDiffusion:
    """The model around an autoencoder; UNet and text encoder as the stage begins with them.

    Latents are scaled to unit variance, or as they were where they are another model's.
    """
    from diffusers import StableDiffusionPipeline

    tokenizer = tokenizer_of(shop)
    unet, text_encoder = build_unet(shop.recipe), build_text_encoder(shop.recipe, tokenizer)
    if shop.origin is not None:
        warm_start(unet, dict(shop.origin.unet.named_parameters()))
        encoder = shop.origin.components["text_encoder"]
        warm_start(text_encoder, dict(encoder.named_parameters()))
        warm_start_embeddings(text_encoder, tokenizer, shop.origin)
    vae.register_to_config(scaling_factor=scale_of(shop, views))
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(shop.recipe),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return replace(from_pipe(pipe.to(shop.device)), name=shop.recipe.name)


def keeps_latents(recipe: Recipe) -> bool:
    """Whether latents shall be those of the model that training begins with."""
    return recipe.autoencoder.loop.steps == 0 or recipe.autoencoder.loss.keep > 0


def check_origin(recipe: Recipe, origin: LatentDiffusion | None) -> None:
    """Refuse to keep another model's autoencoder, or its latents, where that cannot be.

    Raises:
        OptionError: no model was named, or its autoencoder does not fit.
    """
    if not keeps_latents(recipe):
        return
    if origin is None:
        raise OptionError(
            "The recipe keeps another model's autoencoder (0 updates) or its latents (keep): name "
            "that model with --init."
        )
    own = recipe.autoencoder
    had = origin.vae.config
    stays = own.loop.steps == 0
    more = own.latent_channels - had.latent_channels
    if more < 0 or (stays and more) or own.channels != tuple(had.block_out_channels):
        raise OptionError(
            f"The recipe's autoencoder has {own.latent_channels} latent channels and channels "
            f"{list(own.channels)}, that of '{origin.name}' {had.latent_channels} and "
            f"{list(had.block_out_channels)}: to keep it, both must agree"
            + ("." if stays else ", or the recipe have more latent channels.")
        )


def scale_of(shop: Workshop, views: Views) -> float:
    """The scaling factor of the latents."""
    if shop.origin is not None and keeps_latents(shop.recipe):
        return float(shop.origin.vae.config.scaling_factor)
    return views.scale


def encoder_of(shop: Workshop) -> tuple[AutoencoderKL, str]:
    """The trained autoencoder, with the later decoder where there is one, and its encoder's digest.

    Raises:
        OptionError: its stage has not been trained to the end.
    """
    path = checkpoint_path(shop.folder, "autoencoder")
    wanted = shop.recipe.autoencoder.loop.steps
    weights, done = averaged_weights(path) if path.is_file() else ({}, 0)
    if done < wanted:
        raise OptionError(
            f"The autoencoder has {done} of {wanted} updates; train it first (--stage autoencoder)."
        )
    vae = build_autoencoder(shop.recipe)
    identity = hashlib.sha256()
    for name in sorted(weights):
        if name.startswith(("encoder.", "quant_conv.")):
            identity.update(weights[name].numpy().tobytes())
    later = checkpoint_path(shop.folder, "decoder")
    if later.is_file():
        weights |= averaged_weights(later)[0]
    load_weights(vae, weights, path)
    return vae.requires_grad_(False), identity.hexdigest()[:16]

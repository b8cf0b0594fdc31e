"""The recipe's stages, in order; each is a generator that reports its updates.

    tokenizer -> autoencoder -> decoder            words to tokens; pixels to latents and back
                            \\-> views -> denoiser   photos to latents; latents from noise and words
    export                                         an ordinary Stable Diffusion folder
    captioner                                      photos to words: apart from all of them

Decoder and denoiser need the encoder only, so they may train at the same time. All state is in one
work folder: killed at any moment, every stage continues from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nulltext.errors import DataError, OptionError
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.load import from_pipe
from nulltext.training.autoencoder import AutoencoderStage, DecoderStage
from nulltext.training.build import (
    SCHEDULER,
    build_autoencoder,
    build_text_encoder,
    build_unet,
)
from nulltext.training.captioner import CaptionerStage, build_captioner
from nulltext.training.captions import CaptionSettings, compose
from nulltext.training.collection import TRAIN, Example, digest, load_pixels, read_collection
from nulltext.training.denoiser import DenoiserStage
from nulltext.training.eyes import Sight
from nulltext.training.latents import Views, encode_views, load_views, save_views
from nulltext.training.loop import (
    Objective,
    TrainInfo,
    averaged_weights,
    checkpoint_path,
    step_generator,
    train,
)
from nulltext.training.recipe import Recipe
from nulltext.training.vocabulary import common_words, train_tokenizer
from nulltext.training.warm_start import load_weights, warm_start, warm_start_embeddings

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

Stage = Generator[TrainInfo, None, None]

HELD_OUT_SHARE = 0.05
"""Share of the photos that is kept for the sample pictures where no split is given."""


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


SHOWN_AT_MOST = 64


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


def autoencoder_stage(shop: Workshop) -> Stage:
    """Train encoder and decoder.

    Raises:
        OptionError: the recipe keeps the autoencoder that there was, and there was none.
    """
    vae = build_autoencoder(shop.recipe)
    own = shop.recipe.autoencoder
    if shop.origin is not None:
        warm_start(vae, dict(shop.origin.vae.named_parameters()))
    elif own.loop.steps == 0:
        raise OptionError(
            "The recipe gives the autoencoder 0 updates, which keeps another model's: name that "
            "model with --init."
        )
    objective = AutoencoderStage(
        vae.to(shop.device).train(),
        *shop.pixels,
        resolution=shop.recipe.resolution,
        crop=own.crop,
        loss=own.loss,
    )
    yield from _run(shop, objective, "autoencoder", _without_loops(own))


def decoder_stage(shop: Workshop) -> Stage:
    """Train the decoder alone."""
    vae, source = encoder_of(shop)
    own = shop.recipe.autoencoder
    objective = DecoderStage(
        vae.to(shop.device).train(),
        *shop.pixels,
        resolution=shop.recipe.resolution,
        crop=own.crop,
        loss=own.loss,
    )
    yield from _run(shop, objective, "decoder", source)


def views_stage(shop: Workshop) -> Stage:
    """Encode the photos, unless that is done."""
    vae, source = encoder_of(shop)
    path, identity = views_place(shop, source)
    if load_views(path, identity) is not None:
        return
    trained, _ = shop.examples
    vae.to(shop.device).eval()
    for info in encode_views(
        vae,
        shop.pixels[0],
        trained,
        shop.recipe.views,
        resolution=shop.recipe.resolution,
        seed=shop.recipe.seed,
    ):
        if isinstance(info, Views):
            save_views(info, path, identity)
        else:
            yield info


def denoiser_stage(shop: Workshop) -> Stage:
    """Train UNet and text encoder."""
    yield from views_stage(shop)
    vae, source = encoder_of(shop)
    path, identity = views_place(shop, source)
    views = load_views(path, identity)
    assert views is not None, path
    model = untrained(shop, vae, scale=views.scale)
    own = shop.recipe.denoiser
    objective = DenoiserStage(
        model,
        views,
        captions=shop.recipe.captions,
        fillers=common_words(),
        loss=own.loss,
        prompts=own.prompts,
    )
    objective.module.train()
    settings = asdict(replace(own, prompts=()))
    settings.pop("loop")
    recipe = json.dumps([settings, asdict(shop.recipe.captions), identity])
    yield from _run(shop, objective, "denoiser", recipe)


def captioner_stage(shop: Workshop) -> Stage:
    """Train the captioner; needs no other stage."""
    own = shop.recipe.captioner
    captioner = build_captioner(
        own,
        tokenizer_of(shop),
        name=shop.recipe.name,
        seed=shop.recipe.seed,
        sight=shop.sight,
    )
    captioner.model.to(shop.device).eval()
    objective = CaptionerStage(captioner, shop.pixels, shop.examples[0], own)
    labels = [[repr(e.captions), e.kind, e.colour, e.background] for e in shop.examples[0]]
    read = hashlib.sha256(json.dumps(labels).encode()).hexdigest()[:16]
    begun = "" if shop.sight is None else f" {shop.sight.fingerprint}"
    yield from _run(shop, objective, "captioner", f"{_without_loops(own)} {read}{begun}")


def untrained(shop: Workshop, vae: AutoencoderKL, *, scale: float) -> LatentDiffusion:
    """The model around an autoencoder; UNet and text encoder as the stage begins with them."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    tokenizer = tokenizer_of(shop)
    unet, text_encoder = build_unet(shop.recipe), build_text_encoder(shop.recipe, tokenizer)
    if shop.origin is not None:
        warm_start(unet, dict(shop.origin.unet.named_parameters()))
        encoder = shop.origin.components["text_encoder"]
        warm_start(text_encoder, dict(encoder.named_parameters()))
        warm_start_embeddings(text_encoder, tokenizer, shop.origin)
    vae.register_to_config(scaling_factor=scale)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return replace(from_pipe(pipe.to(shop.device)), name=shop.recipe.name)


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


def _run(shop: Workshop, objective: Objective, stage: str, recipe: str) -> Stage:
    """A stage's loop; its weights want gradients and nothing else does."""
    own = shop.recipe
    settings = {
        "autoencoder": own.autoencoder.loop,
        "decoder": own.autoencoder.decoder_loop,
        "denoiser": own.denoiser.loop,
        "captioner": own.captioner.loop,
    }[stage]
    objective.module.requires_grad_(True)
    yield from train(
        objective,
        settings,
        shop.folder,
        seed=own.seed,
        recipe=f"{shop.identity} {recipe}",
        autocast=shop.autocast,
    )


def _without_loops(own: object) -> str:
    settings = asdict(own)  # type: ignore[call-overload]
    return json.dumps({k: v for k, v in settings.items() if not k.endswith("loop")})


def views_place(shop: Workshop, source: str) -> tuple[Path, str]:
    """Where encoded views are kept, and what must be the same for them to be used."""
    settings = json.dumps([asdict(shop.recipe.views), shop.recipe.seed, shop.words, source])
    return shop.folder / "views.safetensors", f"{shop.identity} {settings}"


STAGES = {
    "autoencoder": autoencoder_stage,
    "decoder": decoder_stage,
    "denoiser": denoiser_stage,
    "captioner": captioner_stage,
}
"""Stages that train, in order."""

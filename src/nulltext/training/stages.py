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
from dataclasses import asdict, replace
from pathlib import Path

from nulltext.training.autoencoder import AutoencoderStage, DecoderStage
from nulltext.training.build import build_autoencoder
from nulltext.training.captioner import CaptionerStage, build_captioner
from nulltext.training.denoiser import DenoiserStage
from nulltext.training.latents import Views, encode_views, load_views, save_views
from nulltext.training.loop import Objective, TrainInfo, train
from nulltext.training.vocabulary import common_words
from nulltext.training.warm_start import grow_latents
from nulltext.training.workshop import (
    Workshop,
    check_origin,
    encoder_of,
    scale_of,
    tokenizer_of,
    untrained,
)

Stage = Generator[TrainInfo, None, None]


def autoencoder_stage(shop: Workshop) -> Stage:
    """Train encoder and decoder.

    Raises:
        OptionError: as in `check_origin`.
    """
    check_origin(shop.recipe, shop.origin)
    vae = build_autoencoder(shop.recipe)
    own = shop.recipe.autoencoder
    origin = None if shop.origin is None else shop.origin.vae
    if origin is not None:
        grow_latents(vae, origin)
    objective = AutoencoderStage(
        vae.to(shop.device).train(),
        *shop.pixels,
        resolution=shop.recipe.resolution,
        crop=own.crop,
        loss=own.loss,
        origin=origin if own.loss.keep > 0 else None,
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
    model = untrained(shop, vae, views)
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
    yield from _run(shop, objective, "denoiser", denoiser_settings(shop, views, identity))


def denoiser_settings(shop: Workshop, views: Views, identity: str) -> str:
    """What a denoiser's weights depend on beside photos, seed and loop; `identity`: the views'."""
    settings = asdict(replace(shop.recipe.denoiser, prompts=()))
    settings.pop("loop")
    return json.dumps([settings, asdict(shop.recipe.captions), scale_of(shop, views), identity])


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
        recipe=recipe_text(shop, recipe),
        autocast=shop.autocast,
    )


def recipe_text(shop: Workshop, settings: str) -> str:
    """Everything but seed and loop that a stage's checkpoint depends on."""
    return f"{shop.identity} {settings}"


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

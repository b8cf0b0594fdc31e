"""From checkpoints to an ordinary Stable Diffusion folder.

Half precision, no file of 16 MB or more (larger weights are sharded), a model card, safetensors
and JSON only: diffusers, transformers and `nulltext --model FOLDER` open it alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nulltext.errors import OptionError, OutputError
from nulltext.models.known_figure import write_known
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.load import load
from nulltext.models.side_files import write_guidance, write_words
from nulltext.storage.files import replace_file, replacing_folder
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text
from nulltext.training.build import build_scheduler
from nulltext.training.card import model_card
from nulltext.training.latents import Views, load_views
from nulltext.training.loop import (
    averaged_weights,
    check_recipe,
    checkpoint_path,
    read_checkpoint,
    step_generator,
)
from nulltext.training.recipe import Recipe
from nulltext.training.spoken import known_words
from nulltext.training.stages import denoiser_settings, recipe_text, views_place
from nulltext.training.warm_start import load_weights
from nulltext.training.workshop import Workshop, encoder_of, untrained

SHARD = "15MB"
"""Largest file of weights."""

RECIPE_FILE = "recipe.json"

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
"""What `model_index.json` says; written last, so that an unfinished folder is none."""


def trained(shop: Workshop) -> tuple[LatentDiffusion, dict[str, int], Views]:
    """The model as its checkpoints have it now, finished or not, their updates, and what it saw.

    Raises:
        OptionError: the autoencoder is unfinished, there is no denoiser yet, or it was trained with
            other settings.
    """
    vae, source = encoder_of(shop)
    place, identity = views_place(shop, source)
    views = load_views(place, identity)
    path = checkpoint_path(shop.folder, "denoiser")
    if views is None or not path.is_file():
        raise OptionError(
            f"There is no denoiser in '{shop.folder}' yet; train it first (--stage denoiser)."
        )
    check_recipe(path, recipe_text(shop, denoiser_settings(shop, views, identity)))
    model = untrained(shop, vae, views)
    weights, updates = averaged_weights(path)
    for name in ("unet", "text_encoder"):
        part = {n.removeprefix(f"{name}."): w for n, w in weights.items() if n.startswith(name)}
        module = model.components[name]
        load_weights(module, part, path)
        module.requires_grad_(False).eval()
    done = {stage: _updates(shop, stage) for stage in ("autoencoder", "decoder")}
    return model, done | {"denoiser": updates}, views


def check_output(folder: Path, recipe: Recipe) -> None:
    """Refuse to put a model where something else is.

    Raises:
        OutputError: there is a file, a folder with something in it, or another recipe's model.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not folder.exists():
        if not folder.parent.is_dir():
            raise OutputError(f"The folder '{folder.parent}' does not exist: create it first.")
        return
    try:
        name = parse_json(read_text(folder / RECIPE_FILE, MEGABYTE))["name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    if name != recipe.name:
        raise OutputError(
            f"'{folder}' holds something that was not made by the recipe '{recipe.name}': choose "
            "another name with -o."
        )


def export(shop: Workshop, folder: Path, *, commit: str | None = None) -> LatentDiffusion:
    """Write the model to `folder`; returns it.

    Args:
        commit: of the code that trained it, for the card.

    Raises:
        OptionError: as in `trained`.
        OutputError: the folder cannot be written, or holds something else.
    """
    check_output(folder, shop.recipe)
    model, updates, views = trained(shop)
    known = known_words(views.examples, shop.recipe.captions, step_generator(shop.recipe.seed, 0))
    with replacing_folder(folder) as fresh:
        for name in ("vae", "unet", "text_encoder"):
            part: Any = model.components[name]
            part.to(torch.float16).save_pretrained(fresh / name, max_shard_size=SHARD)
            part.to(torch.float32)
        model.tokenizer.save_pretrained(fresh / "tokenizer")
        build_scheduler(shop.recipe).save_pretrained(fresh / "scheduler")
        replace_file(fresh / "README.md", model_card(shop, model, updates, commit).encode())
        replace_file(fresh / RECIPE_FILE, shop.recipe.to_json().encode())
        replace_file(fresh / "model_index.json", (json.dumps(INDEX, indent=2) + "\n").encode())
        rounded = load(fresh, device="cpu")
        write_known(rounded, fresh)
        write_words(known, rounded.fingerprint, fresh)
        write_guidance(shop.recipe.guidance_scale, rounded.fingerprint, fresh)
    return model


def _updates(shop: Workshop, stage: str) -> int:
    path = checkpoint_path(shop.folder, stage)
    return int(read_checkpoint(path, None)[1].get("step", 0)) if path.is_file() else 0

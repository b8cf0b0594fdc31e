"""What a damaged file is read with: photos beside captions, the rest of a model's folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {
    "name": "small",
    "resolution": 16,
    "photo_side": 16,
    "autoencoder": {"channels": [8, 8], "latent_channels": 4, "norm_groups": 4, "crop": 8},
    "denoiser": {
        "channels": [32, 32],
        "attention": [True, False],
        "heads": 2,
        "text_width": 16,
        "text_layers": 1,
        "text_heads": 2,
    },
    "captioner": {
        "side": 16,
        "patch": 8,
        "width": 16,
        "vision_layers": 1,
        "heads": 2,
        "language_layers": 1,
        "prefix_length": 2,
        "hidden": 16,
    },
}
"""A recipe of networks that load in no time."""


def nothing(folder: Path) -> None:
    """The file is read alone."""


def two_photos(folder: Path) -> None:
    """a.png and b.png with a caption each."""
    from PIL import Image

    for name in ("a", "b"):
        Image.new("RGB", (16, 16), "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a photo of {name}\n", encoding="utf-8")


def captioner_folder(folder: Path) -> None:
    """A captioner with random weights."""
    import torch

    from nulltext.captioning.folder import save_captioner
    from nulltext.training.captioner import build_captioner

    made = build_captioner(_recipe().captioner, bundled_tokenizer(), name="small", seed=0)
    save_captioner(made, folder, dtype=torch.float32)


def model_folder(folder: Path) -> None:
    """A model with random weights, its UNet's weights in shards."""
    from diffusers import StableDiffusionPipeline

    from nulltext.training import build

    recipe = _recipe()
    pipe = StableDiffusionPipeline(
        vae=build.build_autoencoder(recipe),
        text_encoder=build.build_text_encoder(recipe, bundled_tokenizer()),
        tokenizer=bundled_tokenizer(),
        unet=build.build_unet(recipe),
        scheduler=build.build_scheduler(recipe),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipe.unet.save_pretrained(folder / "unet", max_shard_size="200KB")


@cache
def bundled_tokenizer() -> Any:
    """The bundled model's."""
    from nulltext.models.checkpoint import Checkpoint
    from nulltext.models.load import BUNDLED_FOLDER

    return Checkpoint.at(BUNDLED_FOLDER / "flowers").tokenizer("tokenizer")


def _recipe() -> Any:
    from nulltext.training.recipe import Recipe, built

    return built(Recipe, SMALL, "recipe")

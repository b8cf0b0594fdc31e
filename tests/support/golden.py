"""Tensors that inversions, replays and edits gave once, in float64, to compare with after a change.

    python tests/support/golden.py        # record them anew, where a result changes on purpose

Weights of the small models are filled by name, so that no order of initialisation matters.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import nulltext
from support.tiny import tiny_pipeline
from support.vocabularies import BUNDLED

Golden = Literal["flowers", "sd1", "sd2", "sdxl"]
FOLDER = Path(__file__).parent / "golden_tensors"
NUM_STEPS = 4
GUIDANCE = 7.5
INNER_STEPS = 3
EVERY = 4
"""Of the pixels of an edit and of the columns of an embedding, so that the files stay small."""
NEVER = {"loss_tolerance": 0.0, "loss_tolerance_slope": 0.0}
SOURCE, TARGET = "a red cat on a sofa", "a red dog on a sofa"


def golden_model(name: Golden) -> nulltext.LatentDiffusion:
    """The bundled model, or a small one whose weights follow from their names, in float64."""
    if name == "flowers":
        pipe = StableDiffusionPipeline.from_pretrained(BUNDLED.parent, safety_checker=None)
    else:
        pipe = tiny_pipeline(name)
        for part in (pipe.unet, pipe.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
            if part is not None:
                fill_by_name(part)
    return nulltext.load(pipe.to(torch.float64))


def fill_by_name(module: torch.nn.Module) -> None:
    """Draw every parameter from its own name: unit gain for matrices, near 1 for norms."""
    for name, parameter in module.named_parameters():
        plain = name.removeprefix("text_model.")
        draw = np.random.default_rng(zlib.crc32(plain.encode())).standard_normal(parameter.shape)
        if parameter.ndim > 1:
            draw /= np.sqrt(np.prod(parameter.shape[1:]))
        elif "norm" in plain and plain.endswith("weight"):
            draw = 1 + 0.1 * draw
        else:
            draw *= 0.1
        parameter.data.copy_(torch.from_numpy(draw))


def golden_photo() -> Image.Image:
    """A picture with structure and colour, 64 x 48 px."""
    y, x = np.mgrid[0:48, 0:64] / 64
    pixels = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], axis=-1)
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def golden_tensors(name: Golden) -> dict[str, Tensor]:
    """What the model makes of the photo, by name, on the CPU."""
    model = golden_model(name)
    methods = {
        "ddim": nulltext.inversion.DDIM(),
        "direct": nulltext.inversion.Direct(),
        "null-text": nulltext.inversion.NullText(inner_steps=INNER_STEPS, **NEVER),
        "fixed-point": nulltext.inversion.FixedPoint(tolerance=0.0, most_evaluations=3),
    }
    found: dict[str, Tensor] = {}
    for key, method in methods.items():
        inversion = nulltext.invert(
            model,
            golden_photo(),
            SOURCE,
            method=method,
            num_steps=NUM_STEPS,
            guidance_scale=GUIDANCE,
        )
        found[f"{key}.replay"] = nulltext.diffusion.run(
            nulltext.inversion.replay_steps(model, inversion)
        )
        if key == "ddim":
            found["trajectory"] = inversion.trajectory
        if inversion.null_embeds is not None:
            found[f"{key}.null_embeds"] = inversion.null_embeds[..., ::EVERY]
        edit = nulltext.edit(model, inversion, TARGET)
        found[f"{key}.edit"] = edit.images[..., ::EVERY, ::EVERY]
    return {key: tensor.detach().cpu().contiguous() for key, tensor in found.items()}


def recorded(name: Golden) -> dict[str, Tensor]:
    """What `golden_tensors` gave when it was recorded."""
    return load_file(FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in sys.argv[1:] or get_args(Golden):
        save_file(golden_tensors(each), FOLDER / f"{each}.safetensors")

"""Loading a checkpoint: a bundled name, a diffusers folder, a hub id, or a pipeline in hand.

All four end in the same `LatentDiffusion`. Weights are read as float32 (so that the fingerprint
does not depend on the precision that is asked for); then the UNet is cast, while the autoencoder
and the text encoders, which run once per photo, stay float32.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from nulltext.defaults import GUIDANCE_SCALE, MODEL
from nulltext.errors import ModelError, OptionError, OutOfMemoryError
from nulltext.models.checkpoint import Checkpoint, first_line, quiet_libraries
from nulltext.models.families import (
    Family,
    Parts,
    check_architecture,
    check_config,
    check_not_refiner,
    family_of,
)
from nulltext.models.fingerprint import fingerprint
from nulltext.models.known_words import read_words
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.memory import MemoryName, memory_plan
from nulltext.models.placement import check_weights_present
from nulltext.models.suggested_guidance import read_guidance
from nulltext.models.text import TextConditioner
from nulltext.schedule import Schedule

logger = logging.getLogger(__name__)

DType = Literal["float32", "float16", "bfloat16"]
Content = TypeVar("Content")

BUNDLED_FOLDER = Path(__file__).parent / "bundled"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def bundled_models() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    return tuple(sorted(p.parent.name for p in BUNDLED_FOLDER.glob("*/model_index.json")))


def folder_of(model: str | Path) -> Path | None:
    """Where a model's files are; None where it is one of the hub's.

    Raises:
        ModelError: there is no such model.
    """
    found = _locate(model)
    return found if isinstance(found, Path) else None


def load(
    model: Any = MODEL,
    *,
    device: str | None = None,
    dtype: DType = "float32",
    memory: MemoryName = "plenty",
) -> LatentDiffusion:
    """Load a Stable Diffusion 1.x, 2.x or XL base checkpoint.

    Args:
        model: a bundled name ("flowers"), a folder in diffusers format, a hub id ("owner/name"), or
            a diffusers pipeline in hand; see `from_pipe`.
        device: "cpu", "cuda", "cuda:1", "mps"; the best one there is by default.
        dtype: precision of the UNet; inversions are optimised in float32 whatever it is.
        memory: "low" for a device with little: blocks of the UNet are computed again rather than
            kept for the backward pass, photos and targets go one at a time. Slower, same results.

    Raises:
        ModelError: nothing is there, it is no Stable Diffusion pipeline, a weight is missing or
            damaged, or the architecture is one that nulltext does not support.
        OptionError: the device or dtype does not exist here.
    """
    if not isinstance(model, str | Path):
        return replace(from_pipe(model), memory=memory_plan(memory))
    plan = memory_plan(memory)
    target, precision = find_device(device), _dtype(dtype)
    started = time.perf_counter()
    checkpoint = Checkpoint(_locate(model))
    with quiet_libraries():
        index = checkpoint.json("model_index.json")
        family = family_of(index.get("_class_name"), str(model))
        check_config(family, index, str(model))
        parts = {name: checkpoint.component(name, kind) for name, kind in family.modules.items()}
        parts |= {name: checkpoint.tokenizer(name) for name in family.tokenizers}
        schedule = Schedule.from_config(checkpoint.json("scheduler/scheduler_config.json"))
        text = family.text(parts, index)
        digest = _digest(family, parts, text, schedule)
        try:
            for name in family.modules:
                parts[name].to(target, precision if name == "unet" else torch.float32)
                parts[name].requires_grad_(False)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"The model '{model}' does not fit into the memory of {target}; "
                "pass --dtype float16, or --device cpu."
            ) from error
    used = digest if precision == torch.float32 else _digest(family, parts, text, schedule)
    loaded = _assembled(family, parts, text, schedule, _display_name(model), (digest, used))
    logger.info(
        "load: %s (%s), %s, %s, %.2f s",
        *(loaded.name, digest[:8], target, dtype, time.perf_counter() - started),
    )
    words = _beside(checkpoint, digest, read_words)
    guidance = _beside(checkpoint, digest, read_guidance) or GUIDANCE_SCALE
    return replace(loaded, memory=plan, known_words=words, guidance_scale=guidance)


def from_pipe(pipe: Any) -> LatentDiffusion:
    """Use a diffusers pipeline as a model: device, dtype and weights are its own.

    Nothing is copied: a LoRA or a learnt token that is loaded into the pipeline works through the
    model, now and later. The modules are switched to evaluation mode. A pipeline that moves whole
    parts to a GPU for their work (`enable_model_cpu_offload`) goes on doing so.

    Args:
        pipe: a `StableDiffusionPipeline`, a `StableDiffusionXLPipeline`, or either's Img2Img one.

    Raises:
        ModelError: it is another kind of pipeline, its parts do not fit together, or a part's
            weights are quantised or not in memory (`enable_sequential_cpu_offload`).
    """
    kind = type(pipe).__name__
    config = getattr(pipe, "config", {})
    name = str(getattr(config, "_name_or_path", "") or kind)
    family = family_of(kind, name)
    check_not_refiner(config, name)
    parts = {part: getattr(pipe, part, None) for part in (*family.modules, *family.tokenizers)}
    absent = [part for part, value in parts.items() if value is None]
    if absent:
        raise ModelError(f"The {kind} has no {', '.join(absent)}; load it whole.")
    check_weights_present({part: parts[part] for part in family.modules}, kind)
    schedule = Schedule.from_config(pipe.scheduler.config)
    text = family.text(parts, config)
    digest = _digest(family, parts, text, schedule)
    return _assembled(family, parts, text, schedule, name, (digest, digest))


def _digest(family: Family, parts: Parts, text: TextConditioner, schedule: Schedule) -> str:
    return fingerprint({name: parts[name] for name in family.modules}, schedule, text.settings)


def _assembled(
    family: Family,
    parts: Parts,
    text: TextConditioner,
    schedule: Schedule,
    name: str,
    digests: tuple[str, str],
) -> LatentDiffusion:
    check_architecture(family, parts, text, name)
    for component in family.modules:
        parts[component].eval()
    return LatentDiffusion(
        name=name,
        unet=parts["unet"],
        vae=parts["vae"],
        text=text,
        schedule=schedule,
        loaded_fingerprint=digests[0],
        loaded_digest=digests[1],
        buckets=family.buckets,
    )


def _beside(
    checkpoint: Checkpoint, digest: str, read: Callable[[Path, str], Content | None]
) -> Content | None:
    """What is kept beside a model in a folder; that it is damaged is no reason not to use it."""
    if not isinstance(checkpoint.source, Path):
        return None
    try:
        return read(checkpoint.source, digest)
    except ModelError as error:
        logger.warning("%s", error)
        return None


def _display_name(model: str | Path) -> str:
    return Path(model).resolve().name if Path(model).is_dir() else str(model)


def _locate(model: str | Path) -> Path | str:
    """The folder of a model, or its hub id."""
    text = str(model)
    if text in bundled_models():
        return BUNDLED_FOLDER / text
    path = Path(model).expanduser()
    if text and path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ModelError(
                f"The folder '{model}' is no diffusers pipeline (it has no model_index.json); "
                "pass a folder written by save_pretrained()."
            )
        return path
    if path.is_file():
        single = path.suffix.lower() in SINGLE_FILES
        raise ModelError(
            f"'{model}' is a {'single-file checkpoint' if single else 'file'}; pass a folder in "
            "diffusers format (StableDiffusionPipeline.from_single_file(...).save_pretrained(...) "
            "makes one, StableDiffusionXLPipeline for SDXL)."
        )
    if not HUB_ID.fullmatch(text):
        raise ModelError(
            f"There is no model '{model}': it is neither bundled "
            f"({', '.join(bundled_models())}), nor an existing folder, nor a hub id (owner/name)."
        )
    return text


def find_device(device: str | None) -> torch.device:
    """A device by name (OptionError if it cannot be used), or the best there is."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            f"The device '{device}' cannot be used here ({first_line(error)}); "
            "pass --device cpu, or cuda where there is a GPU."
        ) from error
    if target.type == "meta":
        raise OptionError("The device 'meta' holds no numbers; pass --device cpu or cuda.")
    return target


def _dtype(dtype: str) -> torch.dtype:
    known = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
    if dtype not in known:
        raise OptionError(f"The dtype is '{dtype}'; choose one of {', '.join(known)}.")
    return known[dtype]

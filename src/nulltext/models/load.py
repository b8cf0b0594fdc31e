"""Loading a checkpoint: a bundled name, a folder, a single file, a hub id, or a pipeline in hand.

All of them end in the same `LatentDiffusion`. The fingerprint is taken of the weights as they are
in their files, so that it does not depend on the precision that they are used in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
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
from nulltext.models.fingerprint import Digest, fingerprint
from nulltext.models.known_words import read_words
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.locate import Source, display_name, source_of
from nulltext.models.memory import MemoryName, memory_plan
from nulltext.models.suggested_guidance import read_guidance
from nulltext.models.text import TextConditioner
from nulltext.models.weights import settle
from nulltext.schedule import Schedule

logger = logging.getLogger(__name__)

DType = Literal["float32", "float16", "bfloat16"]
Content = TypeVar("Content")


def default_dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.float32


def load(
    model: Any = MODEL,
    *,
    device: str | None = None,
    dtype: DType | None = None,
    memory: MemoryName = "plenty",
    offload: bool = False,
    variant: str | None = None,
    config: str | None = None,
    lora: Sequence[str] = (),
    embedding: Sequence[str] = (),
    vae: str | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> LatentDiffusion:
    """Load a Stable Diffusion 1.x, 2.x or XL base checkpoint.

    Args:
        model: a bundled name ("flowers"), a folder in diffusers format, a single `.safetensors`
            file, a hub id ("owner/name", "owner/name@revision"), or a diffusers pipeline in hand;
            see `from_pipe`.
        device: "cpu", "cuda", "cuda:1", "mps"; the best one there is by default.
        dtype: precision of the UNet and the text encoders; float16 on CUDA and float32 elsewhere by
            default. The autoencoder, latents and embeddings are float32 whatever it is.
        memory: "low" for a device with little: blocks of the UNet are computed again rather than
            kept for the backward pass, photos and targets go one at a time. Slower, same results.
        variant: which weights of a folder or hub model are read, such as "fp16"; by default the
            plain ones, or the only ones there are.
        config: of a single file: a published configuration ("sd15", "sd21", "sd21b", "sdxl"), or a
            folder with configs; by default inferred from the file.

    Raises:
        ModelError: nothing is there, it is no Stable Diffusion pipeline, a weight is missing or
            damaged, or the architecture is one that nulltext does not support.
        OptionError: the device or dtype does not exist here.
    """
    if not isinstance(model, str | Path):
        return replace(from_pipe(model), memory=memory_plan(memory))
    plan, target = memory_plan(memory), find_device(device)
    precision = default_dtype(target) if dtype is None else _dtype(dtype)
    started = time.perf_counter()
    with quiet_libraries():
        source = source_of(model, variant=variant, config=config)
        index = source.json("model_index.json")
        family = family_of(index.get("_class_name"), str(model))
        check_config(family, index, str(model))
        parts = source.modules(family.modules)
        parts |= {name: source.tokenizer(name) for name in family.tokenizers}
        schedule = Schedule.from_config(source.json("scheduler/scheduler_config.json"))
        text = family.text(parts, index)
        check_architecture(family, parts, text, str(model))
        digest = _settled(family, parts, text, schedule, precision, target, str(model))
    same = precision == torch.float32
    used = digest if same else _digest(family, parts, text, schedule)
    loaded = _assembled(family, parts, text, schedule, display_name(model), (digest, used))
    logger.info(
        "load: %s (%s), %s, %s, %.2f s",
        *(loaded.name, digest[:8], target, precision, time.perf_counter() - started),
    )
    words = _beside(source, digest, read_words)
    guidance = _beside(source, digest, read_guidance) or GUIDANCE_SCALE
    return replace(loaded, memory=plan, known_words=words, guidance_scale=guidance)


def _settled(
    family: Family,
    parts: Parts,
    text: TextConditioner,
    schedule: Schedule,
    dtype: torch.dtype,
    device: torch.device,
    model: str,
) -> str:
    """Cast and move all weights; returns their fingerprint, taken in the precision of the files.

    Raises:
        OutOfMemoryError: they do not fit.
    """
    digest = Digest(parts["vae"], schedule, text.settings)
    try:
        for name in sorted(family.modules):
            settle(
                parts[name],
                dtype=torch.float32 if name == "vae" else dtype,
                device=device,
                see=partial(digest.add, name),
            )
    except (MemoryError, RuntimeError) as error:
        raise OutOfMemoryError(
            f"The model '{model}' does not fit into the memory of {device}; "
            "pass --dtype float16, or --device cpu."
        ) from error
    return digest.hex()


def from_pipe(pipe: Any) -> LatentDiffusion:
    """Use a diffusers pipeline as a model: device, dtype and weights are its own.

    Nothing is copied: a LoRA or a learnt token that is loaded into the pipeline works through the
    model, now and later. The modules are switched to evaluation mode.

    Args:
        pipe: a `StableDiffusionPipeline`, a `StableDiffusionXLPipeline`, or either's Img2Img one.

    Raises:
        ModelError: it is another kind of pipeline, or its parts do not fit together.
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
    schedule = Schedule.from_config(pipe.scheduler.config)
    text = family.text(parts, config)
    check_architecture(family, parts, text, name)
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
    source: Source, digest: str, read: Callable[[Path, str], Content | None]
) -> Content | None:
    """What is kept beside a model in a folder; that it is damaged is no reason not to use it."""
    if not isinstance(source, Checkpoint):
        return None
    try:
        return read(source.folder, digest)
    except ModelError as error:
        logger.warning("%s", error)
        return None


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

"""Load a checkpoint: a bundled name, a folder, a single file, a hub id, or a pipeline in hand.

All of them become the same `LatentDiffusion`. The fingerprint is taken of the weights as they are
in their files, so that it does not depend on the precision that they are used in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from nulltext.constants import MODEL, TRUE_CFG, Precision
from nulltext.diffusion.guidance import CONDITIONAL_ONLY
from nulltext.diffusion.schedule import Schedule
from nulltext.errors import ModelError, OptionError, convert_out_of_memory
from nulltext.models.adapters import Adapters, load_vae
from nulltext.models.checkpoint import Checkpoint, first_line, quiet_libraries
from nulltext.models.families import Family, Parts, TextConditioner
from nulltext.models.fingerprint import Digest, fingerprints
from nulltext.models.foreign import explain
from nulltext.models.hub import HubModel, OnBytes, fetch, parse_hub_model
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.pipelines import family_of, recognise_distilled
from nulltext.models.placement import (
    PLANS,
    MemoryName,
    allow_tf32,
    check_weights_present,
    default_dtype,
    note_on_precision,
    use_channels_last,
)
from nulltext.models.side_files import read_guidance, read_words
from nulltext.models.single_file import SingleFile
from nulltext.models.tensor_files import explain_kind, kind_of_file
from nulltext.models.transformer_file import FAMILIES, TransformerFile
from nulltext.models.weights import cast_and_move
from nulltext.storage.files import expand_user, path_exists

logger = logging.getLogger(__name__)

BUNDLED_FOLDER = Path(__file__).parent / "bundled"

OneFile = SingleFile | TransformerFile
Source = Checkpoint | OneFile

SideContent = TypeVar("SideContent")


def load(
    model: Any = MODEL,
    *,
    device: str | None = None,
    dtype: Precision | torch.dtype | None = None,
    memory: MemoryName = "plenty",
    offload: bool = False,
    true_cfg: bool = False,
    variant: str | None = None,
    config: str | None = None,
    lora: str | Path | Sequence[str | Path] = (),
    embedding: str | Path | Sequence[str | Path] = (),
    vae: str | Path | None = None,
    on_bytes: OnBytes | None = None,
) -> LatentDiffusion:
    """Load a checkpoint of Stable Diffusion 1, 2, XL, 3 or 3.5, or of FLUX.1.

    Args:
        model: a bundled name ("flowers"), a folder in diffusers format, a single `.safetensors`
            file, a hub id ("owner/name", "owner/name@revision"), or a diffusers pipeline in hand;
            see `from_pipe`.
        device: "cpu", "cuda", "cuda:1", "mps"; the best one there is by default.
        dtype: precision of the UNet and the text encoders; float16 on CUDA and float32 elsewhere by
            default. The autoencoder, latents and embeddings are float32 whatever it is.
        memory: "low" for a device with little: blocks of the UNet are computed again rather than
            kept for the backward pass, photos and targets go one at a time. Slower, same results.
        offload: keep the text encoders and the autoencoder on the CPU but for the moments when they
            work.
        true_cfg: guide a model that has no null branch of its own (FLUX) by one, at two evaluations
            a step; null-text inversion needs it there.
        variant: which weights of a folder or hub model are read, such as "fp16"; by default the
            plain ones, or the only ones there are.
        config: of a single file: a published configuration ("sd14", "sd15", "sd21", "sd21b",
            "sdxl"), or a folder with configs; by default inferred from the file. Of Stable
            Diffusion 3 and FLUX.1: a folder of the same model in diffusers format, from which also
            the text encoders and the autoencoder are read that the file lacks.
        lora: LoRA files, each with ":WEIGHT" behind it if the weight is not 1.
        embedding: files of learnt tokens (textual inversion), each with ":TOKEN" behind it if the
            token is not called as the file says.
        vae: folder or file of an autoencoder in the place of the model's own.
        on_bytes: called with (done, total) bytes while files of the hub are fetched.

    Raises:
        ModelError: nothing is there, it is no pipeline of these, a weight is missing or
            damaged, or the architecture is one that nulltext does not support.
        OptionError: the device or dtype does not exist here, or an option is not for this model.
    """
    if memory not in PLANS:
        raise OptionError(f"There is no memory plan '{memory}'; choose {', '.join(PLANS)}.")
    plan, adapters = PLANS[memory], Adapters.parsed(lora, embedding, vae)
    if not isinstance(model, str | Path):
        if adapters or any(given is not None for given in (device, dtype, variant, config)):
            raise OptionError(
                "A pipeline in hand has weights, device and precision of its own; change those "
                "(pipe.to, load_lora_weights, …), and leave device, dtype, variant, config, lora, "
                "embedding and vae out."
            )
        return _guided(replace(from_pipe(model), memory=plan, offload=offload), true_cfg)
    target = find_device(device)
    precision = default_dtype(target) if dtype is None else _dtype(dtype)
    adapters.check()
    started = time.perf_counter()
    with quiet_libraries():
        source = source_of(model, variant=variant, config=config, on_bytes=on_bytes)
        read = _read(source, adapters, str(model))
        home = torch.device("cpu") if offload else target
        digests = _cast_and_move(read, precision, device=target, home=home)
    loaded = _assembled(read, display_name(model), digests)
    notes = [*read.notes, *filter(None, [note_on_precision(target, precision)])]
    known_for = read.original or digests
    guidance = _side_file(source, known_for, read_guidance)
    distilled = recognise_distilled(str(model), read.scheduler)
    if guidance is None and distilled is not None:
        guidance = distilled.guidance_scale
        notes.append(distilled.note)
    logger.info(
        "load: %s (%s), %s, %s, %.2f s",
        loaded.name,
        digests[0][:8],
        target,
        precision,
        time.perf_counter() - started,
    )
    loaded = replace(
        loaded,
        memory=plan,
        offload=offload,
        known_words=_side_file(source, known_for, read_words),
        guidance_scale=guidance or loaded.guidance_scale,
        adapters=adapters.described(),
        notes=tuple(notes),
    )
    return _guided(loaded, true_cfg)


def _guided(model: LatentDiffusion, true_cfg: bool) -> LatentDiffusion:
    """Guide a model by a null branch of its own, or of ours; one without guidance stays at w = 1.

    Raises:
        OptionError: a null branch is asked for where there is one anyway.
    """
    if true_cfg and model.text.guidance == "branches":
        raise OptionError(
            f"--true-cfg gives a null branch to models that have none (FLUX); '{model.name}' has "
            "one, so leave it out."
        )
    unguided = model.text.guidance == "none" and not true_cfg
    scale = CONDITIONAL_ONLY if unguided else model.guidance_scale
    added = (*model.adapters, TRUE_CFG) if true_cfg else model.adapters
    return replace(model, true_cfg=true_cfg, guidance_scale=scale, adapters=added)


@dataclass(frozen=True)
class _Read:
    """A checkpoint's parts, checked against each other."""

    model: str
    family: Family
    parts: Parts
    text: TextConditioner
    scheduler: Mapping[str, Any]
    schedule: Schedule
    notes: Sequence[str] = ()
    original: tuple[str, ...] | None = None
    """Fingerprints of a folder's weights before adapters were put in; None without adapters."""

    @property
    def digests(self) -> tuple[str, ...]:
        modules = {name: self.parts[name] for name in self.family.modules}
        return fingerprints(modules, self.schedule, self.text.settings)


def _read(source: Source, adapters: Adapters, model: str) -> _Read:
    """Read a checkpoint, with weights as they are in their files, and put the adapters in."""
    index = source.json("model_index.json")
    unet = partial(source.json, "unet/config.json")
    family = family_of(index.get("_class_name"), model, index, unet)
    family.check_index(index, model)
    single, own = isinstance(source, OneFile), dict(family.modules)
    if single and adapters.vae:  # it may have none
        del own["vae"]
    parts = source.modules(own)
    parts |= {n: source.tokenizer(n, family.tokenizer_classes(n)[0]) for n in family.tokenizers}
    scheduler = source.json("scheduler/scheduler_config.json")
    schedule, text = family.schedule(scheduler), family.text(parts, index)
    read = _Read(model, family, parts, text, scheduler, schedule)
    original = read.digests if adapters and not single else None
    if adapters.vae:
        parts["vae"] = load_vae(adapters.vae, source.json("vae/config.json"))
    notes = [source.note] if isinstance(source, OneFile) else []
    notes += adapters.put_into(parts, family, model)
    family.check_parts(parts, text, model)
    return replace(read, notes=notes, original=original)


def _cast_and_move(
    read: _Read, dtype: torch.dtype, *, device: torch.device, home: torch.device
) -> tuple[str, ...]:
    """Cast and move all weights; returns fingerprints, taken in the precision of the files."""
    digest = Digest(read.parts["vae"], read.schedule, read.text.settings)
    allow_tf32(device)
    with convert_out_of_memory(
        f"the model '{read.model}' does not fit: pass --dtype float16, --offload or --device cpu"
    ):
        for name in sorted(read.family.modules):
            cast_and_move(
                read.parts[name],
                dtype=torch.float32 if name == "vae" else dtype,
                device=device if name == read.family.network else home,
                on_weight=partial(digest.add, name),
            )
    for name in (read.family.network, "vae"):
        use_channels_last(read.parts[name], read.parts[name].device)
    return digest.hexes()


def from_pipe(pipe: Any) -> LatentDiffusion:
    """Use a diffusers pipeline as a model: device, dtype and weights are its own.

    Nothing is copied: a LoRA or a learnt token that is loaded into the pipeline works through the
    model, now and later. The modules are switched to evaluation mode. A pipeline that moves whole
    parts to a GPU for their work (`enable_model_cpu_offload`) goes on doing so. A part that
    `torch.compile` or `DataParallel` wraps is used without the wrapper: its layers' names are
    others in there, and attention control, put on and off at every step, would compile it anew.

    Args:
        pipe: a `StableDiffusionPipeline`, a `StableDiffusionXLPipeline`, either's Img2Img one, or
            another pipeline of their parts, such as a subclass of your own.

    Raises:
        ModelError: it is another kind of pipeline, its parts do not fit together, or a part's
            weights are quantised or not in memory (`enable_sequential_cpu_offload`).
    """
    kind = type(pipe).__name__
    if not hasattr(pipe, "scheduler"):
        raise ModelError(
            f"An object of class {kind} is no diffusers pipeline; pass one, or to nulltext.load a "
            "name, a folder, a .safetensors file or a hub id."
        )
    config = getattr(pipe, "config", {})
    name = str(getattr(config, "_name_or_path", "") or kind)
    unet = _unwrapped(getattr(pipe, "unet", None))
    family = family_of(kind, name, _index(pipe), lambda: getattr(unet, "config", {}))
    names = (*family.modules, *family.tokenizers)
    wrapped = {name: getattr(pipe, name, None) for name in names}
    parts: dict[str, Any] = {n: _unwrapped(part) for n, part in wrapped.items()}
    absent = [part for part, value in parts.items() if value is None]
    if absent:
        raise ModelError(f"The {kind} has no {', '.join(absent)}; load it whole.")
    check_weights_present({part: parts[part] for part in family.modules}, kind)
    scheduler = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    schedule = family.schedule(scheduler)
    text = family.text(parts, config)
    family.check_parts(parts, text, name)
    read = _Read(name, family, parts, text, scheduler, schedule)
    return _assembled(read, name, read.digests)


def _index(pipe: Any) -> dict[str, Any]:
    """Write the model_index.json of a pipeline's parts as they are now."""
    config = getattr(pipe, "config", {})
    names = [name for name, entry in config.items() if isinstance(entry, tuple | list)]
    parts = {name: _unwrapped(getattr(pipe, name, None)) for name in names}
    index = {n: ["", type(part).__name__] for n, part in parts.items() if part is not None}
    return index | {"requires_aesthetics_score": config.get("requires_aesthetics_score")}


def _unwrapped(part: Any) -> Any:
    """Take a part out of what `torch.compile` and parallel training put around it."""
    part = getattr(part, "_orig_mod", part)
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    return _unwrapped(part.module) if isinstance(part, parallel) else part


def _assembled(read: _Read, name: str, digests: tuple[str, ...]) -> LatentDiffusion:
    for component in read.family.modules:
        read.parts[component].eval()
    return LatentDiffusion(
        name=name,
        network=read.parts[read.family.network],
        vae=read.parts["vae"],
        text=read.text,
        schedule=read.schedule,
        loaded_fingerprints=digests,
        loaded_digests=read.digests,
        buckets=read.family.buckets,
        guidance_scale=read.family.guidance_scale,
    )


def _side_file(
    source: Source,
    fingerprints: Sequence[str],
    read: Callable[[Path, Sequence[str]], SideContent | None],
) -> SideContent | None:
    """Read a side file of a folder, such as words.json; a damaged one is logged and ignored."""
    if not isinstance(source, Checkpoint):
        return None
    try:
        return read(source.folder, fingerprints)
    except ModelError as error:
        logger.warning("%s", error)
        return None


def find_device(device: str | None) -> torch.device:
    """Return a device by name (OptionError if it cannot be used), or the best there is."""
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


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    known = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise OptionError(f"The dtype is '{dtype}'; choose one of {', '.join(known)}.")
    return known[name]


def bundled_models() -> tuple[str, ...]:
    return tuple(sorted(p.parent.name for p in BUNDLED_FOLDER.glob("*/model_index.json")))


def folder_of(model: str | Path) -> Path | None:
    """Find the folder of a model's files; None where it is one file, or one of the hub's."""
    found = _locate(model)
    return found if isinstance(found, Path) and found.is_dir() else None


def source_of(
    model: str | Path,
    *,
    variant: str | None = None,
    config: str | None = None,
    on_bytes: OnBytes | None = None,
) -> Source:
    """Find a model's files; those of the hub's models are fetched.

    Raises:
        ModelError: there is no such model, or it cannot be fetched.
        OptionError: an option does not fit this kind of source.
    """
    place = _locate(model)
    single = place.file is not None if isinstance(place, HubModel) else place.is_file()
    if single and variant is not None:
        raise OptionError(
            f"--variant selects weights in a folder or a hub repository, and '{model}' is a "
            "single file; leave it out."
        )
    if config is not None and not single:
        raise OptionError(
            f"--config is for a single file, and '{model}' has its own; leave it out."
        )
    if isinstance(place, HubModel):
        place = fetch(place, variant=variant, on_bytes=on_bytes)
        reason = explain_kind(place) if single else None
        if reason is not None:
            raise ModelError(reason)
    if not single:
        return Checkpoint(place, str(model), variant)
    kind = kind_of_file(place)
    if kind in FAMILIES:
        return TransformerFile(place, str(model), kind, config)
    return SingleFile(place, str(model), config)


def display_name(model: str | Path) -> str:
    """Name a model for reports: a folder or file by its own name."""
    path = expand_user(model)
    return path.resolve().name if path_exists(path) else str(model)


def _locate(model: str | Path) -> Path | HubModel:
    text = str(model)
    if text in bundled_models():
        return BUNDLED_FOLDER / text
    reason = explain(text)
    if reason is not None:
        raise ModelError(reason)
    path = expand_user(model)
    if text and path_exists(path):
        return path
    named = parse_hub_model(text)
    if named is None:
        raise ModelError(
            f"There is no model '{model}': it is neither bundled "
            f"({', '.join(bundled_models())}), nor an existing folder or .safetensors file, nor a "
            "hub id (owner/name)."
        )
    return named

"""Loading a checkpoint: a bundled name, a diffusers folder, a hub id, or a pipeline in hand.

All four end in the same `LatentDiffusion`. A folder or hub id is read component by component, by
the library classes named here and no others: nothing in a checkpoint can choose code to run, and
only safetensors and JSON are opened. Weights are read as float32 (so that the fingerprint does not
depend on the precision that is asked for); then the UNet is cast, while the autoencoder and the
text encoder, which run once per photo, stay float32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from nulltext.defaults import MODEL
from nulltext.errors import ModelError, OptionError, OutOfMemoryError
from nulltext.models.fingerprint import fingerprint
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

DType = Literal["float32", "float16", "bfloat16"]

BUNDLED_FOLDER = Path(__file__).parent / "bundled"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SUPPORTED_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
EXPECTED_CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


def bundled_models() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    return tuple(sorted(p.parent.name for p in BUNDLED_FOLDER.glob("*/model_index.json")))


def load(
    model: str | Path | StableDiffusionPipeline = MODEL,
    *,
    device: str | None = None,
    dtype: DType = "float32",
) -> LatentDiffusion:
    """Load a Stable Diffusion 1.x or 2.x checkpoint.

    Args:
        model: a bundled name ("flowers"), a folder in diffusers format, a hub id ("owner/name"),
            or a `StableDiffusionPipeline` (used as it is: device and dtype are its own, and its
            modules are switched to evaluation mode).
        device: "cpu", "cuda", "cuda:1", "mps"; the best one there is by default.
        dtype: precision of the UNet; inversions are optimised in float32 whatever it is.

    Raises:
        ModelError: nothing is there, it is no Stable Diffusion pipeline, a weight is missing or
            damaged, or the architecture is one that nulltext does not support.
        OptionError: the device or dtype does not exist here.
    """
    if not isinstance(model, str | Path):
        return _from_pipeline(model)
    target, precision = find_device(device), _dtype(dtype)
    source = _locate(model)
    with _quiet_libraries():
        _check_index(_read_json(source, "model_index.json"), str(model))
        parts = {name: _component(source, name) for name in EXPECTED_CLASSES}
        tokenizer = _tokenizer(source)
        schedule = Schedule.from_config(_read_json(source, "scheduler/scheduler_config.json"))
        digest = fingerprint(parts, schedule)
        try:
            for name, part in parts.items():
                part.to(target, precision if name == "unet" else torch.float32)
                part.requires_grad_(False).eval()
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"The model '{model}' does not fit into the memory of {target}; "
                "pass --dtype float16, or --device cpu."
            ) from error
    loaded = LatentDiffusion(
        name=_display_name(model),
        fingerprint=digest,
        tokenizer=tokenizer,
        schedule=schedule,
        **parts,
    )
    _check_architecture(loaded)
    return loaded


def _from_pipeline(pipe: Any) -> LatentDiffusion:
    name = type(pipe).__name__
    if name not in SUPPORTED_PIPELINES:
        raise ModelError(
            f"A {name} cannot be edited with; expected one of {', '.join(SUPPORTED_PIPELINES)}, "
            "a bundled name, a folder or a hub id."
        )
    parts = {part: getattr(pipe, part) for part in EXPECTED_CLASSES}
    for part in parts.values():
        part.eval()
    schedule = Schedule.from_config(pipe.scheduler.config)
    loaded = LatentDiffusion(
        name=str(getattr(pipe.config, "_name_or_path", "") or name),
        fingerprint=fingerprint(parts, schedule),
        tokenizer=pipe.tokenizer,
        schedule=schedule,
        **parts,
    )
    _check_architecture(loaded)
    return loaded


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
        raise ModelError(
            f"'{model}' is a file; pass a folder in diffusers format "
            "(StableDiffusionPipeline.from_single_file(...).save_pretrained(...) makes one)."
        )
    if not HUB_ID.fullmatch(text):
        raise ModelError(
            f"There is no model '{model}': it is neither bundled "
            f"({', '.join(bundled_models())}), nor an existing folder, nor a hub id (owner/name)."
        )
    return text


def _file(source: Path | str, name: str) -> Path:
    """A file of the checkpoint, downloaded when it lives on the hub."""
    if isinstance(source, Path):
        path = source / name
        if not path.is_file():
            raise ModelError(
                f"The model folder '{source}' has no {name}; "
                "pass a complete folder written by save_pretrained()."
            )
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, name))
    except Exception as error:  # the hub's client raises many kinds; the reason is in the text
        raise ModelError(
            f"There is no folder '{source}', and {name} of the hub model '{source}' cannot be had "
            f"({_first_line(error)}); check the name and the connection, or pass a local folder."
        ) from error


def _read_json(source: Path | str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(_file(source, name).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(
            f"{name} of the model '{source}' cannot be read ({_first_line(error)}); "
            "get the model again."
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{name} of the model '{source}' is no JSON object; get the model again.")
    return content


def _check_index(index: Mapping[str, Any], model: str) -> None:
    kind = index.get("_class_name")
    if kind not in SUPPORTED_PIPELINES:
        raise ModelError(
            f"The model '{model}' is a {kind}, which nulltext cannot edit with; "
            "pass a Stable Diffusion 1.x or 2.x text-to-image checkpoint."
        )
    for name, expected in EXPECTED_CLASSES.items():
        _check_class(index, name, (expected,), model)
    _check_class(index, "tokenizer", TOKENIZERS, model)


def _check_class(index: Mapping[str, Any], name: str, allowed: tuple[str, ...], model: str) -> None:
    entry = index.get(name)
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if found not in allowed:
        raise ModelError(
            f"The {name} of the model '{model}' is a {found}, expected {allowed[0]}; "
            "pass a Stable Diffusion 1.x or 2.x checkpoint."
        )


def _component(source: Path | str, name: str) -> Any:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    options: dict[str, Any] = {
        "dtype": torch.float32,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    if name != "text_encoder":
        options["low_cpu_mem_usage"] = False  # True would need accelerate
    try:
        module, info = classes[name].from_pretrained(str(source), subfolder=name, **options)
    except Exception as error:  # the libraries raise many kinds; the reason is in the text
        raise ModelError(
            f"The {name} of the model '{source}' cannot be loaded from safetensors "
            f"({_first_line(error)}); get the model again, or convert it with "
            "save_pretrained(..., safe_serialization=True)."
        ) from error
    missing = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if missing:
        raise ModelError(
            f"The {name} of the model '{source}' lacks {len(missing)} weights "
            f"({missing[0]}, …); get the model again."
        )
    return module


def _tokenizer(source: Path | str) -> Any:
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(source), subfolder="tokenizer")
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError("its vocabulary is empty")
        return tokenizer
    except Exception as error:  # the library raises many kinds; the reason is in the text
        raise ModelError(
            f"The tokenizer of the model '{source}' cannot be loaded ({_first_line(error)}); "
            "get the model again."
        ) from error


def _check_architecture(model: LatentDiffusion) -> None:
    """Refuse what would run but could not be right."""
    unet, vae, text = model.unet.config, model.vae.config, model.text_encoder.config
    if unet.in_channels != vae.latent_channels:
        raise ModelError(
            f"The model '{model.name}' takes {unet.in_channels} channels where its autoencoder has "
            f"{vae.latent_channels} (inpainting and depth models do); "
            "pass a text-to-image checkpoint."
        )
    if unet.addition_embed_type or unet.class_embed_type or unet.encoder_hid_dim_type:
        raise ModelError(
            f"The model '{model.name}' needs more than a prompt (extra conditioning inputs); "
            "pass a Stable Diffusion 1.x or 2.x text-to-image checkpoint."
        )
    if unet.cross_attention_dim != text.hidden_size:
        raise ModelError(
            f"The text encoder of the model '{model.name}' has width {text.hidden_size}, its UNet "
            f"expects {unet.cross_attention_dim}; the parts belong to different models."
        )
    known = model.text_encoder.get_input_embeddings().num_embeddings
    if len(model.tokenizer) > known:
        raise ModelError(
            f"The tokenizer of the model '{model.name}' has {len(model.tokenizer)} tokens, its "
            f"text encoder knows {known}; the parts belong to different models."
        )


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
            f"The device '{device}' cannot be used here ({_first_line(error)}); "
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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own bars and advice off the terminal while weights load."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [(lib, lib.get_verbosity()) for lib in (*libraries, hub_logging)]
    bars = [lib for lib in libraries if lib.is_progress_bar_enabled()]
    for lib, _ in levels:
        lib.set_verbosity_error()
    hub_logging.set_verbosity(CRITICAL)  # its retries are errors, and ours says what came of them
    for lib in bars:
        lib.disable_progress_bar()
    try:
        yield
    finally:
        for lib, level in levels:
            lib.set_verbosity(level)
        for lib in bars:
            lib.enable_progress_bar()

"""Tell what is passed as a model and is none: an address, a file, or a folder that is no pipeline.

Each answer is one sentence that says what it is, and what to pass instead.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from nulltext.errors import ModelError, reason_of, shorten
from nulltext.models.pipelines import explain_pipeline, family_of
from nulltext.models.tensor_files import (
    EXPECTED,
    PASS,
    SAFETENSORS,
    UNSAFE,
    WORKS,
    explain_kind,
    explain_pointer,
    explain_unsafe,
    is_lfs_pointer,
    kind_of_file,
    known_kinds,
    shown,
)
from nulltext.storage.untrusted import MEGABYTE, read_object

HUB = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/|hf://|git@hf\.co:)(.*)",
    re.IGNORECASE,
)
CIVITAI = re.compile(r"(?:https?://)?(?:www\.)?civitai\.[a-z]+(?:/.*)?", re.IGNORECASE)
ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*://|www\.).*", re.IGNORECASE)
PART = re.compile(r"[\w.-]+")

OTHER_REPOSITORIES = {"datasets": "a data set", "spaces": "a Space", "papers": "a paper"}
ID_PARTS = 2
SHOWS_FILES = ("tree", "blob", "resolve", "raw", "commit")
"""What comes between a hub id and a revision in an address."""

NETWORKS = ("unet", "transformer")
"""Folders of what denoises."""

INDEX, MODULAR_INDEX, CONFIG = "model_index.json", "modular_model_index.json", "config.json"

MOST_ENTRIES, MOST_NAMES = 1000, 5
"""Of a folder that are looked at, and that a message names."""

CACHED = re.compile(r"models--(.+?)--(.+)")
"""Name of a model's folder in the hub's cache."""
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
"""Name of what trainers keep while they run."""

ADAPTER_FILES = (*EXPECTED["--lora"].files, *EXPECTED["--embedding"].files)

WEIGHTS_IN = (
    *(".", "checkpoints", "Stable-diffusion", "Lora", "loras"),
    *("models/checkpoints", "models/Stable-diffusion", "models/Lora", "models/loras"),
)
"""Where other programs keep their models."""


def explain(model: str) -> str | None:
    """Say in one sentence what a text names that is no model; None where it may be a model.

    That may be a pipeline's folder, a checkpoint in one file, a hub id or a name.

    Args:
        model: what was passed as --model.
    """
    path = Path(model)
    try:
        path = path.expanduser()
        if model and path.is_dir():
            return explain_folder(path)
        if model and path.exists():
            return _explain_file(path)
    except ModelError as error:
        return str(error)
    except PermissionError as error:
        return f"'{path}' cannot be read ({reason_of(error)}); check who may read it."
    except (OSError, ValueError, RuntimeError):  # no path on this system
        pass
    return _explain_address(model.strip())


def _explain_file(path: Path) -> str | None:
    whole = pipeline_around(path)
    if whole is not None and (path.suffix == ".json" or path.absolute().parent != whole):
        return (
            f"'{path}' is one part of a pipeline; pass its folder, --model '{shown(str(whole))}'."
        )
    return explain_kind(path)


def _explain_address(text: str) -> str | None:
    known = shorten(text)
    hub = HUB.fullmatch(text)
    if hub:
        return _explain_hub(known, hub[1])
    if CIVITAI.fullmatch(text):
        return (
            f"'{known}' is the address of a page; download the model's .safetensors file there, "
            "and pass that file as --model."
        )
    if text.lower().startswith("file://"):
        return f"'{known}' is an address; pass the path without 'file://'."
    if ADDRESS.fullmatch(text):
        return (
            f"'{known}' is an address, from which nulltext downloads nothing; download the model, "
            "and pass its folder or its .safetensors file as --model."
        )
    cached = CACHED.fullmatch(text)
    if cached:
        name = "/".join(cached.groups())
        return f"'{known}' is a folder's name in the hub's cache; pass --model {name}."
    return None


def _explain_hub(known: str, rest: str) -> str:
    parts = [unquote(part) for part in re.split(r"[?#]", rest)[0].split("/") if part]
    if parts[:2] == ["api", "models"]:
        parts = parts[2:]
    if parts and parts[0] in OTHER_REPOSITORIES:
        what = OTHER_REPOSITORIES[parts[0]]
        return f"'{known}' is {what} of the hub, not a model; pass a model's id."
    if len(parts) < ID_PARTS or not all(map(PART.fullmatch, parts[:ID_PARTS])):
        return f"'{known}' is an address without a model; pass a model's id, as --model owner/name."
    name = "/".join(parts[:ID_PARTS]).removesuffix(".git")
    shows, revision, *file = [*parts[ID_PARTS:], "", ""]
    if shows in SHOWS_FILES and revision not in ("", "main"):
        name += f"@{revision}"
    whole = len(file) == ID_PARTS + 1 and file[0].endswith(".safetensors")
    or_file = ", or download this file and pass it" if whole else ""
    return f"'{known}' is an address, not a model's id; pass --model {name}{or_file}."


def explain_folder(folder: Path) -> str | None:
    """Say in one sentence what a folder is and what to pass; None where it is a pipeline."""
    try:
        entries = _entries(folder)
        if folder / INDEX in entries:
            return _explain_pipeline(folder, entries)
        said = next((text for look in FOLDER_KINDS if (text := look(folder, entries))), None)
    except OSError as error:
        raise ModelError(
            f"The folder '{folder}' cannot be read ({reason_of(error)}); check who may read it."
        ) from error
    if said is None:
        held = f"no {INDEX}, but {_names(entries)}" if entries else f"no {INDEX}; it is empty"
        said = f"The folder '{folder}' is no diffusers pipeline ({held}); {PASS}."
    return said


def _explain_pipeline(folder: Path, entries: Sequence[Path]) -> str | None:
    below = [file for entry in entries if entry.is_dir() for file in _entries(entry)]
    pointer = next((f for f in (*entries, *below) if f.is_file() and is_lfs_pointer(f)), None)
    if pointer is not None:
        return explain_pointer(pointer)
    index = _json(folder / INDEX)
    if index is None:  # the loader says what is wrong with it
        return None
    try:
        family_of(index.get("_class_name"), str(folder), index, partial(_unet_config, folder))
    except ModelError as error:
        return str(error)
    network = [file for file in below if file.parent.name in NETWORKS]
    if any(file.suffix in (".safetensors", *UNSAFE) for file in network if not _is_openvino(file)):
        return None
    return _other_formats(folder, network)


def _model_in_cache(folder: Path, entries: Sequence[Path]) -> str | None:
    if folder.absolute().parent.name == "snapshots" and entries:
        return None
    for root in (folder, *folder.absolute().parents[:2]):
        match = CACHED.fullmatch(root.name)
        if match:
            name = "/".join(match.groups())
            snapshots = [path for path in _children(root / "snapshots") if (path / INDEX).exists()]
            newest = max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
            other = "" if newest is None else f", or its snapshot: --model {_quoted(newest)}"
            return f"'{folder}' belongs to the hub's cache of {name}; pass --model {name}{other}."
    return None


def _whole_cache(folder: Path, entries: Sequence[Path]) -> str | None:
    both = (*entries, *_children(folder / "hub"))
    names = ["/".join(m.groups()) for path in both if (m := CACHED.fullmatch(path.name))]
    if not names:
        return None
    return (
        f"'{folder}' is the hub's cache with {_listed(names)}; "
        f"pass one of its models, as --model {names[0]}."
    )


def _adapter_folder(folder: Path, _: Sequence[Path]) -> str | None:
    found = next((path for name in ADAPTER_FILES if (path := folder / name).is_file()), None)
    return None if found is None else explain_kind(found)


def _component_folder(folder: Path, _: Sequence[Path]) -> str | None:
    if (folder / MODULAR_INDEX).is_file():
        index = _json(folder / MODULAR_INDEX) or {}
        return explain_pipeline(index.get("_class_name"), str(folder))
    names = (CONFIG, "scheduler_config.json", "tokenizer_config.json")
    config = next((path for name in names if (path := folder / name).is_file()), None)
    if config is None:
        return None
    if is_lfs_pointer(config):
        return explain_pointer(config)
    whole = pipeline_around(folder)
    if whole is not None:
        return f"'{folder}' is one part of a pipeline; pass --model {_quoted(whole)}."
    content = _json(config) or {}
    kind = content.get("_class_name")
    weights = folder / "diffusion_pytorch_model.safetensors"
    if kind == "AutoencoderKL" and weights.is_file():
        return explain_kind(weights)
    architectures = content.get("architectures")
    if kind is None and isinstance(architectures, list) and architectures:
        what = f"a {shown(str(architectures[0]))} of transformers"
    elif kind is None and "base_model_name_or_path" not in content and "model_type" not in content:
        return None
    else:
        what = known_kinds()["components"].get(str(kind), f"a {shown(str(kind))} alone")
    return f"The folder '{folder}' is {what}, not a whole model; {WORKS}."


def _parent_folder(folder: Path, entries: Sequence[Path]) -> str | None:
    found = [entry for entry in entries if (entry / INDEX).is_file()]
    if not found:
        return None
    more = "" if len(found) == 1 else f" (and {len(found) - 1} more: {_names(found[1:])})"
    return (
        f"The folder '{folder}' is no pipeline, but there is one below it; "
        f"pass --model {_quoted(found[0])}{more}."
    )


def _pipeline_without_index(folder: Path, entries: Sequence[Path]) -> str | None:
    names = (*NETWORKS, "vae", "text_encoder", "scheduler")
    parts = [entry.name for entry in entries if entry.name in names]
    if len(parts) == 1 or not any(name in parts for name in NETWORKS):
        return None
    return (
        f"The folder '{folder}' has parts of a pipeline ({', '.join(parts)}), but no {INDEX}; "
        "get that file too, or the whole model again."
    )


def _single_files(folder: Path, _: Sequence[Path]) -> str | None:
    files = [
        file
        for name in WEIGHTS_IN
        for file in _children(folder / name)
        if file.suffix == ".safetensors" and file.is_file()
    ]
    if not files:
        return None
    whole, trouble = [], None
    for file in files:
        try:
            if kind_of_file(file) in EXPECTED["--model"].kinds:
                whole.append(file)
        except ModelError as error:
            trouble = trouble or str(error)
    if whole:
        one = "a checkpoint" if len(whole) == 1 else "checkpoints"
        return (
            f"The folder '{folder}' holds {one} in single files ({_names(whole)}); "
            f"pass one file, as --model {_quoted(whole[0])}."
        )
    return trouble or explain_kind(files[0])


def _training_checkpoints(folder: Path, entries: Sequence[Path]) -> str | None:
    kept = {int(m[1]): entry for entry in entries if (m := CHECKPOINT.fullmatch(entry.name))}
    if not kept:
        return None
    last = kept[max(kept)]
    lora = last / ADAPTER_FILES[0]
    advice = (
        f"pass the LoRA of the last, --lora {_quoted(lora)}, beside --model"
        if lora.is_file()
        else "let the training end, or put the last one's network into its base model and write "
        "that with save_pretrained()"
    )
    return (
        f"The folder '{folder}' holds only what a training keeps on its way "
        f"({_names([kept[step] for step in sorted(kept)])}); {advice}."
    )


def _other_formats(folder: Path, entries: Sequence[Path]) -> str | None:
    files = [*entries, *(file for entry in entries if entry.is_dir() for file in _entries(entry))]
    endings = known_kinds()["endings"]
    what = endings.get(folder.suffix.lower())
    for file in files:
        what = what or endings.get(file.suffix.lower())
        if what is None and _is_openvino(file):
            what = "a model exported to OpenVINO"
    if what is not None:
        return f"The folder '{folder}' holds {what}; {SAFETENSORS}."
    unsafe = next((f for f in files if f.suffix.lower() in UNSAFE and f.is_file()), None)
    return None if unsafe is None else explain_unsafe(unsafe)


def _is_openvino(file: Path) -> bool:
    return file.suffix in (".xml", ".bin") and file.stem.startswith("openvino_")


FOLDER_KINDS = (
    _model_in_cache,
    _whole_cache,
    _adapter_folder,
    _component_folder,
    _parent_folder,
    _pipeline_without_index,
    _single_files,
    _training_checkpoints,
    _other_formats,
)
"""What a folder may be; each says so in a sentence, or returns None."""


def pipeline_around(path: Path) -> Path | None:
    for parent in path.absolute().parents[:2]:
        if (parent / INDEX).is_file():
            return parent
    return None


def _unet_config(folder: Path) -> Mapping[str, Any]:
    config = folder / "unet" / CONFIG
    return (_json(config) if config.is_file() else None) or {}


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return read_object(path, MEGABYTE)
    except ValueError:
        return None


def _entries(folder: Path) -> list[Path]:
    """List what is in a folder, sorted, but for hidden files; the first thousand."""
    found = islice((path for path in folder.iterdir() if path.name[0] != "."), MOST_ENTRIES)
    return sorted(found)


def _children(folder: Path) -> list[Path]:
    return _entries(folder) if folder.is_dir() else []


def _names(paths: Sequence[Path]) -> str:
    return _listed([path.name for path in paths])


def _listed(names: Sequence[str]) -> str:
    more = ", …" if len(names) > MOST_NAMES else ""
    return ", ".join(shown(name) for name in names[:MOST_NAMES]) + more


def _quoted(path: Path) -> str:
    return shlex.quote(shown(str(path)))

"""What is passed as a model and is none: one sentence that says what it is, and what to pass."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from nulltext.errors import ModelError, reason_of, shorten
from nulltext.models.file_kinds import explain_kind
from nulltext.models.foreign_files import shown
from nulltext.models.foreign_folders import CACHED, explain_folder, pipeline_around

HUB = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/|hf://|git@hf\.co:)(.*)",
    re.IGNORECASE,
)
CIVITAI = re.compile(r"(?:https?://)?(?:www\.)?civitai\.[a-z]+(?:/.*)?", re.IGNORECASE)
ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*://|www\.).*", re.IGNORECASE)
PART = re.compile(r"[\w.-]+")
"""The owner or the name in a hub id."""

OTHER_REPOSITORIES = {"datasets": "a data set", "spaces": "a Space", "papers": "a paper"}
ID_PARTS = 2
"""Owner and name."""
SHOWS_FILES = ("tree", "blob", "resolve", "raw", "commit")
"""What comes between a hub id and a revision in an address."""


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
    """What an address is; None where the text is none."""
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
    """Which hub id an address of the hub means."""
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

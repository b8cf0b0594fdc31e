"""From what a person calls a model to its files: a bundled name, a folder, a file, a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from nulltext.errors import ModelError, OptionError
from nulltext.models.checkpoint import Checkpoint
from nulltext.models.single_file import SingleFile

BUNDLED_FOLDER = Path(__file__).parent / "bundled"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
SAFETENSORS = ".safetensors"

Source = Checkpoint | SingleFile
"""Where configs, tokenizers and weights of a model are read from."""


def bundled_models() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    return tuple(sorted(p.parent.name for p in BUNDLED_FOLDER.glob("*/model_index.json")))


def folder_of(model: str | Path) -> Path | None:
    """Where a model's files are; None where it is one file, or one of the hub's.

    Raises:
        ModelError: there is no such model.
    """
    found = _place(model)
    return found if isinstance(found, Path) and found.is_dir() else None


def source_of(
    model: str | Path, *, variant: str | None = None, config: str | None = None
) -> Source:
    """Find a model's files; those of the hub's models are fetched.

    Args:
        variant: of the weights, such as "fp16"; see `variants`.
        config: of a single file; see `SingleFile`.

    Raises:
        ModelError: there is no such model, or it cannot be fetched.
        OptionError: an option does not fit this kind of source.
    """
    place = _place(model)
    if isinstance(place, Path) and place.is_file():
        if variant is not None:
            raise OptionError(
                f"--variant chooses among a folder's files, and '{model}' is one; leave it out."
            )
        return SingleFile(place, str(model), config)
    if config is not None:
        raise OptionError(
            f"--config is for a single file, and '{model}' has its own; leave it out."
        )
    if isinstance(place, Path):
        return Checkpoint(place, str(model), variant)
    raise ModelError("hub")


def display_name(model: str | Path) -> str:
    """What a model is called in reports: a folder or file by its own name."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else str(model)


def _place(model: str | Path) -> Path | str:
    """The folder or file of a model, or its hub id."""
    text = str(model)
    if text in bundled_models():
        return BUNDLED_FOLDER / text
    path = Path(model).expanduser()
    if text and path.is_dir() and (path / "model_index.json").is_file():
        return path
    if path.is_file() and path.suffix.lower() == SAFETENSORS:
        return path
    if path.exists() or not HUB_ID.fullmatch(text):
        raise ModelError(
            f"There is no model '{model}': it is neither bundled "
            f"({', '.join(bundled_models())}), nor an existing folder or .safetensors file, nor a "
            "hub id (owner/name)."
        )
    return text

"""From what a person calls a model to its files: a bundled name, a folder, a file, a hub id."""

from __future__ import annotations

from pathlib import Path

from nulltext.errors import ModelError, OptionError
from nulltext.models.checkpoint import Checkpoint
from nulltext.models.file_kinds import explain_kind
from nulltext.models.foreign import explain
from nulltext.models.hub import fetch, fetch_file, parse_hub_model
from nulltext.models.hub_client import HubModel, OnBytes
from nulltext.models.single_file import SingleFile
from nulltext.storage.files import expand_user, path_exists

BUNDLED_FOLDER = Path(__file__).parent / "bundled"

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
    model: str | Path,
    *,
    variant: str | None = None,
    config: str | None = None,
    on_bytes: OnBytes | None = None,
) -> Source:
    """Find a model's files; those of the hub's models are fetched.

    Args:
        variant: of the weights, such as "fp16"; see `variants`.
        config: of a single file; see `SingleFile`.
        on_bytes: called with (done, total) bytes while files are fetched.

    Raises:
        ModelError: there is no such model, or it cannot be fetched.
        OptionError: an option does not fit this kind of source.
    """
    place = _place(model)
    if isinstance(place, HubModel) and place.file is not None:
        place = fetch_file(str(model), on_bytes=on_bytes)
        reason = explain_kind(place)
        if reason is not None:
            raise ModelError(reason)
    if isinstance(place, Path) and place.is_file():
        if variant is not None:
            raise OptionError(
                f"--variant selects weights in a folder or a hub repository, and '{model}' is a "
                "single file; leave it out."
            )
        return SingleFile(place, str(model), config)
    if config is not None:
        raise OptionError(
            f"--config is for a single file, and '{model}' has its own; leave it out."
        )
    if isinstance(place, HubModel):
        place = fetch(str(model), variant=variant, on_bytes=on_bytes)
    return Checkpoint(place, str(model), variant)


def display_name(model: str | Path) -> str:
    """What a model is called in reports: a folder or file by its own name."""
    path = expand_user(model)
    return path.resolve().name if path_exists(path) else str(model)


def _place(model: str | Path) -> Path | HubModel:
    """The folder or file of a model, or its name on the hub."""
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

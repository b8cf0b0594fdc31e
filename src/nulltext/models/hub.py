"""Models of the hub: the files that are needed, downloaded into the hub client's own cache.

    owner/name                          the branch main
    owner/name@revision                 a branch, a tag or a commit
    owner/name/path/file.safetensors    one single-file checkpoint

The hub is asked once, for the commit and its files; a model that the cache holds is then used even
if no answer comes. No request is made where the revision is a full commit hash and the wanted
weights are in the cache, or where HF_HUB_OFFLINE is set. Every file is of the one commit. The
client continues a file after a broken connection; a repeated command keeps the files that are
complete.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nulltext.errors import ModelError, shorten
from nulltext.models.checkpoint import quiet_libraries
from nulltext.models.families import Family, check_config, family_of
from nulltext.models.hub_client import (
    COMMIT,
    PATIENCE,
    Commit,
    HubModel,
    OnBytes,
    ask,
    unwarned,
)
from nulltext.models.variants import INDEX, choose_weights, files_of, needed_files
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text

logger = logging.getLogger(__name__)

MODEL = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)"
    r"(/(?P<file>[^@\\]+\.\w+))?"
    r"(@(?P<revision>[\w.+-]+(/[\w.+-]+)*))?"
)

MAX_INDEX_BYTES = 4 * MEGABYTE
MOST_NAMED = 8
"""Files that a message names."""


@dataclass(frozen=True)
class _Held:
    """What the cache has of a model: nothing is missing."""

    folder: Path
    final: bool
    """Whether nothing that the commit may also have would be read instead."""


def parse_hub_model(text: str) -> HubModel | None:
    """A hub model by its name; None where the text is none."""
    from huggingface_hub.errors import HFValidationError

    found = MODEL.fullmatch(text)
    if found is None or any(part in ("", ".", "..") for part in re.split("[/@]", text)):
        return None
    name = HubModel(found["repository"], found["revision"] or "main", found["file"])
    try:
        _ = name.cache  # the client has rules of its own
    except HFValidationError:
        return None
    return name


def fetch(hub_id: str, *, variant: str | None = None, on_bytes: OnBytes | None = None) -> Path:
    """Download what a model is loaded from; returns its folder, which may hold other files too.

    Args:
        hub_id: owner/name or owner/name@revision.
        variant: see `variants.choose_weights`.
        on_bytes: is called only if something has to be downloaded.

    Raises:
        ModelError: there is no such model or revision, it is gated, of a kind that is not
            supported or without safetensors, the hub is out of reach, or the disk is full.
    """
    name = _parsed(hub_id)

    def held() -> _Held | None:
        return _held_pipeline(name, variant)

    def needed(commit: Commit) -> list[str]:
        if INDEX not in commit.files:
            raise ModelError(
                f"The hub model '{name}' is no pipeline: it has no {INDEX}, but "
                f"{_listed(commit.files)}; pass one in diffusers format, or one file of it as "
                "owner/name/file.safetensors."
            )
        family = _family(commit.download(INDEX), name)
        return needed_files(commit.files, family.modules, family.tokenizers, str(name), variant)

    return _fetched(name, held, needed, on_bytes)


def fetch_file(hub_id: str, *, on_bytes: OnBytes | None = None) -> Path:
    """Download one safetensors file, by owner/name/path/file.safetensors; returns its path.

    Raises:
        ModelError: as for `fetch`; or there is no such file.
    """
    name = _parsed(hub_id)
    file = name.file or ""
    if not file.endswith(".safetensors"):
        raise ModelError(f"'{name}' is no safetensors file, and nothing else is read; pass one.")

    def held() -> _Held | None:
        folder = name.snapshot
        return _Held(folder, True) if folder and (folder / file).is_file() else None

    def needed(commit: Commit) -> list[str]:
        if file not in commit.files:
            raise ModelError(
                f"The hub model '{name.repository}' has no {file}, it has "
                f"{_listed(commit.files)}; pass one file as owner/name/file.safetensors."
            )
        return [file]

    return _fetched(name, held, needed, on_bytes) / file


def _fetched(
    name: HubModel,
    held: Callable[[], _Held | None],
    needed: Callable[[Commit], list[str]],
    on_bytes: OnBytes | None,
) -> Path:
    """The folder of a commit that has the files that are needed."""
    from huggingface_hub import constants
    from huggingface_hub.errors import RevisionNotFoundError

    from nulltext.models.hub_errors import explained

    with quiet_libraries(), unwarned():
        cached, pinned = held(), COMMIT.fullmatch(name.revision)
        if cached and (constants.HF_HUB_OFFLINE or (pinned and cached.final)):
            return cached.folder
        if constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"There is no folder '{name}', and the cache {constants.HF_HUB_CACHE} does not "
                "hold all of the hub model of that name; unset HF_HUB_OFFLINE to download it, or "
                "pass a local folder."
            )
        try:
            commit = ask(name, PATIENCE[:1] if cached else PATIENCE)
        except Exception as error:  # of the client, and of the library that speaks HTTP for it
            if cached and not isinstance(error, RevisionNotFoundError):
                logger.info("load: %s as it is in the cache (%s)", name, type(error).__name__)
                return cached.folder
            raise explained(error, name) from error
        try:
            commit.download_all(needed(commit), on_bytes)
        except ModelError:
            raise
        except Exception as error:
            raise explained(error, name, begun=True) from error
    return commit.folder


def _parsed(hub_id: str) -> HubModel:
    name = parse_hub_model(hub_id)
    if name is None:
        raise ModelError(
            f"'{shorten(hub_id)}' is no hub model; pass owner/name or owner/name@revision."
        )
    return name


def _held_pipeline(name: HubModel, variant: str | None) -> _Held | None:
    folder = name.snapshot
    if folder is None or not (folder / INDEX).is_file():
        return None
    try:
        family, names = _family(folder / INDEX, name), files_of(folder)
        needed_files(names, family.modules, family.tokenizers, str(name), variant)
        chosen = choose_weights(names, family.modules, str(name), variant)
    except ModelError:
        return None
    return _Held(folder, final=all(weights.variant == variant for weights in chosen.values()))


def _family(index: Path, name: HubModel) -> Family:
    """The family that a model's index says; refuses what nulltext cannot edit with."""
    try:
        config = parse_json(read_text(index, MAX_INDEX_BYTES))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise ModelError(
            f"{INDEX} of the hub model '{name}' cannot be read ({shorten(str(error))}); "
            "pass another revision or model."
        ) from error
    family = family_of(config.get("_class_name"), str(name), config)
    check_config(family, config, str(name))
    return family


def _listed(names: Iterable[str]) -> str:
    """File names for a message, weights first."""
    ordered = sorted(names, key=lambda n: (not n.endswith(".safetensors"), n.startswith("."), n))
    shown = ", ".join(shorten(name) for name in ordered[:MOST_NAMED])
    return (shown + ", …" if len(ordered) > MOST_NAMED else shown) or "no files"

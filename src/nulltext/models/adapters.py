"""What is put into a model beside its own weights, as headers and reports describe it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nulltext.errors import ModelError, reason_of
from nulltext.models.autoencoder_files import autoencoder_files
from nulltext.models.embeddings import Embedding, embedding_file, token_of
from nulltext.models.lora import Lora, lora_file

SHA_CHARACTERS = 10
"""As many as sites that publish LoRAs show of a file's SHA-256."""


def described(
    loras: Sequence[Lora] = (),
    embeddings: Sequence[Embedding] = (),
    vae: Path | None = None,
) -> list[dict[str, Any]]:
    """Names without folders, weights and the beginnings of SHA-256 sums; JSON can hold it.

    Raises:
        ModelError: a file cannot be read.
    """
    found: list[dict[str, Any]] = []
    for path, weight in loras:
        found.append(_entry("lora", path, lora_file(path)) | {"weight": float(weight)})
    for embedding in embeddings:
        entry = _entry("embedding", embedding.path, embedding_file(embedding.path))
        found.append(entry | {"token": token_of(embedding)})
    if vae is not None:
        found.append(_entry("vae", vae, autoencoder_files(vae)[1]))
    return found


def _entry(kind: str, path: Path, file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"'{file}' cannot be read ({reason_of(error)}); pass a file of tensors."
        ) from error
    name = path.expanduser().resolve().name
    return {"kind": kind, "name": name, "sha256": digest[:SHA_CHARACTERS]}

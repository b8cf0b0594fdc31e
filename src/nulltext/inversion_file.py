"""The saved inversion: one safetensors file, tensors beside a JSON header.

The header lies in safetensors' own metadata under the key "nulltext" and carries the format's
version. Reading opens nothing but safetensors and JSON, checks the header before any tensor is
touched, and says by name what is wrong with a file. Writing goes to a temporary name first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nulltext.errors import InversionFileError, reason_of
from nulltext.files import replace_file

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 2
"""2: may hold a difference of weights, and says how many gradients were taken; 1 is still read."""
METADATA_KEY = "nulltext"
SUFFIX = ".safetensors"


def write_inversion(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and header; an older file of that name survives any failure.

    Raises:
        OutputError: the file cannot be written there.
    """
    from safetensors.torch import save

    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {METADATA_KEY: json.dumps({"version": FORMAT_VERSION, **header})}
    replace_file(path, save(content, metadata=metadata))


def read_inversion(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a saved inversion back as tensors (on the CPU) and header.

    Raises:
        InversionFileError: the file is missing, truncated, foreign, or of a newer version.
    """
    header = read_header(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path), header
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def read_header(path: Path) -> dict[str, Any]:
    """Read the header alone; see `read_inversion` for the errors."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise InversionFileError(
            f"The inversion file '{path}' {what}; make one with `nulltext invert`."
        )
    try:
        with safe_open(path, framework="pt") as stream:
            text = (stream.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if text is None:
        raise InversionFileError(
            f"'{path}' is a safetensors file, but not one of nulltext's inversions; "
            "make one with `nulltext invert`."
        )
    try:
        header = json.loads(text)
        version = header["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _damaged(path, ValueError(f"its format version is {version!r}"))
    if version > FORMAT_VERSION:
        raise InversionFileError(
            f"'{path}' is of format version {version}, and this nulltext reads up to "
            f"{FORMAT_VERSION}; upgrade nulltext, or invert the photo again."
        )
    assert isinstance(header, dict)
    return header


def _damaged(path: Path, error: Exception) -> InversionFileError:
    return InversionFileError(
        f"'{path}' is no inversion file, or a truncated or damaged one ({reason_of(error)}); "
        "invert the photo again."
    )

"""The saved inversion: one safetensors file, tensors beside a JSON header.

The header lies in safetensors' own metadata under the key "nulltext" and carries the version of the
format. Reading opens safetensors and JSON only, and checks the sizes and the header before any
tensor is read. A file that is missing, damaged, foreign or newer is an InversionFileError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nulltext.errors import InversionFileError, reason_of, shorten
from nulltext.storage.files import replace_file
from nulltext.storage.untrusted import MEGABYTE, parse_json, refuse_address

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 3
"""3: holds noise levels, where 1 and 2 hold timesteps. 2: may hold a difference of weights, and
says how many gradients were taken. All are read."""
METADATA_KEY = "nulltext"
SUFFIX = ".safetensors"
LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, little-endian."""
MAX_HEADER_BYTES = 4 * MEGABYTE
"""More than SDXL needs with a difference of weights in each layer."""
MAX_FILE_BYTES = 4096 * MEGABYTE
"""More than SDXL needs in a thousand steps with embeddings of both branches."""
DTYPES = {"F32": "float32", "F64": "float64", "U8": "uint8"}
"""torch's names of the tensor types, by safetensors' names."""


def write_inversion(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    import torch
    from safetensors.torch import save

    content = {  # each its own memory, as safetensors asks for
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    metadata = {METADATA_KEY: json.dumps({"version": FORMAT_VERSION, **header})}
    replace_file(path, save(content, metadata=metadata))


class TensorOutline(NamedTuple):
    """Type and shape of a tensor, without its numbers."""

    dtype: str
    """As torch and numpy call it: "float32"."""
    shape: tuple[int, ...]


def read_outline(path: Path) -> dict[str, TensorOutline]:
    """Read the types and shapes that a file declares, and none of its numbers."""
    outlines = {}
    with _opened(path) as stream:
        for name in stream.keys():  # noqa: SIM118 (a function of safetensors)
            entry = stream.get_slice(name)
            kind = entry.get_dtype()
            if kind not in DTYPES:
                raise ValueError(f"{name} is of {kind}, expected {' or '.join(DTYPES)}")
            outlines[name] = TensorOutline(DTYPES[kind], tuple(entry.get_shape()))
    return outlines


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, whose header and outline are good, on the CPU."""
    from safetensors.torch import load_file

    with _opened(path):
        return load_file(path)


def not_finite(path: Path) -> list[str]:
    """Find the tensors of a file that hold infinity or NaN; imports no torch."""
    import numpy as np

    with _opened(path) as stream:
        names = [*stream.keys()]
        return [name for name in names if not np.isfinite(stream.get_tensor(name)).all()]


def read_header(path: Path) -> dict[str, Any]:
    with _opened(path) as stream:
        return _header(path, stream)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        _check_size(path)
        with safe_open(path, framework="numpy") as stream:
            yield stream
    except (SafetensorError, OSError, ValueError) as error:
        raise InversionFileError(
            f"'{path}' is not an inversion file, or it is truncated or damaged "
            f"({reason_of(error)}); invert the photo again."
        ) from error


def _header(path: Path, stream: Any) -> dict[str, Any]:
    text = (stream.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise InversionFileError(
            f"'{path}' is a safetensors file, but not one of nulltext's inversions; "
            "make one with `nulltext invert`."
        )
    header = parse_json(text)
    version = header.get("version") if isinstance(header, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"its format version is {shorten(repr(version))}")
    if version > FORMAT_VERSION:
        raise InversionFileError(
            f"'{path}' is of format version {shorten(str(version))}, and this nulltext reads "
            f"up to {FORMAT_VERSION}; upgrade nulltext, or invert the photo again."
        )
    return dict(header)


def _check_size(path: Path) -> None:
    if not path.is_file():
        refuse_address(path, InversionFileError)
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise InversionFileError(
            f"The inversion file '{path}' {problem}; make one with `nulltext invert`."
        )
    with path.open("rb") as file:
        header = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if header > MAX_HEADER_BYTES:
        raise ValueError(f"its header claims {header:,} bytes of at most {MAX_HEADER_BYTES:,}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES:,} bytes")

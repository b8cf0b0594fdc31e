"""Files of adapters: safetensors that somebody else wrote, opened with care and told apart by keys.

A header is checked against the file's size by safetensors itself, so that no shape is larger than
the bytes that are there; tensors stay on disk until they are asked for, one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nulltext.errors import ModelError, reason_of
from nulltext.models.file_kinds import Option, explain_kind, kind_of_file
from nulltext.storage.files import expand_user, path_exists
from nulltext.storage.untrusted import MEGABYTE, parse_json

UNSAFE = (".bin", ".ckpt", ".pt", ".pth")
"""Endings of files that could run code when opened, and never are."""
ENDED = re.compile(r"(.+\.(?:safetensors|bin|ckpt|pth?)):([^/\\]*)", re.IGNORECASE | re.DOTALL)
"""A file by its ending, a colon, and what is said of it."""

MAX_NAME = 500
"""Characters of a tensor's name: none of any model has more, and patterns are sought in it."""
MAX_METADATA = 4 * MEGABYTE
"""Characters of an entry of the metadata that is read as JSON."""
WITHOUT_TOKEN = "emb_params"
"""The only tensor in an embedding file of A1111's web UI, which does not name its token."""
TWO_ENCODERS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
"""Names of the two tensors in an embedding file for SDXL."""


@dataclass(frozen=True)
class AdapterFile:
    """An open safetensors file."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    stream: Any

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is stored.

        Raises:
            ModelError: it holds no floating-point numbers (a single one may be whole), or some that
                are not finite.
        """
        tensor: Tensor = self.stream.get_tensor(name)
        if not tensor.is_floating_point() and tensor.numel() != 1:
            raise ModelError(
                f"The tensor {shown(name)} of '{self.path.name}' is {tensor.dtype}, expected "
                "floating-point numbers; get the file again."
            )
        if not bool(tensor.float().isfinite().all()):
            raise ModelError(
                f"The tensor {shown(name)} of '{self.path.name}' has NaN or infinity in it; get "
                "the file again."
            )
        return tensor

    def json(self, name: str) -> Any:
        """An entry of the metadata that is JSON; None where there is none.

        Raises:
            ValueError: it is damaged, or too long.
        """
        text = self.metadata.get(name)
        if text is not None and len(text) > MAX_METADATA:
            raise ValueError(f"{name} has more than {MAX_METADATA:,} characters")
        return None if text is None else parse_json(text)


@contextmanager
def opened(path: Path, what: str) -> Iterator[AdapterFile]:
    """Open a file of tensors.

    Args:
        what: it should be, for messages: "LoRA".

    Raises:
        ModelError: it is missing, damaged, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix.lower() in UNSAFE:
        raise ModelError(
            f"The {what} '{path}' is a {path.suffix} file, which could run code when it is opened; "
            "pass a .safetensors file."
        )
    if not path_exists(path) or not path.is_file():
        kind = "is no regular file" if path_exists(path) else "does not exist"
        raise ModelError(f"The {what} '{path}' {kind}; pass a .safetensors file.")
    try:
        with safe_open(path, framework="pt") as stream:
            names = list(stream.keys())
            if max(map(len, names), default=0) > MAX_NAME:
                raise ValueError(f"a tensor's name has more than {MAX_NAME} characters")
            shapes = {name: tuple(stream.get_slice(name).get_shape()) for name in names}
            yield AdapterFile(path, shapes, stream.metadata() or {}, stream)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"The {what} '{path}' is no safetensors file, or a truncated or damaged one "
            f"({reason_of(error)}); get it again."
        ) from error


def file_in(path: Path, names: Sequence[str], what: str) -> Path:
    """The file that is meant by a path: itself, or in a folder the first of these names.

    Raises:
        ModelError: the folder has none of them.
    """
    path = expand_user(path)
    if not path_exists(path) or not path.is_dir():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    raise ModelError(
        f"The folder '{path}' has no {' and no '.join(names)}; pass the file of the {what}."
    )


def check_kind(file: AdapterFile, option: Option) -> None:
    """Refuse a file that is something else than what an option takes.

    Raises:
        ModelError: it is; says what, and which option takes it.
    """
    whole = option == "--vae" and kind_of_file(file.path) == "checkpoint"  # its own is taken
    reason = None if whole else explain_kind(file.path, option)
    if reason is not None:
        raise ModelError(reason)


def split_choice(text: str) -> tuple[Path, str | None]:
    """FILE or FILE:VALUE as file and value; colons in the file's own name are left alone."""
    whole = expand_user(text)
    if path_exists(whole):
        return whole, None
    ended = ENDED.fullmatch(text)
    if ended:
        return expand_user(ended[1]), ended[2]
    head, colon, tail = text.rpartition(":")
    if colon and head and path_exists(expand_user(head)):
        return expand_user(head), tail
    return whole, None


def shown(text: str, longest: int = 120) -> str:
    """A text of a file as a message can hold it: short, and without control characters."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    return plain if len(plain) <= longest else plain[:longest] + "\u2026"

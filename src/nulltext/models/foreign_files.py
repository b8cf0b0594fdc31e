"""What a file is that holds no safetensors, by its first bytes and the ending of its name.

At most some kilobytes of a regular file are read, and nothing in it is run or unpacked.
"""

from __future__ import annotations

import shlex
import stat
from pathlib import Path

from nulltext.errors import ModelError, reason_of, shorten

FIRST_BYTES, LINE = 4096, 40
"""Of a file that are looked at, and characters of a text that a message repeats."""

PASS = "pass a folder in diffusers format, a .safetensors checkpoint or a hub id (owner/name)"
SAFETENSORS = "nulltext reads safetensors for PyTorch: get that version of the model"

UNSAFE = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""Endings of files that could run code when opened, and never are."""

ENDINGS = {
    ".onnx": "a model exported to ONNX",
    ".onnx_data": "the weights of a model exported to ONNX",
    ".msgpack": "weights for JAX (Flax)",
    ".gguf": "a quantised model (GGUF)",
    ".engine": "a model compiled for one GPU (TensorRT)",
    ".plan": "a model compiled for one GPU (TensorRT)",
    ".trt": "a model compiled for one GPU (TensorRT)",
    ".mlmodel": "a model for Apple's Core ML",
    ".mlpackage": "a model for Apple's Core ML",
    ".mlmodelc": "a model for Apple's Core ML",
    ".tflite": "a model for TensorFlow Lite",
    ".h5": "weights for Keras",
    ".pb": "a model for TensorFlow",
}
"""What files of other libraries are, by the endings of their names."""

PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
ZIP = b"PK\x03\x04"
ARCHIVES = (ZIP, b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")
LFS = b"version https://git-lfs.github.com/spec/"
MARKUP = (b"<!doctype html", b"<html", b"<head", b"<body")
SERIALISED = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
TAR_AT, ZIP_NAME_AT, RIFF_KIND_AT = 257, 30, 8
"""Where a tar's mark, the first name in a zip, and the kind of a RIFF file begin."""

CONVERT = (
    "from diffusers.models.model_loading_utils import load_state_dict; "
    "from safetensors.torch import save_file; w = load_state_dict({old!r}); "
    "w = w.get('state_dict', w); save_file({{n: t.clone().contiguous() for n, t in w.items() "
    "if hasattr(t, 'contiguous')}}, {new!r})"
)
"""Python that turns a file of weights into safetensors, reading tensors and nothing else."""


def shown(name: str) -> str:
    """A file's or a tensor's name, as a message of one line can hold it."""
    return shorten(name if name.isprintable() else ascii(name))


def check_readable(path: Path) -> None:
    """Refuse what is no regular file, or must not be read.

    Raises:
        ModelError: so it is; says why.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelError(f"'{path}' is no regular file; {PASS}.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise ModelError(
            f"'{path}' cannot be read ({reason_of(error)}); check who may read it."
        ) from error


def is_lfs_pointer(path: Path) -> bool:
    """Whether Git LFS left a line of text in a file's place."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(LFS)) == LFS
    except OSError:
        return False


def explain_bytes(path: Path) -> str | None:
    """Say in one sentence what a file is, if not safetensors; None where it cannot be said.

    Raises:
        ModelError: it cannot be read.
    """
    check_readable(path)
    with path.open("rb") as stream:
        first = stream.read(FIRST_BYTES)
    if not first:
        return f"'{path}' is empty, as a download that failed leaves it; get it again."
    if first.startswith(LFS):
        return explain_pointer(path)
    if path.suffix.lower() in ENDINGS or first.startswith(b"GGUF"):
        what = ENDINGS.get(path.suffix.lower(), ENDINGS[".gguf"])
        return f"'{path}' is {what}; {SAFETENSORS}."
    if _runs_code(first, path.suffix.lower()):
        return explain_unsafe(path)
    if first.startswith(ARCHIVES) or first[TAR_AT : TAR_AT + 5] == b"ustar":
        return f"'{path}' is an archive; unpack it, and pass the model that is in it."
    if first.startswith(PICTURES) or first[RIFF_KIND_AT : RIFF_KIND_AT + 4] == b"WEBP":
        return f"'{path}' is a picture, not a model; {PASS}."
    return _explain_text(path, first)


def explain_pointer(path: Path) -> str:
    """Say that Git LFS left a pointer in a file's place."""
    return (
        f"'{path}' is a pointer of Git LFS, not the file that it stands for; "
        "run `git lfs pull` in its folder, or download the model again."
    )


def explain_unsafe(path: Path) -> str:
    """Say that a file is never opened, and how to convert it."""
    code = CONVERT.format(old=str(path), new=str(path.with_suffix(".safetensors")))
    return (
        f"'{path}' could run code when it is opened, so nulltext never opens it; get its "
        "safetensors version, or where you trust it, convert it with "
        f"`python -c {shlex.quote(code)}`."
    )


def _runs_code(first: bytes, suffix: str) -> bool:
    """Whether it is of the format of `torch.save`, in a zip or not."""
    zipped = first.startswith(ZIP)
    inside = zipped and b"/data.pkl" in first[ZIP_NAME_AT:]
    return inside or first.startswith(SERIALISED) or (suffix in UNSAFE and b"\0" in first)


def _explain_text(path: Path, first: bytes) -> str | None:
    """What a text file is; None where it is none."""
    text = first.decode("utf-8", errors="ignore").lstrip("\ufeff \t\r\n")
    if b"\0" in first or len(text.encode()) < len(first) // 2:
        return None
    if text[:20].lower().encode().startswith(MARKUP):
        return (
            f"'{path}' is a web page, as a download without a login or of the wrong address leaves "
            "it; download the file itself."
        )
    if path.name in ("model_index.json", "config.json"):
        return f"'{path}' is a configuration, not a model; pass its folder."
    line = ""
    if path.suffix.lower() in (".safetensors", *UNSAFE):  # what a server said of a download
        line = f" ({shown((text.splitlines() or [''])[0][:LINE])!r})"
    return f"'{path}' is a text file{line}, not a model; {PASS}."

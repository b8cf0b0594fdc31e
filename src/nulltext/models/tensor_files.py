"""Tell what a file holds, and open safetensors files that are added to a model.

A safetensors file's kind is known by its header alone: tensor names, shapes and metadata. Names are
those of the original training code ("ldm"), of diffusers and of the common trainers. Any other file
is known by its first bytes and the ending of its name. Nothing is run, unpacked or executed. What
cannot be read is refused as a ModelError that says what it is.
"""

from __future__ import annotations

import re
import shlex
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nulltext.errors import ModelError, reason_of
from nulltext.storage.files import expand_user, path_exists
from nulltext.storage.inversion_file import LENGTH_BYTES, METADATA_KEY
from nulltext.storage.untrusted import MEGABYTE, parse_json

if TYPE_CHECKING:
    from torch import Tensor

WORKS = "pass a text-to-image checkpoint of Stable Diffusion 1, 2, XL (base), 3 or FLUX.1"
PASS = "pass a folder in diffusers format, a .safetensors checkpoint or a hub id (owner/name)"
SAFETENSORS = "nulltext reads safetensors for PyTorch: get that version of the model"

UNSAFE = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""Endings of files that could run code when opened, and never are."""
ENDED = re.compile(r"(.+\.(?:safetensors|bin|ckpt|pth?)):([^/\\]*)", re.IGNORECASE | re.DOTALL)
"""A file by its ending, a colon, and what is said of it."""

MAX_HEADER_BYTES = 8 * MEGABYTE
"""SDXL's checkpoint has a header of 0.4 MiB."""
MAX_NAME = 500
"""Characters of a tensor's name: none of any model has more, and patterns are sought in it."""
MAX_METADATA = 4 * MEGABYTE
"""Characters of an entry of the metadata that is read as JSON."""
FIRST_BYTES, LINE = 4096, 40
"""Of a file that are looked at, and characters of a text that a message repeats."""
LONGEST_SHOWN = 200
"""Characters of a name that a message repeats."""
MOST_EMBEDDINGS, FLAT = 16, 2
"""Learnt words in one file, and dimensions of their tensors."""

Option = Literal["--model", "--lora", "--embedding", "--vae", "--inversion"]


class OptionFile(NamedTuple):
    """What an option takes."""

    what: str
    advice: str
    kinds: tuple[str, ...]
    """Kinds of files that are passed to it."""
    title: str = ""
    """What its files are called in messages."""
    files: tuple[str, ...] = ()
    """Names of its files in a folder."""


EXPECTED: Mapping[Option, OptionFile] = {
    "--model": OptionFile("a whole checkpoint", WORKS, ("checkpoint", "no-vae", "sd3", "flux")),
    "--lora": OptionFile(
        "a LoRA",
        "pass the .safetensors file of a LoRA",
        ("lora",),
        "LoRA",
        ("pytorch_lora_weights.safetensors", "adapter_model.safetensors"),
    ),
    "--embedding": OptionFile(
        "a learnt embedding",
        "pass the .safetensors file of a learnt embedding",
        ("embedding",),
        "embedding",
        ("learned_embeds.safetensors",),
    ),
    "--vae": OptionFile(
        "an autoencoder", "pass the .safetensors file of an autoencoder", ("vae",), "autoencoder"
    ),
    "--inversion": OptionFile(
        "a saved inversion", "make one with `nulltext invert`", ("inversion",)
    ),
}


@cache
def known_kinds() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "kinds.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Header:
    """What a safetensors file declares."""

    shapes: Mapping[str, Sequence[int]]
    metadata: Mapping[str, Any]
    dtypes: Mapping[str, str]
    """As safetensors calls them: "F16", "BF16"."""


class FileKind(NamedTuple):
    """A kind of safetensors file and how messages call it."""

    kind: str
    what: str


def kind_of_file(path: Path) -> str:
    """Tell the kind of a safetensors file, such as "checkpoint", "lora" or "unknown"."""
    return kind_of(read_header(path)).kind


def explain_kind(path: Path, option: Option = "--model") -> str | None:
    """Say in one sentence why a file cannot be what an option takes; None where it may be.

    What is not known by its tensors is refused as a model only: adapters come in many layouts.
    """
    header = read_header(path)
    kind, what = kind_of(header)
    right = next((each for each, takes in EXPECTED.items() if kind in takes.kinds), None)
    if right == option or (kind == "unknown" and option != "--model"):
        return None
    expected, advice, *_ = EXPECTED[option]
    if kind == "unknown":
        names = ", ".join(shown(name) for name in sorted(header.shapes)[:2]) or "no tensors"
        what = f"a safetensors file of an unknown kind ({names})"
    if right is not None:
        beside = "" if right == "--model" else ", beside the --model that it was made for"
        advice = f"pass it as {right} {shlex.quote(str(path))}{beside}"
    return f"'{path}' is {what}, not {expected}; {advice}."


def kind_of(header: Header) -> FileKind:
    if METADATA_KEY in header.metadata:
        return FileKind("inversion", "a saved inversion")
    names = "\n".join(header.shapes)
    for sign, pattern in _signs():
        if pattern.search(names):
            if sign.kind == "checkpoint":
                return _kind_of_checkpoint(header, names)
            return _kind_of_transformer(header, sign)
    few = 0 < len(header.shapes) <= MOST_EMBEDDINGS and "." not in "".join(header.shapes)
    if few and all(1 <= len(shape) <= FLAT for shape in header.shapes.values()):
        return FileKind("embedding", "a learnt embedding")
    return FileKind("unknown", "a file of an unknown kind")


@cache
def _signs() -> list[tuple[FileKind, re.Pattern[str]]]:
    model = r"^(?:model\.diffusion_model\.|diffusion_model\.|transformer\.|net\.)?"
    signs = []
    for sign in known_kinds()["files"]["signs"]:
        pattern = re.compile(sign["pattern"].replace("MODEL ", model), re.MULTILINE)
        signs.append((FileKind(sign.get("kind", "other-model"), sign["what"]), pattern))
    return signs


def _kind_of_checkpoint(header: Header, names: str) -> FileKind:
    first = header.shapes.get("model.diffusion_model.input_blocks.0.0.weight", ())
    extra = known_kinds()["extra_channels"].get(str(first[1])) if len(first) > 1 else None
    if extra is not None:
        return FileKind(extra["kind"], extra["what"])
    if not re.search(r"^(cond_stage_model|conditioner\.embedders)\.", names, re.MULTILINE):
        return FileKind("unet-only", "a UNet without its text encoders")
    if not re.search(r"^(first_stage_model|vae)\.", names, re.MULTILINE):
        return FileKind("no-vae", "a checkpoint without its autoencoder (VAE)")
    return FileKind("checkpoint", "a whole checkpoint")


def _kind_of_transformer(header: Header, sign: FileKind) -> FileKind:
    """Tell a transformer that takes more than latents, by the channels that it takes."""
    known = known_kinds()["transformer_channels"].get(sign.kind)
    if known is None:
        return sign
    for name, shape in header.shapes.items():
        if name.endswith(known["tensor"]) and len(shape) > 1 and shape[1] != known["channels"]:
            return FileKind("other-model", known["what"])
    return sign


def read_header(path: Path) -> Header:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"'{path}' is no regular file; {PASS}.")
        with path.open("rb") as stream:
            first = stream.read(FIRST_BYTES)
            length = int.from_bytes(first[:LENGTH_BYTES], "little")
            if first[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{" or not 0 < length <= MAX_HEADER_BYTES:
                raise ModelError(_explain_bytes(path, first))
            stream.seek(LENGTH_BYTES)
            text = stream.read(length)
    except OSError as error:
        raise ModelError(
            f"'{path}' cannot be read ({reason_of(error)}); check who may read it."
        ) from error
    whole = LENGTH_BYTES + length
    if len(text) == length:
        try:
            content = parse_json(text.decode("utf-8"))
            metadata = content.pop("__metadata__", {})
            shapes = {name: [int(n) for n in entry["shape"]] for name, entry in content.items()}
            dtypes = {name: str(entry["dtype"]) for name, entry in content.items()}
            ends = [int(entry["data_offsets"][1]) for entry in content.values()]
            if not isinstance(metadata, dict):
                raise ValueError("its metadata is no JSON object")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(
                f"'{path}' has a damaged safetensors header ({reason_of(error)}); get it again."
            ) from error
        whole += max(ends, default=0)
    if status.st_size < whole:
        raise ModelError(
            f"'{path}' is cut off, as by a download that stopped: {status.st_size:,} of {whole:,} "
            "bytes are there; get it again."
        )
    return Header(shapes, metadata, dtypes)


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


def is_lfs_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(len(LFS)) == LFS
    except OSError:
        return False


def _explain_bytes(path: Path, first: bytes) -> str:
    """Say in one sentence what a file is that is not safetensors."""
    suffix, endings = path.suffix.lower(), known_kinds()["endings"]
    if not first:
        return f"'{path}' is empty, as a download that failed leaves it; get it again."
    if first.startswith(LFS):
        return explain_pointer(path)
    if suffix in endings or first.startswith(b"GGUF"):
        return f"'{path}' is {endings.get(suffix, endings['.gguf'])}; {SAFETENSORS}."
    serialised = first.startswith(ZIP) and b"/data.pkl" in first[ZIP_NAME_AT:]
    if serialised or first.startswith(SERIALISED) or (suffix in UNSAFE and b"\0" in first):
        return explain_unsafe(path)
    if first.startswith(ARCHIVES) or first[TAR_AT : TAR_AT + 5] == b"ustar":
        return f"'{path}' is an archive; unpack it, and pass the model that is in it."
    if first.startswith(PICTURES) or first[RIFF_KIND_AT : RIFF_KIND_AT + 4] == b"WEBP":
        return f"'{path}' is a picture, not a model; {PASS}."
    if path.suffix == ".safetensors":
        unknown = f"'{path}' is no safetensors file, but for its name; get it again."
    else:
        unknown = f"'{path}' is a file of an unknown kind; {PASS}."
    return _explain_text(path, first) or unknown


def explain_pointer(path: Path) -> str:
    return (
        f"'{path}' is a pointer of Git LFS, not the file that it stands for; "
        "run `git lfs pull` in its folder, or download the model again."
    )


def explain_unsafe(path: Path) -> str:
    code = CONVERT.format(old=str(path), new=str(path.with_suffix(".safetensors")))
    return (
        f"'{path}' could run code when it is opened, so nulltext never opens it; get its "
        "safetensors version, or where you trust it, convert it with "
        f"`python -c {shlex.quote(code)}`."
    )


def _explain_text(path: Path, first: bytes) -> str | None:
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


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file; tensors stay on disk until they are asked for, one at a time."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    stream: Any

    def tensor(self, name: str) -> Tensor:
        """Read a tensor as it is stored.

        Raises:
            ModelError: it holds no floating-point numbers (a single one may be whole), or some that
                are not finite.
        """
        tensor: Tensor = self.stream.get_tensor(name)
        reason = ""
        if not tensor.is_floating_point() and tensor.numel() != 1:
            reason = f"is {tensor.dtype}, expected floating-point numbers"
        elif not bool(tensor.float().isfinite().all()):
            reason = "has NaN or infinity in it"
        if reason:
            raise ModelError(
                f"The tensor {shown(name)} of '{self.path.name}' {reason}; get the file again."
            )
        return tensor

    def json(self, name: str) -> Any:
        """Read an entry of the metadata that is JSON; None where there is none.

        Raises:
            ValueError: it is damaged, or too long.
        """
        text = self.metadata.get(name)
        if text is not None and len(text) > MAX_METADATA:
            raise ValueError(f"{name} has more than {MAX_METADATA:,} characters")
        return None if text is None else parse_json(text)


@contextmanager
def open_adapter(path: Path, option: Option) -> Iterator[TensorFile]:
    """Open a file that is added to a model, after checking that it is what the option takes.

    safetensors itself checks that no shape is larger than the bytes that are there.
    """
    from safetensors import SafetensorError, safe_open

    title = EXPECTED[option].title
    if path.suffix.lower() in UNSAFE:
        raise ModelError(
            f"The {title} '{path}' is a {path.suffix} file, which could run code when it is "
            "opened; pass a .safetensors file."
        )
    if not path_exists(path) or not path.is_file():
        reason = "is no regular file" if path_exists(path) else "does not exist"
        raise ModelError(f"The {title} '{path}' {reason}; pass a .safetensors file.")
    try:
        with safe_open(path, framework="pt") as stream:
            names = list(stream.keys())
            if max(map(len, names), default=0) > MAX_NAME:
                raise ValueError(f"a tensor's name has more than {MAX_NAME} characters")
            shapes = {name: tuple(stream.get_slice(name).get_shape()) for name in names}
            whole = option == "--vae" and kind_of_file(path) == "checkpoint"  # its own is taken
            refused = None if whole else explain_kind(path, option)
            if refused is not None:
                raise ModelError(refused)
            yield TensorFile(path, shapes, stream.metadata() or {}, stream)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"The {title} '{path}' is no safetensors file, or a truncated or damaged one "
            f"({reason_of(error)}); get it again."
        ) from error


def adapter_file(path: Path, option: Option) -> Path:
    """Find the file that a path means: itself, or in a folder the first of its usual names."""
    path, names = expand_user(path), EXPECTED[option].files
    if not path_exists(path) or not path.is_dir():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    raise ModelError(
        f"The folder '{path}' has no {' and no '.join(names)}; "
        f"pass the file of the {EXPECTED[option].title}."
    )


def split_choice(text: str) -> tuple[Path, str | None]:
    """Split FILE or FILE:VALUE into file and value; colons in the file's own name stay in it."""
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


def shown(text: str, longest: int = LONGEST_SHOWN) -> str:
    """Make a text of a file fit a message: short, and without control characters."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    return plain if len(plain) <= longest else plain[:longest] + "\u2026"

"""Read a checkpoint in diffusers format, component by component, from its folder.

Only the library classes named here are ever made: nothing in a checkpoint can choose code to run,
and only safetensors and JSON are opened.

What a config describes must be held by the files beside it: both are counted before a library opens
them or makes room for their weights, the config's module on torch's "meta" device, where tensors
take no memory, the files' by their headers. So a forged config of some bytes cannot ask for
terabytes, nor for layers without end: settings that say how many are read first, and the building
stops at more tensors than there are. An index of shards names safetensors files of its own folder
and nothing else; a config asks for no code and for no other config. What is missing, damaged or
larger than its files is refused as a ModelError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import torch

from nulltext.errors import ModelError, shorten
from nulltext.models.tensor_files import read_header
from nulltext.models.variants import SENTENCEPIECE, choose_weights, without_json
from nulltext.models.weights import MappedTensors, Unallocated, fill
from nulltext.storage.untrusted import MEGABYTE, has_byte_order_mark, read_object, read_text

MAX_JSON_BYTES = 4 * MEGABYTE
"""Of a JSON file of a checkpoint: configs have kilobytes, indices of shards a few hundred."""

LAYERS = ("layer", "depth", "repeat")
"""Parts of the names of settings that say how often something is repeated; so do long lists."""

FACTOR = "depth_coefficient"
"""Setting that multiplies how often everything is repeated (EfficientNet)."""

SLACK = 2
"""How much larger than its files a module may be: the libraries name what is missing by name."""

CODE = ("quantization_config",)
"""Settings that would bring in other libraries to unpack weights."""

ELSEWHERE = "configuration_files"
"""Setting by which transformers would read another file in a config's place."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder, with a folder for each component."""

    folder: Path
    name: str
    """What it is called in messages."""
    variant: str | None = None

    @classmethod
    def at(cls, folder: Path) -> Checkpoint:
        return cls(folder, str(folder))

    def json(self, name: str) -> dict[str, Any]:
        try:
            return read_object(self._file(name), MAX_JSON_BYTES)
        except (ValueError, OSError) as error:
            raise ModelError(
                f"{name} of the model '{self.name}' cannot be read ({first_line(error)}); "
                "get the model again."
            ) from error

    def modules(self, classes: Mapping[str, str]) -> dict[str, Any]:
        """Load components by name, each on its files' memory-mapped tensors."""
        files, modules = self._weights(classes), {}
        for part, kind in classes.items():
            with refused_as_unusable(part, self.name):
                modules[part] = build(self, part, kind, files[part])
                fill(modules[part], MappedTensors(files[part]))
        return modules

    def _weights(self, classes: Mapping[str, str]) -> dict[str, list[Path]]:
        folders = [self.folder / part for part in classes if (self.folder / part).is_dir()]
        held = [f"{folder.name}/{path.name}" for folder in folders for path in folder.iterdir()]
        chosen = choose_weights(held, classes, self.name, self.variant)
        files = {}
        for part, weights in chosen.items():
            names = weights.files
            if weights.index is not None:
                with refused_as_unusable(part, self.name):
                    names = tuple(f"{part}/{n}" for n in check_index(self.json(weights.index)))
            files[part] = [self._file(name) for name in names]
            for path in files[part]:
                read_header(path)  # says what is wrong with a file that is damaged or cut off
        return files

    def component(self, part: str, class_name: str) -> Any:
        """Load a component in float32 through transformers, as captioners' parts need it."""
        from transformers import GenerationConfig

        (files,) = self._weights({part: class_name}).values()
        with refused_as_unusable(part, self.name):
            build(self, part, class_name, files)
            kind = _library_class(class_name)
            with plain_texts(self.folder / part) as texts:
                config = kind.config_class.from_pretrained(str(texts))
            module, info = kind.from_pretrained(
                str(self.folder),
                subfolder=part,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                generation_config=GenerationConfig(),  # unused, and else read from the folder
            )
            missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
            if missing:
                raise ValueError(f"it lacks {len(missing)} weights ({missing[0]}, …)")
        return module

    def tokenizer(self, name: str, class_name: str = "CLIPTokenizer") -> Any:
        kind, folder = _library_class(class_name), self.folder / name
        if (folder / SENTENCEPIECE).is_file() and not (folder / "tokenizer.json").is_file():
            raise without_json(name, self.name)
        with refused_as_unusable(name, self.name), plain_texts(self.folder / name) as texts:
            return checked_tokenizer(kind.from_pretrained(str(texts)))

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise ModelError(
                f"The model folder '{self.name}' has no {name}; "
                "pass a complete folder written by save_pretrained()."
            )
        return path


@contextmanager
def plain_texts(folder: Path) -> Iterator[Path]:
    """Give a folder whose configs and vocabularies the libraries can read, inside the block.

    It is the folder itself, or where a text in it begins with a byte-order mark, at which they
    stop, one with copies of its texts in plain UTF-8.
    """
    texts = [*folder.glob("*.json"), *folder.glob("*.txt")]
    if not any(map(has_byte_order_mark, texts)):
        yield folder
        return
    with TemporaryDirectory() as copies:
        for path in texts:
            Path(copies, path.name).write_bytes(read_text(path, MAX_JSON_BYTES).encode())
        yield Path(copies)


def checked_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer; ValueError if it has no vocabulary, or no limit of tokens."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError("its vocabulary is empty")
    if not isinstance(tokenizer.model_max_length, int | float):
        raise ValueError("its model_max_length is no number")
    return tokenizer


def build(source: Checkpoint, part: str, class_name: str, files: Sequence[Path]) -> Any:
    """Make a component without numbers, as its config describes it.

    Of a larger model's config (CLIP's) transformers takes the part that the class is for.
    """
    config, kind = source.json(f"{part}/config.json"), _library_class(class_name)

    def make() -> torch.nn.Module:
        if hasattr(kind, "config_class"):  # transformers
            with plain_texts(source.folder / part) as texts:
                module: torch.nn.Module = kind(kind.config_class.from_pretrained(str(texts)))
        else:
            module = kind.from_config(dict(config))
        return module

    return build_checked(make, config, files)


def build_checked(
    make: Callable[[], torch.nn.Module], config: Mapping[str, Any], files: Sequence[Path]
) -> torch.nn.Module:
    """Make a module without numbers, whose files hold what its config describes."""
    check_config(config)
    module = check_weights(make, config, files)
    if any(True for _ in module.buffers()):  # some are in no file, and have to be real
        with Unallocated():
            module = make()
    return module.requires_grad_(False).eval()


def check_index(index: Mapping[str, Any]) -> list[str]:
    """List the files of an index of shards; ValueError for any but safetensors beside it."""
    table = index.get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ValueError("its index of weights names no files")
    for name in table.values():
        plain = isinstance(name, str) and PurePath(name).name == name
        if not plain or not name.endswith(".safetensors") or "\\" in name:
            raise ValueError(f"its index names {str(name)[:80]!r}, no safetensors file beside it")
    return sorted(set(table.values()))


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError where a config asks for code, or for another config in its place.

    `auto_map` is ignored, as only named classes are made.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_config(value)
        if name == ELSEWHERE:
            raise ValueError(f"its config names others in its place ({name}), which are not read")
        kernel = name.endswith("_implementation") or name.endswith("_implementation_internal")
        if name in CODE or (kernel and "/" in str(value)):
            raise ValueError(f"its config asks for code of its own ({name}), which is never run")


def check_weights(
    make: Callable[[], torch.nn.Module], config: Mapping[str, Any], files: Sequence[Path]
) -> torch.nn.Module:
    """Make the module of a config on the meta device; ValueError if it is larger than its files."""
    shapes = [shape for path in files for shape in read_header(path).shapes.values()]
    tensors, held = len(shapes), sum(map(math.prod, shapes))
    repeats = max(_repeats(config), default=0) * max(1, _repeated(config.get(FACTOR, 1)))
    if repeats > tensors:
        raise ValueError(f"its config describes {repeats:.9g} layers, its files hold {tensors:,}")
    with torch.device("meta"), Unallocated(SLACK * tensors):
        module = make()
    described = sum(parameter.numel() for parameter in module.parameters())
    if described > SLACK * held:
        raise ValueError(f"its config describes {described:,} numbers, its files hold {held:,}")
    return module


def _repeats(value: Any, name: str = "") -> Iterator[int]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _repeats(entry, str(key))
    elif isinstance(value, list):
        yield len(value)
        for entry in value:
            yield from _repeats(entry, name)
    elif isinstance(value, int | float) and name != FACTOR and any(part in name for part in LAYERS):
        yield _repeated(value)


def _repeated(value: Any) -> int:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"its config repeats something {str(value)[:80]!r} times")
    return math.ceil(value)


@contextmanager
def refused_as_unusable(part: str, name: str) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # a config may fail anywhere in the libraries
        raise ModelError(
            f"The {part} of the model '{name}' cannot be used: {first_line(error)}; "
            "get the model again."
        ) from error


def _library_class(name: str) -> Any:
    import diffusers
    import transformers

    known = {
        "UNet2DConditionModel": diffusers,
        "AutoencoderKL": diffusers,
        "SD3Transformer2DModel": diffusers,
        "FluxTransformer2DModel": diffusers,
        "CLIPTokenizer": transformers,
        "T5TokenizerFast": transformers,
        "T5EncoderModel": transformers,
        "CLIPTextModel": transformers,
        "CLIPTextModelWithProjection": transformers,
        "CLIPVisionModelWithProjection": transformers,
        "EfficientNetModel": transformers,
        "GPT2LMHeadModel": transformers,
    }
    return getattr(known[name], name)


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return shorten(lines[0].rstrip(".")) if lines else type(error).__name__


_QUIET = ExitStack()
_QUIET_LOCK, _QUIET_DEPTH = Lock(), [0]
"""How many blocks of `quiet_libraries` are open, in all threads."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own bars and advice off the terminal while weights load.

    Blocks may overlap in several threads: the first one silences, the last one restores.
    """
    with _QUIET_LOCK:
        if not _QUIET_DEPTH[0]:
            _QUIET.enter_context(_silenced())
        _QUIET_DEPTH[0] += 1
    try:
        yield
    finally:
        with _QUIET_LOCK:
            _QUIET_DEPTH[0] -= 1
            if not _QUIET_DEPTH[0]:
                _QUIET.close()


@contextmanager
def _silenced() -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [(lib, lib.get_verbosity()) for lib in (*libraries, hub_logging)]
    bars = [lib for lib in libraries if lib.is_progress_bar_enabled()]
    for lib, _ in levels:
        lib.set_verbosity_error()
    # It logs retries as errors; the exception that we raise says what came of them.
    hub_logging.set_verbosity(CRITICAL)
    for lib in bars:
        lib.disable_progress_bar()
    try:
        yield
    finally:
        for lib, level in levels:
            lib.set_verbosity(level)
        for lib in bars:
            lib.enable_progress_bar()

"""Reading a checkpoint in diffusers format, component by component, from its folder.

Only the library classes named here are ever made: nothing in a checkpoint can choose code to run,
and only safetensors and JSON are opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Protocol

import torch

from nulltext.errors import ModelError, shorten
from nulltext.models.file_kinds import read_header
from nulltext.models.variants import choose_weights
from nulltext.models.weight_files import check_config, check_index, check_weights
from nulltext.models.weights import MappedTensors, Unallocated, fill
from nulltext.storage.untrusted import MEGABYTE, has_byte_order_mark, parse_json, read_text

MAX_JSON_BYTES = 4 * MEGABYTE
"""Of a JSON file of a checkpoint: configs have kilobytes, indices of shards a few hundred."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a component in each of its folders."""

    folder: Path
    name: str
    """What it is called in messages."""
    variant: str | None = None
    """Variant of the weights that is wanted; see `variants`."""

    @classmethod
    def at(cls, folder: Path) -> Checkpoint:
        """A folder that is called by its path."""
        return cls(folder, str(folder))

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object of the checkpoint.

        Raises:
            ModelError: it is missing or damaged.
        """
        try:
            content = parse_json(read_text(self._file(name), MAX_JSON_BYTES))
        except (ValueError, OSError) as error:
            raise ModelError(
                f"{name} of the model '{self.name}' cannot be read ({first_line(error)}); "
                "get the model again."
            ) from error
        if not isinstance(content, dict):
            raise ModelError(
                f"{name} of the model '{self.name}' is no JSON object; get the model again."
            )
        return content

    def modules(self, classes: Mapping[str, str]) -> dict[str, Any]:
        """Components by name, each on its files' memory-mapped tensors.

        Args:
            classes: class of each component.

        Raises:
            ModelError: a config or a file is damaged, a weight is missing, or no safetensors.
        """
        files = self._weights(classes)
        return {part: self._module(part, kind, files[part]) for part, kind in classes.items()}

    def _module(self, part: str, class_name: str, files: list[Path]) -> Any:
        with refused_as_unusable(part, self.name):
            module = build(self, part, class_name, files)
        with refused_as_unusable(part, self.name):
            fill(module, MappedTensors(files))
        return module

    def _weights(self, classes: Mapping[str, str]) -> dict[str, list[Path]]:
        """The safetensors files of each component."""
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
        """A component in float32, loaded by its own library: for captioners' parts.

        Raises:
            ModelError: a file or a weight is missing, damaged, or no safetensors.
        """
        (files,) = self._weights({part: class_name}).values()
        with refused_as_unusable(part, self.name):
            build(self, part, class_name, files)
        from transformers import GenerationConfig

        try:
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
        except Exception as error:  # the libraries raise many kinds; the reason is in the text
            raise ModelError(
                f"The {part} of the model '{self.name}' cannot be loaded from safetensors "
                f"({first_line(error)}); get the model again, or convert it with "
                "save_pretrained(..., safe_serialization=True)."
            ) from error
        missing = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
        if missing:
            raise ModelError(
                f"The {part} of the model '{self.name}' lacks {len(missing)} weights "
                f"({missing[0]}, …); get the model again."
            )
        return module

    def tokenizer(self, name: str) -> Any:
        """A CLIP tokenizer, by its folder's name.

        Raises:
            ModelError: it cannot be loaded.
        """
        from transformers import CLIPTokenizer

        try:
            with plain_texts(self.folder / name) as texts:
                return checked_tokenizer(CLIPTokenizer.from_pretrained(str(texts)))
        except Exception as error:  # the library raises many kinds; the reason is in the text
            raise ModelError(
                f"The {name} of the model '{self.name}' cannot be loaded ({first_line(error)}); "
                "get the model again."
            ) from error

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
    """A folder whose configs and vocabularies the libraries can read, while the block runs.

    It is the folder itself; where a text in it begins with a byte-order mark, at which they stop,
    it has copies of its texts in plain UTF-8.

    Raises:
        ValueError: one of them is too large, or in another encoding.
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
    """Return the tokenizer after checking that it has a vocabulary and a limit of tokens.

    Raises:
        ValueError: it has no words, or no limit.
    """
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError("its vocabulary is empty")
    if not isinstance(tokenizer.model_max_length, int | float):
        raise ValueError("its model_max_length is no number")
    return tokenizer


class Configured(Protocol):
    """Where a component's config is."""

    @property
    def folder(self) -> Path:
        """The folder that holds a folder for each component."""
        ...

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object of that folder."""
        ...


def build(source: Configured, part: str, class_name: str, files: Sequence[Path]) -> Any:
    """A component without numbers, as its config describes it.

    Of a larger model's config (CLIP's) transformers takes the part that the class is for.

    Raises:
        ValueError: the config asks for code, or for more than the files hold; the libraries raise
            more.
    """
    config, kind = source.json(f"{part}/config.json"), _library_class(class_name)

    def make() -> torch.nn.Module:
        if hasattr(kind, "config_class"):  # transformers
            with plain_texts(source.folder / part) as texts:
                module: torch.nn.Module = kind(kind.config_class.from_pretrained(str(texts)))
        else:
            module = kind.from_config(dict(config))
        return module

    check_config(config)
    module = check_weights(make, config, files)
    if any(True for _ in module.buffers()):  # some are in no file, and have to be real
        with Unallocated():
            module = make()
    return module.requires_grad_(False).eval()


@contextmanager
def refused_as_unusable(part: str, name: str) -> Iterator[None]:
    """Turn whatever the libraries raise into one sentence about a model's component."""
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
        "CLIPTextModel": transformers,
        "CLIPTextModelWithProjection": transformers,
        "CLIPVisionModelWithProjection": transformers,
        "EfficientNetModel": transformers,
        "GPT2LMHeadModel": transformers,
    }
    return getattr(known[name], name)


def first_line(error: BaseException) -> str:
    """What an error says, without its full stop and whatever comes below."""
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

"""Reading a checkpoint in diffusers format, component by component, from a folder or the hub.

Only the library classes named here are ever made: nothing in a checkpoint can choose code to run,
and only safetensors and JSON are opened. Weights are read as float32, so that the fingerprint does
not depend on the precision that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch

from nulltext.errors import ModelError, shortened
from nulltext.models.weight_files import check_config, check_index, check_weights
from nulltext.untrusted import MEGABYTE, parse_json, read_text

MAX_JSON_BYTES = 4 * MEGABYTE
"""Of a JSON file of a checkpoint: configs have kilobytes, indices of shards a few hundred."""
UNSAFE = (".bin", ".ckpt", ".pt", ".pth")
"""Endings of files that could run code when opened, and never are."""
HUB_SECONDS, HUB_TRIES = 4.0, 2
"""How long the hub has to answer, and how often it is asked, before it counts as out of reach."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder, or a model of the hub."""

    source: Path | str
    """The folder, or the hub id."""

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object of the checkpoint.

        Raises:
            ModelError: it is missing or damaged.
        """
        try:
            content = parse_json(read_text(self._file(name), MAX_JSON_BYTES))
        except (ValueError, OSError) as error:
            raise ModelError(
                f"{name} of the model '{self.source}' cannot be read ({first_line(error)}); "
                "get the model again."
            ) from error
        if not isinstance(content, dict):
            raise ModelError(
                f"{name} of the model '{self.source}' is no JSON object; get the model again."
            )
        return content

    def component(self, name: str, class_name: str) -> Any:
        """A module with weights, by its folder's name, as the library class of this name.

        Raises:
            ModelError: a file or a weight is missing, damaged, or no safetensors.
        """
        options: dict[str, Any] = {
            "dtype": torch.float32,
            "use_safetensors": True,
            "output_loading_info": True,
        }
        if name in ("unet", "vae"):
            options["low_cpu_mem_usage"] = False  # True would need accelerate
        self._check_files(name, class_name)
        try:
            loader = _library_class(class_name)
            module, info = loader.from_pretrained(str(self.source), subfolder=name, **options)
        except Exception as error:  # the libraries raise many kinds; the reason is in the text
            raise ModelError(
                f"The {name} of the model '{self.source}' cannot be loaded from safetensors "
                f"({first_line(error)}); get the model again, or convert it with "
                "save_pretrained(..., safe_serialization=True)."
            ) from error
        missing = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
        if missing:
            raise ModelError(
                f"The {name} of the model '{self.source}' lacks {len(missing)} weights "
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
            tokenizer = CLIPTokenizer.from_pretrained(str(self.source), subfolder=name)
            if len(tokenizer) <= len(tokenizer.all_special_ids):
                raise ValueError("its vocabulary is empty")
            if not isinstance(tokenizer.model_max_length, int | float):
                raise ValueError("its model_max_length is no number")
            return tokenizer
        except Exception as error:  # the library raises many kinds; the reason is in the text
            raise ModelError(
                f"The {name} of the model '{self.source}' cannot be loaded ({first_line(error)}); "
                "get the model again."
            ) from error

    def _check_files(self, name: str, class_name: str) -> None:
        """Refuse a component before a library makes room for what its config says.

        Raises:
            ModelError: see `weight_files`.
        """
        config = self.json(f"{name}/config.json")
        stem = f"{name}/{_stem(class_name)}.safetensors"
        index = f"{stem}.index.json"
        shards = self._optional(index) is not None
        try:
            check_config(config)
            files = [f"{name}/{file}" for file in check_index(self.json(index))] if shards else []
            if not files or self._optional(stem) is not None:
                files.append(stem)
            make = partial(_untrained, class_name, config, str(self.source), name)
            check_weights(make, config, [self._weights(file) for file in files])
        except ModelError:
            raise
        except Exception as error:  # a config may fail anywhere in the libraries
            raise ModelError(
                f"The {name} of the model '{self.source}' cannot be used: {first_line(error)}; "
                "get the model again."
            ) from error

    def _weights(self, name: str) -> Path:
        """A file of weights; where there is none, says what there is instead."""
        if isinstance(self.source, Path) and not (self.source / name).is_file():
            folder = (self.source / name).parent
            others = sorted(p.name for p in folder.glob("*") if p.suffix in UNSAFE)
            if others:
                raise ModelError(
                    f"'{folder}' has its weights as {others[0]}, which could run code when it is "
                    "opened, and not as safetensors; convert the model where you trust it, with "
                    "save_pretrained(..., safe_serialization=True)."
                )
        return self._file(name)

    def _optional(self, name: str) -> Path | None:
        """A file of the checkpoint, or None where it has no such file."""
        try:
            return self._file(name)
        except ModelError:
            return None

    def _file(self, name: str) -> Path:
        """A file of the checkpoint, downloaded when it lives on the hub."""
        if isinstance(self.source, Path):
            path = self.source / name
            if not path.is_file():
                raise ModelError(
                    f"The model folder '{self.source}' has no {name}; "
                    "pass a complete folder written by save_pretrained()."
                )
            return path
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        try:
            known = try_to_load_from_cache(self.source, name)
            if known is None and self._unreachable is not None:
                raise self._unreachable
            return Path(hf_hub_download(self.source, name))
        except Exception as error:  # the hub's client raises many kinds; the reason is in the text
            raise ModelError(
                f"There is no folder '{self.source}', and {name} of the hub model '{self.source}' "
                f"cannot be had ({first_line(error)}); check the name and the connection, or pass "
                "a local folder."
            ) from error

    @cached_property
    def _unreachable(self) -> Exception | None:
        """Why the hub cannot be asked now; found out without the patience of its client, which
        tries for half a minute, but only where nothing answers at all."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError

        failure: Exception | None = None
        for _ in range(HUB_TRIES):
            try:
                get_hf_file_metadata(
                    hf_hub_url(str(self.source), "model_index.json"), timeout=HUB_SECONDS
                )
                return None
            except HfHubHTTPError:  # an answer, if not the one that is hoped for
                return None
            except Exception as error:  # of whichever library speaks HTTP
                failure = error
            if constants.HF_HUB_OFFLINE:
                break
        return failure


def _stem(class_name: str) -> str:
    """What the files of weights are called, by the library that writes them."""
    library = _library_class(class_name).__module__.split(".")[0]
    return {"diffusers": "diffusion_pytorch_model", "transformers": "model"}[library]


def _untrained(
    class_name: str, config: Mapping[str, Any], source: str, name: str
) -> torch.nn.Module:
    """A module as its config describes it; which part of a larger model's config is meant, the
    library itself says, as it will when it loads the weights."""
    kind = _library_class(class_name)
    if hasattr(kind, "config_class"):  # transformers
        module: torch.nn.Module = kind(kind.config_class.from_pretrained(source, subfolder=name))
    else:
        module = kind.from_config(dict(config))
    return module


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
    return shortened(lines[0].rstrip(".")) if lines else type(error).__name__


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own bars and advice off the terminal while weights load."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [(lib, lib.get_verbosity()) for lib in (*libraries, hub_logging)]
    bars = [lib for lib in libraries if lib.is_progress_bar_enabled()]
    for lib, _ in levels:
        lib.set_verbosity_error()
    hub_logging.set_verbosity(CRITICAL)  # its retries are errors, and ours says what came of them
    for lib in bars:
        lib.disable_progress_bar()
    try:
        yield
    finally:
        for lib, level in levels:
            lib.set_verbosity(level)
        for lib in bars:
            lib.enable_progress_bar()

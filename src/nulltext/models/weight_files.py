"""A component's files, looked at before a library opens them or makes room for their weights.

What a config describes must be held by the files beside it: both are counted first, the config's
module on torch's "meta" device, where tensors take no memory, the files' by their headers. So a
forged config of some bytes cannot ask for terabytes. An index of shards names safetensors files of
its own folder and nothing else, and a config asks for no code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch

LAYERS = ("layer", "depth")
"""Parts of the names of settings that say how often something is repeated; so do long lists."""

SLACK = 2
"""How much larger than its files a module may be: the libraries name what is missing by name."""

CODE = ("quantization_config",)
"""Settings that would bring in other libraries to unpack weights."""


def check_index(index: Mapping[str, Any]) -> list[str]:
    """The files of an index of shards.

    Raises:
        ValueError: it names something else than safetensors files beside it.
    """
    table = index.get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ValueError("its index of weights names no files")
    for name in table.values():
        plain = isinstance(name, str) and PurePath(name).name == name
        if not plain or not name.endswith(".safetensors") or "\\" in name:
            raise ValueError(f"its index names {str(name)[:80]!r}, no safetensors file beside it")
    return sorted(set(table.values()))


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a config that asks for code: `auto_map` is ignored, as only named classes are made.

    Raises:
        ValueError: it asks for attention from the hub, or for another library's weights.
    """
    for name, value in config.items():
        kernel = name.endswith("_implementation") or name.endswith("_implementation_internal")
        if name in CODE or (kernel and "/" in str(value)):
            raise ValueError(f"its config asks for code of its own ({name}), which is never run")


def check_weights(
    make: Callable[[], torch.nn.Module], config: Mapping[str, Any], files: Sequence[Path]
) -> None:
    """Refuse a config of a larger module than there are weights for.

    Args:
        make: builds the module of this config; is called where tensors take no memory.

    Raises:
        ValueError: so it is, or a file is no safetensors file.
        OSError: a file cannot be read.
    """
    from safetensors import safe_open

    held, tensors = 0, 0
    for path in files:
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 (a function of safetensors)
                held += torch.Size(stream.get_slice(name).get_shape()).numel()
                tensors += 1
    repeats = max(_repeats(config), default=0)
    if repeats > tensors:
        raise ValueError(f"its config describes {repeats:,} layers, its files hold {tensors:,}")
    with torch.device("meta"):
        described = sum(parameter.numel() for parameter in make().parameters())
    if described > SLACK * held:
        raise ValueError(f"its config describes {described:,} numbers, its files hold {held:,}")


def _repeats(value: Any, name: str = "") -> Iterator[int]:
    """All numbers of a config that say how often something is repeated."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _repeats(entry, str(key))
    elif isinstance(value, list):
        yield len(value)
        for entry in value:
            yield from _repeats(entry, name)
    elif isinstance(value, int) and any(part in name for part in LAYERS):
        yield value

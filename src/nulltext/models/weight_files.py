"""A component's files, looked at before a library opens them or makes room for their weights.

What a config describes must be held by the files beside it: both are counted first, the config's
module on torch's "meta" device, where tensors take no memory, the files' by their headers. So a
forged config of some bytes cannot ask for terabytes, nor for layers without end: settings that say
how many are read first, and the building stops at more tensors than there are. An index of shards
names safetensors files of its own folder and nothing else; a config asks for no code and for no
other config.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch

from nulltext.models.weights import Unallocated

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
        ValueError: it, or a part of it, asks for attention from the hub, for another library's
            weights, or for another config in its place.
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
    """Refuse a config of a larger module than there are weights for.

    Returns:
        the module, all of it on the meta device.

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
    """All numbers of a config that say how often something is repeated."""
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
    """A number of times, rounded up.

    Raises:
        ValueError: it is no finite number.
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"its config repeats something {str(value)[:80]!r} times")
    return math.ceil(value)

"""Where a model's parts compute, in which precision, and for how long they stay there.

A part (UNet, autoencoder, text encoder) computes where accelerate's hooks say, as a diffusers
pipeline that offloads itself has them, else where its weights are. For one call it can compute
elsewhere or in another precision: copies of its weights stand in for them inside a block, and the
very same tensors are back behind it, whatever they are (mapped files included).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nulltext.errors import ModelError

HALF = (torch.float16, torch.bfloat16)

_LOCKS: WeakKeyDictionary[torch.nn.Module, RLock] = WeakKeyDictionary()
"""One lock per part: another thread waits until the weights are back."""

_LOCKS_GUARD = Lock()


def default_dtype(device: torch.device, half: torch.dtype = torch.float16) -> torch.dtype:
    """The precision to load a model in where none is asked for.

    float32 on a CPU, where half precision is slow, and on MPS, whose half kernels nulltext has not
    been tried with; half precision on CUDA.

    Args:
        half: which one, for a family that leaves the finite numbers in float16: bfloat16.
    """
    return half if device.type == "cuda" else torch.float32


def note_on_precision(device: torch.device, dtype: torch.dtype) -> str | None:
    """A sentence for the person who chose a precision that does not fit the device."""
    if device.type == "cpu" and dtype in HALF:
        name = str(dtype).removeprefix("torch.")
        return (
            f"Note: {name} on a CPU is many times slower than float32 on most machines; "
            "pass --dtype float32 unless memory is short."
        )
    return None


def allow_tf32(device: torch.device) -> None:
    """Let float32 products on CUDA use TensorFloat-32, as torch lets its convolutions by default.

    This is torch's own switch, for the whole process: `torch.set_float32_matmul_precision("high")`.
    It is set once, where a model is put on CUDA, and only while it stands at torch's default
    ("highest"); a program that set it otherwise, or through `torch.backends`, keeps what it set.
    Products of float32 numbers then have 10 bits of mantissa, as float16's do, and sums stay
    float32. To have them exact again: `torch.set_float32_matmul_precision("highest")` behind
    `nulltext.load`.
    """
    if device.type != "cuda":
        return
    try:
        untouched = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by backend, which torch does not mix with this switch
        return
    if untouched:
        torch.set_float32_matmul_precision("high")


def use_channels_last(module: torch.nn.Module, device: torch.device) -> None:
    """Lay a convolutional network's weights out as CUDA's kernels are fastest with: channels last.

    Values and their order stay; so does the fingerprint.
    """
    if device.type == "cuda":
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def check_weights_present(parts: Mapping[str, Any], pipeline: str) -> None:
    """Refuse a pipeline whose weights cannot be read and differentiated through as they are.

    Raises:
        ModelError: a part's weights are kept elsewhere between its layers' calls, or are quantised,
            or something unknown is wrapped around a part.
    """
    for name, module in parts.items():
        if not hasattr(module, "config"):
            raise ModelError(
                f"The {name} of the {pipeline} is of class {type(module).__name__}, which has no "
                "config as the parts of diffusers have; pass a pipeline of the part itself."
            )
        if any(tensor.device.type == "meta" for tensor in module.parameters()):
            raise ModelError(
                f"The {name} of the {pipeline} has no weights in memory, as sequential offload and "
                "device maps that spill over leave it; load the pipeline without them, and pass "
                "memory='low' and offload=True where memory is short."
            )
        packed = any(not tensor.is_floating_point() for tensor in module.parameters())
        if packed or getattr(module, "hf_quantizer", None) is not None:
            raise ModelError(
                f"The {name} of the {pipeline} is quantised, and nulltext does not invert through "
                "quantised weights; load it in float16, and pass memory='low' and offload=True "
                "where memory is short."
            )


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether accelerate moves this module's weights, as in a pipeline that offloads itself."""
    return hasattr(module, "_hf_hook")


def execution_device(module: torch.nn.Module) -> torch.device:
    """Where a part computes: what accelerate's hooks say, else where its weights are."""
    if is_hooked(module):
        for each in module.modules():
            said = getattr(getattr(each, "_hf_hook", None), "execution_device", None)
            if said is not None:
                return torch.device(said)
    device: torch.device = module.device  # type: ignore[assignment]
    return device


@contextmanager
def at_work(
    module: torch.nn.Module, device: torch.device | None, dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Run the block with a part on a device and in a precision; None leaves either as it is.

    Where its weights differ, temporary copies take their place; the original tensors are restored
    afterwards. One thread at a time is in such a
    block of a part, others wait.
    """
    with _LOCKS_GUARD:
        lock = _LOCKS.setdefault(module, RLock())
    with lock:
        kept = _stand_in(module, device, dtype)
        try:
            yield
        finally:
            for slots, name, tensor in kept:
                slots[name] = tensor


def _stand_in(
    module: torch.nn.Module, device: torch.device | None, dtype: torch.dtype | None
) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Put copies in the place of all weights that are elsewhere; returns what was there."""
    kept: list[tuple[dict[str, Any], str, Tensor]] = []
    slots: dict[str, Any]
    made: dict[int, Tensor] = {}  # weights that layers share stay shared
    for layer in module.modules():
        for slots in (layer._parameters, layer._buffers):
            for name, tensor in slots.items():
                if tensor is None or _is_there(tensor, device, dtype):
                    continue
                if id(tensor) not in made:
                    number = dtype if tensor.is_floating_point() else None
                    copy = tensor.detach().to(device, number)
                    if isinstance(tensor, torch.nn.Parameter):
                        copy = torch.nn.Parameter(copy, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = copy
                kept.append((slots, name, tensor))
    for slots, name, tensor in kept:
        slots[name] = made[id(tensor)]
    return kept


def _is_there(tensor: Tensor, device: torch.device | None, dtype: torch.dtype | None) -> bool:
    if dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype:
        return False
    if device is None:
        return True
    same = device.index is None or tensor.device.index in (None, device.index)
    return tensor.device.type == device.type and same

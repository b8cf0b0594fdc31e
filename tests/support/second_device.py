"""A second device without its hardware: tensors say "pretend", kernels run on the CPU beneath.

torch lets a backend be written in Python. This one refuses what CUDA or MPS would refuse, or could
do only in other words: an operation on tensors of two devices, float64 (MPS has none), kernels that
MPS lacks, a random generator of another device. It counts how often numbers are
read back from the device, each of which makes a GPU wait.

Importing it changes torch for the whole process: `device_scenarios` runs in one of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
CPU = torch.device("cpu")
aten = torch.ops.aten

MOVES = (aten._to_copy.default, aten.copy_.default)
ABSENT = (aten.frexp.Tensor, aten._linalg_solve_ex.default)
"""No kernels for these on MPS, of all or of the oldest torch that nulltext runs with."""


class WrongDeviceError(AssertionError):
    """What the device would have refused."""


class _Module:
    """What `torch.pretend` is."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def empty_cache() -> None:
        pass

    @staticmethod
    def synchronize(*_: Any) -> None:
        pass

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass


_setup_privateuseone_for_python_backend(NAME, _Module())
DEVICE = torch.device(NAME, 0)


class Meter:
    """What happened on the device."""

    def __init__(self) -> None:
        self.reads = 0


METER = Meter()


class PretendTensor(torch.Tensor):
    """A tensor on the device; `raw` holds its numbers."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> PretendTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        made.raw = raw
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation of the device."""
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    strangers = [leaf for leaf in leaves if not isinstance(leaf, PretendTensor) and leaf.ndim]
    if strangers and func not in MOVES:
        shapes = [tuple(leaf.shape) for leaf in strangers]
        raise WrongDeviceError(f"{func}: {shapes} on the CPU among tensors of the device")
    if func in ABSENT:
        raise WrongDeviceError(f"{func}: no such kernel")
    if kwargs.get("generator") is not None:
        raise WrongDeviceError(f"{func}: a generator of the CPU")
    METER.reads += func is aten._local_scalar_dense.default
    wanted = kwargs.get("device")
    to_cpu = wanted is not None and torch.device(wanted).type == "cpu"
    to_cpu |= func is aten.copy_.default and not isinstance(args[0], PretendTensor)
    METER.reads += to_cpu
    beneath = dict(kwargs) if wanted is None else dict(kwargs, device=CPU)
    result = func(*tree_map(_raw, args), **tree_map(_raw, beneath))
    given = {id(_raw(leaf)): leaf for leaf in leaves}
    return tree_map(lambda leaf: _wrapped(leaf, func, given, to_cpu=to_cpu), result)


def _raw(leaf: Any) -> Any:
    return leaf.raw if isinstance(leaf, PretendTensor) else leaf


def _wrapped(leaf: Any, func: Any, given: dict[int, Any], *, to_cpu: bool) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if id(leaf) in given:  # in place
        return given[id(leaf)]
    if to_cpu:
        return leaf
    if leaf.dtype == torch.float64:
        raise WrongDeviceError(f"{func}: float64 on the device")
    return PretendTensor(leaf)


def _tolist(self: torch.Tensor) -> Any:
    return _TOLIST(self.detach().cpu() if isinstance(self, PretendTensor) else self)


_TOLIST, torch.Tensor.tolist = torch.Tensor.tolist, _tolist  # torch refuses it to subclasses
_EVERY = torch.library.Library("_", "IMPL")
_EVERY.fallback(lambda func, *args, **kwargs: run(func, args, kwargs), "PrivateUse1")
_OWN = torch.library.Library("aten", "IMPL")


def _register(name: str) -> None:
    packet, _, overload = name.partition(".")
    func = getattr(getattr(aten, packet), overload or "default")
    _OWN.impl(name, lambda *args, **kwargs: run(func, args, kwargs), "PrivateUse1")


# Where torch itself makes tensors of Python lists, it looks for these beside the fallback.
for _name in ("copy_", "_to_copy", "empty_strided", "empty.memory_format", "lift_fresh"):
    _register(_name)

"""Read weights tensor by tensor: memory-mapped from their files, cast one at a time.

A module is built without storage, its files' tensors are assigned to it memory-mapped and in the
precision of the file (`fill`), and each is then cast and moved (`cast_and_move`). Where the
precision is the file's, nothing is copied: the module works on the mapped file. Where it is
another, what has been cast is unmapped again part by part, so that the process never holds much
more than the weights in the precision that they are used in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MAPPED_BYTES = 256 * 2**20
"""Bytes that are read through one memory map before the file is mapped anew, so that the pages of
tensors that have been cast are given back."""

OLD_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
"""Names in autoencoders that were written before diffusers 0.15, and what they are called now."""

TIED = {"encoder.embed_tokens.weight": "shared.weight"}
"""Weights of T5 that are one and the same, of which files hold one."""

TEXT_MODEL = "text_model."
"""Prefix of text encoders' names in files, which transformers 5.6 and later leave out."""


class MappedTensors(Mapping[str, Tensor]):
    """Tensors of safetensors files by their names in the files, memory-mapped when asked for.

    Raises:
        OSError, safetensors.SafetensorError: a file cannot be read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        from safetensors import safe_open

        self._open = partial(safe_open, framework="pt")
        self._streams: dict[Path, Any] = {path: self._open(path) for path in files}
        self._places = {
            name: path
            for path, stream in self._streams.items()
            for name in stream.keys()  # noqa: SIM118 (a function of safetensors)
        }
        self._mapped = dict.fromkeys(files, 0)

    def __getitem__(self, name: str) -> Tensor:
        path = self._places[name]
        if self._mapped[path] > MAPPED_BYTES:
            self._streams[path], self._mapped[path] = self._open(path), 0
        tensor: Tensor = self._streams[path].get_tensor(name)
        self._mapped[path] += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def outline(self) -> dict[str, Tensor]:
        """Tensors of the same shapes that hold no numbers, by name; nothing is read but headers."""
        shapes = {n: self._streams[p].get_slice(n).get_shape() for n, p in self._places.items()}
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@dataclass(frozen=True)
class Renamed(Mapping[str, Tensor]):
    """Some tensors under other names."""

    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    """New name to the name in `tensors`."""

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


ALLOCATING = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
"""What parameters are made with."""

FILLING = ("uniform_", "normal_", "kaiming_uniform_")
"""What they are filled with before anything is read: of `torch.Tensor`, or of `torch.nn.init` and
of transformers in its place."""


class Unallocated(TorchFunctionMode):
    """Build modules inside the block, in this thread, whose parameters take no memory.

    Parameters are made on the meta device. `torch.arange` still allocates, since the positions that
    text encoders keep as a buffer are made of it, and no file holds them.
    """

    def __init__(self, most: int | None = None) -> None:
        """Args: most: number of tensors; ValueError at the first one beyond."""
        super().__init__()
        self._most, self._made = most, 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in FILLING:
            filled = args[0] if args else kwargs["tensor"]
            if filled.is_meta:
                return filled
        if func in ALLOCATING:
            kwargs = {**kwargs, "device": kwargs.get("device") or "meta"}
            self._made += 1
            if self._most is not None and self._made > self._most:
                raise ValueError(
                    f"its config describes more than {self._most:,} tensors, its files hold fewer"
                )
        return func(*args, **kwargs)


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Assign a file's tensors to a module, without copying.

    Args:
        tensors: by the module's names, or by older names that are known for the same weights.

    Raises:
        ValueError: a weight is missing, or has another shape than the module's.
    """
    wanted = module.state_dict()
    places = _places(wanted, tensors)
    missing = sorted(wanted.keys() - places.keys())
    if missing:
        raise ValueError(f"it lacks {len(missing)} weights ({missing[0]}, …)")
    # In the order of `cast_and_move`, so that what is mapped together is given back together.
    for name in sorted(wanted):
        found, shape = tensors[places[name]], wanted[name].shape
        if found.shape != shape:
            if found.squeeze().shape != torch.Size(n for n in shape if n != 1):
                raise ValueError(
                    f"its weight {name} is {list(found.shape)}, expected {list(shape)}"
                )
            found = found.reshape(shape)  # a linear layer that was written as a 1 x 1 convolution
        assign(module, name, found)
    for name, other in TIED.items():
        if name in wanted and places.get(name) == places.get(other):
            path, _, leaf = name.rpartition(".")
            module.get_submodule(path)._parameters[leaf] = module.get_parameter(other)


def _places(wanted: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> dict[str, str]:
    places: dict[str, str] = {}
    for key in held:
        modern = key
        for old, new in OLD_ATTENTION.items():
            modern = modern.replace(old, new)
        names = (key, modern, key.removeprefix(TEXT_MODEL), TEXT_MODEL + key)
        found = next((name for name in names if name in wanted), None)
        if found is not None:
            places.setdefault(found, key)
    for name, other in [*TIED.items(), *((other, name) for name, other in TIED.items())]:
        if name in wanted and other in places:
            places.setdefault(name, places[other])
    return places


def assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def cast_and_move(
    module: nn.Module,
    *,
    dtype: torch.dtype,
    device: torch.device,
    on_weight: Callable[[tuple[str, Tensor]], None],
) -> None:
    """Cast and move a module's weights one at a time.

    Args:
        dtype: of all floating-point weights.
        on_weight: called with each parameter's (name, tensor) as it was in the file.
    """
    own = {name for name, _ in module.named_parameters()}  # weights that are tied count once
    tied = len(own) < len(list(module.named_parameters(remove_duplicate=False)))
    moved: dict[int, nn.Parameter] = {}
    for name in sorted(module.state_dict()):
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        tensor = getattr(owner, leaf)
        if name in own:
            on_weight((name, tensor))
        if id(tensor) in moved:
            owner._parameters[leaf] = moved[id(tensor)]
            continue
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        if tensor.dtype != wanted or tensor.device != device:
            assign(module, name, tensor.detach().to(device, wanted))
            if tied and isinstance(tensor, nn.Parameter):
                moved[id(tensor)] = module.get_parameter(name)
    module.to(device)  # what no file holds

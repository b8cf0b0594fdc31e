"""Where a model's parts compute, in which precision, and in pieces that fit the memory.

A part (UNet, autoencoder, text encoder) computes where accelerate's hooks say, as a diffusers
pipeline that offloads itself has them, else where its weights are. For one call it can compute
elsewhere or in another precision: copies of its weights stand in for them inside a block, and the
very same tensors are back behind it, whatever they are (mapped files included).

The decoder's last stage is what a picture costs: three feature maps of its widest channels c at the
picture's own size, so with s bytes a number

    bytes = 3 c H W s          c = 256 in Stable Diffusion: 0.75 GiB at 512 px, 3 GiB at 1024 px

counted by `benchmarks/live_bytes.py` (3.00 decoding, 2.55 encoding). A batch that needs at
most `WHOLE_BYTES` is worked on whole, a larger one picture by picture. A single picture that needs
more by itself, and is larger than the model's own resolution, goes in overlapping tiles of that
resolution, blended over a quarter of their sides. Each tile is normalised by itself, so
tiles change a picture's colours a little: see docs/speed.md for how much.
Source: recomputation, Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, RLock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nulltext.errors import ModelError

PICTURE_MAPS = 3
"""Feature maps at the picture's size that the decoder holds at once: in, normalised, out."""

WHOLE_BYTES = 4 * 2**30
"""The most that a picture may cost to be worked on whole; 1182 x 1182 in Stable Diffusion."""

MemoryName = Literal["plenty", "low"]

_LOCKS: WeakKeyDictionary[torch.nn.Module, RLock] = WeakKeyDictionary()
"""One lock per part: another thread waits until the weights are back."""

_LOCKS_GUARD = Lock()


@dataclass(frozen=True)
class MemoryPlan:
    """How work is cut; pictures and inversions are the same under all plans, to rounding."""

    photos: int
    """Photos that are inverted side by side."""
    targets: int
    """Targets that pass the UNet together."""
    recomputes: bool
    """Whether a backward pass computes each block of the UNet again from its input."""

    @contextmanager
    def backward(self, unet: Any) -> Iterator[None]:
        """Have the UNet keep for a backward pass what the plan says, inside the block."""
        if not self.recomputes or unet.is_gradient_checkpointing:
            yield
            return
        unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            unet.disable_gradient_checkpointing()


PLANS: dict[str, MemoryPlan] = {
    "plenty": MemoryPlan(photos=8, targets=4, recomputes=False),
    "low": MemoryPlan(photos=1, targets=1, recomputes=True),
}


def default_dtype(device: torch.device) -> torch.dtype:
    """Choose the precision to load a model in where none is asked for.

    float32 on a CPU, where half precision is slow, and on MPS, whose half kernels nulltext has not
    been tried with; half precision on CUDA.
    """
    return torch.float16 if device.type == "cuda" else torch.float32


def note_on_precision(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
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
    """Refuse a pipeline whose weights cannot be read and differentiated through as they are."""
    for name, module in parts.items():
        reason = None
        if not hasattr(module, "config"):
            reason = (
                f"is of class {type(module).__name__}, which has no config as the parts of "
                "diffusers have; pass a pipeline of the part itself"
            )
        elif any(tensor.device.type == "meta" for tensor in module.parameters()):
            reason = (
                "has no weights in memory, as sequential offload and device maps that spill over "
                "leave it; load the pipeline without them, and pass memory='low' and offload=True "
                "where memory is short"
            )
        elif (
            any(not tensor.is_floating_point() for tensor in module.parameters())
            or getattr(module, "hf_quantizer", None) is not None
        ):
            reason = (
                "is quantised, and nulltext does not invert through quantised weights; load it in "
                "float16, and pass memory='low' and offload=True where memory is short"
            )
        if reason is not None:
            raise ModelError(f"The {name} of the {pipeline} {reason}.")


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether accelerate moves this module's weights, as in a pipeline that offloads itself."""
    return hasattr(module, "_hf_hook")


def execution_device(module: torch.nn.Module) -> torch.device:
    """Find where a part computes: what accelerate's hooks say, else where its weights are."""
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

    Where its weights differ, temporary copies take their place, and the original tensors are
    restored afterwards. One thread at a time is in such a block of a part, others wait.
    """
    with _LOCKS_GUARD:
        lock = _LOCKS.setdefault(module, RLock())
    with lock:
        kept = _replace_weights(module, device, dtype)
        try:
            yield
        finally:
            for slots, name, tensor in kept:
                slots[name] = tensor


def _replace_weights(
    module: torch.nn.Module, device: torch.device | None, dtype: torch.dtype | None
) -> list[tuple[dict[str, Any], str, Tensor]]:
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


def picture_bytes(vae: Any, pixels: int, itemsize: int) -> int:
    """Bytes that pictures of so many pixels in all need beside the autoencoder's weights."""
    return int(PICTURE_MAPS * max(vae.config.block_out_channels[:2]) * pixels * itemsize)


def safe_dtype(vae: Any) -> torch.dtype:
    """Choose the precision of an autoencoder: float32 where it would overflow in half.

    `force_upcast` says so in its config; one without it overflows, as `AutoencoderKL` presumes.
    """
    stored: torch.dtype = vae.dtype
    fragile = torch.finfo(stored).bits < torch.finfo(torch.float32).bits
    return torch.float32 if fragile and getattr(vae.config, "force_upcast", True) else stored


def is_tiled(vae: Any, size: tuple[int, int], own: tuple[int, int], itemsize: int) -> bool:
    """Whether a picture of `size` = (height, width) is worked on in tiles; `own`: the model's."""
    pixels = math.prod(size)
    return pixels > math.prod(own) and picture_bytes(vae, pixels, itemsize) > WHOLE_BYTES


@contextmanager
def in_pieces(vae: Any, batch: int, size: tuple[int, int], own: tuple[int, int]) -> Iterator[None]:
    """Let an autoencoder cut what is too large for it inside the block; see the module.

    What a pipeline's owner switched on stays on, with its own tiles.

    Args:
        size: (height, width) of a picture. own: of one at the model's own resolution.
    """
    itemsize = safe_dtype(vae).itemsize
    names = ("use_slicing", "use_tiling", "tile_sample_min_size", "tile_latent_min_size")
    before = {name: getattr(vae, name) for name in names}
    if batch > 1 and picture_bytes(vae, batch * math.prod(size), itemsize) > WHOLE_BYTES:
        vae.use_slicing = True
    if is_tiled(vae, size, own, itemsize) and not vae.use_tiling:
        stride = 2 ** (len(vae.config.block_out_channels) - 1)
        vae.use_tiling = True
        vae.tile_sample_min_size, vae.tile_latent_min_size = max(own), max(own) // stride
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)

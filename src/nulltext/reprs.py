"""Short texts of results, for consoles and logs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def short_repr(self: Any) -> str:
    """Describe a dataclass as its own `__repr__` would, with arrays and bytes as their sizes.

    Fields that are None are left out, and those declared with `repr=False`.
    """
    values = {one.name: getattr(self, one.name) for one in fields(self) if one.repr}
    said = [f"{name}={_short(value)}" for name, value in values.items() if value is not None]
    return f"{type(self).__name__}({', '.join(said)})"


def decibels(psnr: float) -> str:
    return "exact to the byte" if math.isinf(psnr) else f"{psnr:.2f} dB"


def _short(value: Any) -> str:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping) and any(hasattr(entry, "shape") for entry in value.values()):
        return f"<{len(value)} tensors>"
    if hasattr(value, "shape"):
        return f"{type(value).__name__}{list(value.shape)}"
    if hasattr(value, "mode") and hasattr(value, "size"):
        return f"<{value.mode} image, {value.size[0]} x {value.size[1]}>"
    if isinstance(value, float):
        return f"{value:.4g}"
    return repr(value)

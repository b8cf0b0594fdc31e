"""Refuse NaN and infinity where they first appear, so that neither reaches a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nulltext.errors import NumericalError

if TYPE_CHECKING:
    from torch import Tensor

    from nulltext.diffusion.levels import Level

ADVICE = (
    "in half precision pass --dtype float32 (or bfloat16 on a GPU); else a lower --guidance or "
    "LoRA weight, or see with `nulltext doctor` whether the weights are sound"
)


def check_finite(values: Tensor, what: str, level: Level | None = None) -> None:
    """Raise if a value is NaN or infinite.

    Args:
        values: any shape, float. what: the place, for the message.

    Raises:
        NumericalError: a value is infinite or NaN; names place and noise level.
    """
    if not bool(values.isfinite().all()):
        raise NumericalError(f"{what} produced NaN or infinity{at(level)}; {ADVICE}.")


def at(level: Level | None) -> str:
    """Name a noise level in a message."""
    return "" if level is None else f" at timestep {level.fed:g}"

"""Stopping where numbers end, so that no black picture and no NaN is ever passed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nulltext.errors import NumericalError

if TYPE_CHECKING:
    from torch import Tensor

ADVICE = (
    "in half precision pass --dtype float32 (or bfloat16 on a GPU); else a lower --guidance or "
    "LoRA weight, or see with `nulltext doctor` whether the weights are sound"
)


def check_finite(values: Tensor, what: str, timestep: int | None = None) -> None:
    """Go on only with finite numbers.

    Args:
        values: any shape, float. what: the place, for the message.

    Raises:
        NumericalError: a value is infinite or NaN; names place and timestep.
    """
    if not bool(values.isfinite().all()):
        at = "" if timestep is None else f" at timestep {timestep}"
        raise NumericalError(f"{what} left the finite numbers{at}; {ADVICE}.")

"""Figures in words."""

from __future__ import annotations

import math


def percent(share: float) -> str:
    """A share for a person: 0 % is none, and a little is not said to be none."""
    if 0 < share < 0.0005:
        return "less than 0.1 %"
    return f"{100 * share:.1f} %"


def decibels(value: float) -> str:
    if math.isinf(value):
        return "exact to the byte"
    return f"{value:.2f} dB"

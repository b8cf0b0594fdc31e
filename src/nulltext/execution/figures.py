"""Figures in words."""

from __future__ import annotations

import math


def decibels(value: float) -> str:
    """A PSNR for a person."""
    if math.isinf(value):
        return "exact to the byte"
    return f"{value:.2f} dB"

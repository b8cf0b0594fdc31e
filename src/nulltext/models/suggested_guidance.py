"""How strongly words should steer a model's edits, kept beside its weights.

Models differ in how much guidance they bear: what Stable Diffusion takes at w = 7.5 is garish in
one that hears its words more clearly. So `guidance.json` suggests a scale for targets, under the
fingerprint of the weights that it was found for:

    {"version": 1, "fingerprint": "…", "target": 2.5}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nulltext.models.beside import read_beside, write_beside

FILE, VERSION = "guidance.json", 1

MOST = 100.0
"""Nobody means more."""


def suggested(own: float | None, inversion: float) -> float:
    """The scale of targets that were given none: the model's own, the inversion's if lower."""
    return inversion if own is None else min(own, inversion)


def write_guidance(target: float, fingerprint: str, folder: Path) -> Path | None:
    """Keep a suggestion beside the weights of this fingerprint; returns the file, None for 0, which
    suggests nothing.

    Raises:
        OutputError: it cannot be written.
    """
    if target == 0:
        return None
    return write_beside(folder / FILE, VERSION, fingerprint, {"target": target})


def read_guidance(folder: Path, fingerprint: str) -> float | None:
    """What is suggested for weights of this fingerprint; None where nothing was, or for others.

    Raises:
        ModelError: the file is damaged, or of another version.
    """

    def parse(content: Mapping[str, Any]) -> float | None:
        target = content["target"]
        if isinstance(target, bool) or not isinstance(target, int | float):
            raise ValueError("its target is no number")
        if not 0 < target <= MOST:
            raise ValueError(f"its target is not above 0 and at most {MOST:g}")
        return float(target) if content["fingerprint"] == fingerprint else None

    return read_beside(folder / FILE, VERSION, parse)

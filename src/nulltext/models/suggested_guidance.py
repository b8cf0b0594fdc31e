"""How strongly words should steer with a model, kept beside its weights.

Models differ in how much guidance they bear: what Stable Diffusion takes at w = 7.5 is garish in
one that hears its words more clearly. So `guidance.json` suggests a guidance scale, under the
fingerprint of the weights that it was found for; it is the default of inversions and of edits:

    {"version": 1, "fingerprint": "…", "scale": 3.0}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nulltext.models.beside import read_beside, write_beside

FILE, VERSION = "guidance.json", 1

LEAST, MOST = 1.0, 100.0
"""At 1 there is no guidance, which null-text inversion cannot do without; nobody means more."""


def write_guidance(scale: float, fingerprint: str, folder: Path) -> Path | None:
    """Keep a suggestion beside the weights of this fingerprint; returns the file, None for 0, which
    suggests nothing.

    Raises:
        OutputError: it cannot be written.
    """
    if scale == 0:
        return None
    return write_beside(folder / FILE, VERSION, fingerprint, {"scale": scale})


def read_guidance(folder: Path, fingerprints: Sequence[str]) -> float | None:
    """What is suggested for weights of one of these fingerprints; None where nothing was, or for
    others.

    Raises:
        ModelError: the file is damaged, or of another version.
    """

    def parse(content: Mapping[str, Any]) -> float | None:
        scale = content["scale"]
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise ValueError("its scale is no number")
        if not LEAST < scale <= MOST:
            raise ValueError(f"its scale is not above {LEAST:g} and at most {MOST:g}")
        return float(scale) if content["fingerprint"] in fingerprints else None

    return read_beside(folder / FILE, VERSION, parse)

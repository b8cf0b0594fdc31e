"""Defaults that the library and the command line share; imports nothing of ours."""

from typing import Literal

MODEL = "flowers"
"""The bundled model."""

CAPTIONER = "flowers"
"""The bundled captioner."""

METHOD = "null-text-secant"
"""Of the default budget."""

NUM_STEPS = 50
"""T of both papers."""

BUDGET = "balanced"
"""Of null-text; docs/speed.md and docs/editing.md have the measurements behind the choice."""

GUIDANCE_SCALE = 7.5
"""w of both papers."""

SEED = 0
"""Where all chance comes from."""

DETAIL: Literal["auto"] = "auto"
"""What of the photo's fine detail is put back over an edit."""

CROSS_STEPS = 0.8
"""Fraction of the steps in which Prompt-to-Prompt injects cross-attention."""

SELF_STEPS = 0.4
"""Fraction of the steps in which Prompt-to-Prompt injects self-attention."""

BLEND_THRESHOLD = 0.3
"""Part of a word map's maximum above which local blend lets the picture change."""

MASA_START = 0.08
"""Fraction of the steps before MasaCtrl begins: step 4 of 50."""

MASA_LAYER = 0.625
"""Share of the self-attention layers before MasaCtrl begins: layer 10 of 16."""

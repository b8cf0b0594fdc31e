"""Version, default values and names of options that the library and the command line share.

A test compares each list of names with the registry that implements it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from nulltext.plugins import EDITORS_GROUP, METHODS_GROUP, members_of

__version__ = "0.1.0"

PivotName = Literal["ddim", "fixed-point", "midpoint"]
"""How the trajectory is walked that a replay follows."""
Precision = Literal["float32", "float16", "bfloat16"]
Alignment = Literal["auto", "replace", "refine"]
Detail = Literal["auto", "photo", "luminance", "model"]
SourceBranch = Literal["replay", "exact"]
Region = Literal["auto", "words", "everywhere"]
"""How it is found where an edit shows, unless a mask or a blend says so."""

Hue = Literal["named", "model"]
"""Whose hue an edit to another colour has: the word's, or what the model drew."""

MODEL = "flowers"
"""Name of the bundled model."""
CAPTIONER = "flowers"
"""Name of the bundled captioner."""
AUTO = "auto"
"""Stands for a source prompt that the captioner is to write."""
METHOD = "fixed-point"
"""Method of the default budget."""
NUM_STEPS = 50
"""T in both papers."""
BUDGET = "balanced"
"""Budget; docs/speed.md and docs/editing.md have the measurements behind the choice."""
TRUE_CFG = {"kind": "guidance", "name": "true-cfg"}
"""Stands among a model's adapters where it is guided by a null branch that is not its own."""

GUIDANCE_SCALE = 7.5
"""w in both papers."""
SEED = 0
DETAIL: Detail = "auto"
"""How much of the photo's fine detail an edit keeps."""
REGION: Region = "auto"
HUE: Hue = "named"
CROSS_STEPS = 0.8
"""Fraction of the steps in which Prompt-to-Prompt injects cross-attention."""
SELF_STEPS = 0.4
"""Fraction of the steps in which Prompt-to-Prompt injects self-attention."""
BLEND_START = 0.8
"""Fraction of the steps before local blend begins; docs/editing.md has the measurement."""
BLEND_THRESHOLD = 0.3
"""Fraction of a word map's maximum above which local blend lets the picture change."""
MASA_START = 0.08
"""Fraction of the steps before MasaCtrl begins: step 4 of 50."""
MASA_LAYER = 0.625
"""Fraction of the self-attention layers before MasaCtrl begins: layer 10 of 16."""

N_AVG = 1
"""Draws of noise that each step of FlowEdit is averaged over."""
ETA, ETA_STOP = 0.9, 0.25
"""Share of RF-Inversion's controller, and the fraction of the steps it lasts: 7 of 28."""
UNI_ALPHA, UNI_OMEGA = 0.6, 5.0
"""Fraction of the steps that UniEdit-Flow edits, and how far beyond the target."""


class Method(StrEnum):
    """Names of the inversion methods: built in, then those of installed packages."""

    FIXED_POINT = "fixed-point"
    NULL_TEXT = "null-text"
    DDIM = "ddim"
    DIRECT = "direct"
    NEGATIVE_PROMPT = "negative-prompt"
    RANDOM_PIVOT = "random-pivot"
    GLOBAL_NULL = "global-null"
    NULL_TEXT_NO_PIVOT = "null-text-no-pivot"
    TEXTUAL = "textual"
    TEXTUAL_PIVOT = "textual-pivot"
    TEXTUAL_PIVOT_SHARED = "textual-pivot-shared"
    MODEL_TUNING = "model-tuning"
    RF_INVERSION = "rf-inversion"
    RF_SOLVER = "rf-solver"
    FIREFLOW = "fireflow"
    UNI_INV = "uni-inv"
    ENCODE = "encode"
    locals().update(members_of(METHODS_GROUP))  # a class's namespace, which may be written to


class Budget(StrEnum):
    """Names of the budgets."""

    FAST = "fast"
    BALANCED = "balanced"
    PAPER = "paper"


class EditorName(StrEnum):
    """Names of the editors: built in, then those of installed packages."""

    PROMPT_TO_PROMPT = "prompt-to-prompt"
    MASACTRL = "masactrl"
    FLOWEDIT = "flowedit"
    RF_INVERSION = "rf-inversion"
    UNIEDIT = "uniedit"
    locals().update(members_of(EDITORS_GROUP))

"""Names that people choose from, on the command line and in job files; imports nothing heavy.

A test keeps each list equal to the registry that it speaks of.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class Method(StrEnum):
    """Names of the inversion methods."""

    NULL_TEXT = "null-text"
    NULL_TEXT_SECANT = "null-text-secant"
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


class Budget(StrEnum):
    """Names of the null-text budgets."""

    FAST = "fast"
    BALANCED = "balanced"
    PAPER = "paper"


class EditorName(StrEnum):
    """Names of the editors."""

    PROMPT_TO_PROMPT = "prompt-to-prompt"
    MASACTRL = "masactrl"


NullStart = Literal["empty", "prompt"]
"""At which embedding the null embeddings begin."""
Precision = Literal["float32", "float16", "bfloat16"]
Align = Literal["auto", "replace", "refine"]
Detail = Literal["auto", "photo", "luminance", "model"]
SourceBranch = Literal["replay", "exact"]

AUTO = "auto"
"""In place of a source prompt: let the captioner find the words."""

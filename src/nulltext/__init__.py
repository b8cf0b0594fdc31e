"""Edit a real photograph by changing the words that describe it.

    import nulltext

    model = nulltext.load()
    inversion = nulltext.invert(model, "dahlia.jpg", "a photo of an orange flower")
    edit = nulltext.edit(model, inversion, "a photo of a white daisy")
    nulltext.to_pil(edit.images[0]).save("daisy.png")

What most programs need is here, and listed in `__init__.pyi`; the rest is in the packages
(`nulltext.inversion`, `nulltext.editing`, …). Importing them is cheap: torch and the model
libraries are imported at first use.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import lazy_loader

PACKAGES = (
    "attention",
    "captioning",
    "diffusion",
    "editing",
    "evaluation",
    "image",
    "integrations",
    "inversion",
    "models",
    "training",
)
"""Packages with public names of their own."""

_lazy_attribute, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = [name for name in _names if name not in PACKAGES]

_MOVED = {
    "captioning": ("Captioner",),
    "diffusion": ("run",),
    "editing": (
        "Editor",
        "PromptMaps",
        "Steering",
        "WordMap",
        "at_strength",
        "edit_steps",
        "heat_map_steps",
    ),
    "image": ("Photo", "psnr"),
    "inversion": (
        "Budget",
        "DDIM",
        "Direct",
        "GlobalNull",
        "InversionHeader",
        "ModelTuning",
        "NegativePrompt",
        "NullText",
        "NullTextNoPivot",
        "RandomPivot",
        "Textual",
        "TextualPivot",
        "TextualPivotShared",
        "budget_named",
        "exact_source_step",
        "invert_steps",
        "replay_steps",
        "source_step",
    ),
}
"""Names that left `nulltext`, by the package that has them; they stay for one version."""


def __getattr__(name: str) -> Any:
    if name in _names:
        return _lazy_attribute(name)
    for package, names in _MOVED.items():
        if name in names:
            warnings.warn(
                f"nulltext.{name} has moved: use nulltext.{package}.{name}. The old name goes in "
                "the next version.",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(importlib.import_module(f"nulltext.{package}"), name)
    raise AttributeError(f"module 'nulltext' has no attribute {name!r}")

"""Edit a real photograph by changing the words that describe it.

    import nulltext

    model = nulltext.load()
    inversion = nulltext.invert(model, "dahlia.jpg", "a photo of an orange flower")
    edit = nulltext.edit(model, inversion, "a photo of a white daisy")
    nulltext.to_pil(edit.images[0]).save("daisy.png")

Importing this module is cheap; torch and the model libraries are imported at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nulltext.version import __version__

if TYPE_CHECKING:
    from nulltext.attention.blend import LocalBlend
    from nulltext.captioning.captioner import Captioner
    from nulltext.captioning.folder import load_captioner
    from nulltext.diffusion.loops import StepInfo, run
    from nulltext.editing.editors import Editor, MasaCtrl, PromptToPrompt
    from nulltext.editing.heatmaps import PromptMaps, WordMap, heat_map_steps
    from nulltext.editing.loop import Edit, edit, edit_steps
    from nulltext.editing.regions import mask_for
    from nulltext.editing.spec import EditSpec, chain
    from nulltext.editing.strength import Steering, at_strength
    from nulltext.errors import NulltextError, UserError
    from nulltext.image.compositing import composite, region_of_change
    from nulltext.image.images import CropBox, psnr, to_pil
    from nulltext.image.photos import Photo, load_photo
    from nulltext.inversion.ablations import (
        GlobalNull,
        NullTextNoPivot,
        RandomPivot,
        Textual,
        TextualPivot,
        TextualPivotShared,
    )
    from nulltext.inversion.budgets import Budget, budget_named
    from nulltext.inversion.ddim import DDIM
    from nulltext.inversion.direct import Direct
    from nulltext.inversion.header import InversionHeader
    from nulltext.inversion.invert import invert, invert_steps
    from nulltext.inversion.model_tuning import ModelTuning
    from nulltext.inversion.negative_prompt import NegativePrompt
    from nulltext.inversion.null_text import NullText
    from nulltext.inversion.record import Inversion
    from nulltext.inversion.replay import (
        Replay,
        exact_source_step,
        replay,
        replay_steps,
        source_step,
    )
    from nulltext.inversion.secant import SecantNullText
    from nulltext.models.latent_diffusion import LatentDiffusion
    from nulltext.models.load import from_pipe, load

_HOMES = {
    "Budget": "inversion.budgets",
    "Captioner": "captioning.captioner",
    "CropBox": "image.images",
    "DDIM": "inversion.ddim",
    "Direct": "inversion.direct",
    "Edit": "editing.loop",
    "EditSpec": "editing.spec",
    "Editor": "editing.editors",
    "GlobalNull": "inversion.ablations",
    "Inversion": "inversion.record",
    "InversionHeader": "inversion.header",
    "LatentDiffusion": "models.latent_diffusion",
    "LocalBlend": "attention.blend",
    "MasaCtrl": "editing.editors",
    "ModelTuning": "inversion.model_tuning",
    "NegativePrompt": "inversion.negative_prompt",
    "NullText": "inversion.null_text",
    "NullTextNoPivot": "inversion.ablations",
    "NulltextError": "errors",
    "Photo": "image.photos",
    "PromptMaps": "editing.heatmaps",
    "PromptToPrompt": "editing.editors",
    "RandomPivot": "inversion.ablations",
    "Replay": "inversion.replay",
    "SecantNullText": "inversion.secant",
    "Steering": "editing.strength",
    "StepInfo": "diffusion.loops",
    "Textual": "inversion.ablations",
    "TextualPivot": "inversion.ablations",
    "TextualPivotShared": "inversion.ablations",
    "UserError": "errors",
    "WordMap": "editing.heatmaps",
    "at_strength": "editing.strength",
    "budget_named": "inversion.budgets",
    "chain": "editing.spec",
    "composite": "image.compositing",
    "edit": "editing.loop",
    "edit_steps": "editing.loop",
    "exact_source_step": "inversion.replay",
    "from_pipe": "models.load",
    "heat_map_steps": "editing.heatmaps",
    "invert": "inversion.invert",
    "invert_steps": "inversion.invert",
    "load": "models.load",
    "load_captioner": "captioning.folder",
    "load_photo": "image.photos",
    "mask_for": "editing.regions",
    "psnr": "image.images",
    "region_of_change": "image.compositing",
    "replay": "inversion.replay",
    "replay_steps": "inversion.replay",
    "run": "diffusion.loops",
    "source_step": "inversion.replay",
    "to_pil": "image.images",
}

__all__ = [
    "DDIM",
    "Budget",
    "Captioner",
    "CropBox",
    "Direct",
    "Edit",
    "EditSpec",
    "Editor",
    "GlobalNull",
    "Inversion",
    "InversionHeader",
    "LatentDiffusion",
    "LocalBlend",
    "MasaCtrl",
    "ModelTuning",
    "NegativePrompt",
    "NullText",
    "NullTextNoPivot",
    "NulltextError",
    "Photo",
    "PromptMaps",
    "PromptToPrompt",
    "RandomPivot",
    "Replay",
    "SecantNullText",
    "Steering",
    "StepInfo",
    "Textual",
    "TextualPivot",
    "TextualPivotShared",
    "UserError",
    "WordMap",
    "__version__",
    "at_strength",
    "budget_named",
    "chain",
    "composite",
    "edit",
    "edit_steps",
    "exact_source_step",
    "from_pipe",
    "heat_map_steps",
    "invert",
    "invert_steps",
    "load",
    "load_captioner",
    "load_photo",
    "mask_for",
    "psnr",
    "region_of_change",
    "replay",
    "replay_steps",
    "run",
    "source_step",
    "to_pil",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nulltext' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"nulltext.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)

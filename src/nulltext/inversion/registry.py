"""The registry of inversion methods."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from nulltext.errors import OptionError
from nulltext.inversion.ablations import (
    GlobalNull,
    NullTextNoPivot,
    RandomPivot,
    Textual,
    TextualPivot,
    TextualPivotShared,
)
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.ddim import DDIM
from nulltext.inversion.direct import Direct
from nulltext.inversion.encode import Encode
from nulltext.inversion.fireflow import FireFlow
from nulltext.inversion.fixed_point import FixedPoint
from nulltext.inversion.model_tuning import ModelTuning
from nulltext.inversion.negative_prompt import NegativePrompt
from nulltext.inversion.null_text import NullText
from nulltext.inversion.rf_inversion import RFInversion
from nulltext.inversion.rf_solver import RFSolver
from nulltext.inversion.uni_inv import UniInv
from nulltext.plugins import METHODS_GROUP, Registry

METHODS: Registry[InversionMethod] = Registry(
    "inversion method",
    METHODS_GROUP,
    [
        FixedPoint,
        NullText,
        DDIM,
        Direct,
        NegativePrompt,
        RandomPivot,
        GlobalNull,
        NullTextNoPivot,
        Textual,
        TextualPivot,
        TextualPivotShared,
        ModelTuning,
        RFInversion,
        RFSolver,
        FireFlow,
        UniInv,
        Encode,
    ],
    required=("differentiates", "draws", "check", "steps"),
)
"""The inversion methods by name."""

register_method = METHODS.register

REPLACED = {"null-text-secant": FixedPoint.name}
"""Methods of earlier versions, and those that do their work now."""


def method_named(name: str) -> InversionMethod:
    """A method with its default options.

    Raises:
        OptionError: there is none of that name.
    """
    if name in REPLACED:
        raise OptionError(
            f"There is no inversion method '{name}' any more; {REPLACED[name]} is in its place."
        )
    if name not in METHODS:
        raise OptionError(f"There is no inversion method '{name}'; choose {', '.join(METHODS)}.")
    return METHODS[name]()


def with_options(method: InversionMethod, **options: Any) -> InversionMethod:
    """A method with some of its options changed.

    Raises:
        OptionError: it has no option of that name, or refuses the value.
    """
    own = {field.name for field in fields(method)}  # type: ignore[arg-type]
    for name in options:
        if name not in own:
            raise OptionError(
                f"--{name.replace('_', '-')} is not an option of the method {method.name}; leave "
                "it out, or choose another --method."
            )
    return replace(method, **options)  # type: ignore[type-var]

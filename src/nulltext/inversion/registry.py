"""The one place where a method's name becomes a method."""

from __future__ import annotations

from collections.abc import Callable
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
from nulltext.inversion.model_tuning import ModelTuning
from nulltext.inversion.negative_prompt import NegativePrompt
from nulltext.inversion.null_text import NullText
from nulltext.inversion.secant import SecantNullText

METHODS: dict[str, Callable[[], InversionMethod]] = {
    DDIM.name: DDIM,
    NullText.name: NullText,
    SecantNullText.name: SecantNullText,
    Direct.name: Direct,
    NegativePrompt.name: NegativePrompt,
    RandomPivot.name: RandomPivot,
    GlobalNull.name: GlobalNull,
    NullTextNoPivot.name: NullTextNoPivot,
    Textual.name: Textual,
    TextualPivot.name: TextualPivot,
    TextualPivotShared.name: TextualPivotShared,
    ModelTuning.name: ModelTuning,
}


def method_named(name: str) -> InversionMethod:
    """A method with its default options.

    Raises:
        OptionError: there is none of that name.
    """
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

"""The one place where a method's name becomes a method."""

from __future__ import annotations

from collections.abc import Callable

from nulltext.errors import OptionError
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.ddim import DDIM
from nulltext.inversion.direct import Direct
from nulltext.inversion.negative_prompt import NegativePrompt
from nulltext.inversion.null_text import NullText

METHODS: dict[str, Callable[[], InversionMethod]] = {
    DDIM.name: DDIM,
    NullText.name: NullText,
    Direct.name: Direct,
    NegativePrompt.name: NegativePrompt,
}


def method_named(name: str) -> InversionMethod:
    """A method with its default options.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in METHODS:
        raise OptionError(f"There is no inversion method '{name}'; choose {', '.join(METHODS)}.")
    return METHODS[name]()

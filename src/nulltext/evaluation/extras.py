"""Optional libraries, asked for by the name of the extra that brings them."""

from __future__ import annotations

import importlib
from types import ModuleType

from nulltext.errors import ExtraError


def require(module: str, extra: str, what_for: str) -> ModuleType:
    """Import an optional library.

    Raises:
        ExtraError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtraError(
            f"{what_for} needs {module.partition('.')[0]}, which is not installed: "
            f"pip install 'nulltext[{extra}]'."
        ) from error

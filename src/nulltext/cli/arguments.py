"""Names of files, several from one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nulltext.errors import OptionError

Value = TypeVar("Value")


def numbered(path: Path, count: int) -> list[Path]:
    """`count` file names: the path itself, or path-1, path-2 … where there are several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(count)]


def listed(text: str, option: str, kind: Callable[[str], Value]) -> list[Value]:
    """Read "a,b,c".

    Raises:
        OptionError: it is empty, or a part is of another kind.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        values = [kind(part) for part in parts]
    except ValueError:
        values = []
    if not values:
        raise OptionError(f"--{option} '{text}' is no list such as a,b or 1,3,10.")
    return values

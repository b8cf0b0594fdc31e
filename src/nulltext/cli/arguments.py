"""Names of files, several from one."""

from __future__ import annotations

from pathlib import Path


def numbered(path: Path, count: int) -> list[Path]:
    """`count` file names: the path itself, or path-1, path-2 … where there are several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(count)]

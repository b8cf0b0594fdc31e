"""Rows of a benchmark: kept in a file of JSON lines, so that a rerun makes only missing ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def signed(decibels: float) -> str:
    """Format a distance in decibels for a table: +0.12, -0.12 or, where it rounds to that, 0.00."""
    text = f"{decibels:+.2f}"
    return text[1:] if float(text) == 0 else text


class KeptRows:
    """The rows of earlier runs and of this one."""

    def __init__(self, path: Path) -> None:
        """Read the rows of earlier runs, if there are any."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.path = path
        self.by_key: dict[str, Row] = {row["key"]: row for row in map(json.loads, lines)}

    def get(self, key: str, measure: Callable[[], Row]) -> Row:
        """Return the row of this key, measured and appended to the file if it is missing."""
        if key not in self.by_key:
            row = self.by_key[key] = {"key": key, **measure()}
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        return self.by_key[key]

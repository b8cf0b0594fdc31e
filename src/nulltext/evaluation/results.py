"""The folder of a study or a benchmark: rows that survive a kill, and what is made of them.

    settings.json     what every row was made with
    results.jsonl     one row per line: experiment, image, variant, setting, figures, cost
    pictures/         what the rows show
    summary.csv, *.png, *.svg, report.html     made from the rows, again and again

How rows are kept is in `ledger`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from nulltext.evaluation.tasks import Key, row_key
from nulltext.jobs import ledger
from nulltext.jobs.ledger import ROWS as ROWS
from nulltext.jobs.ledger import SETTINGS as SETTINGS
from nulltext.jobs.ledger import Book as Book
from nulltext.jobs.ledger import Row as Row

PICTURES = "pictures"


def key_of(row: Row) -> Key:
    """Which task a row is of."""
    return row_key(row["experiment"], row["image"], row["variant"], row["setting"])


def failed_among(rows: Iterable[Row], keys: Iterable[Key]) -> list[Row]:
    """The failed ones of the rows that were asked for."""
    asked = set(keys)
    return [row for row in rows if row["status"] == "failed" and key_of(row) in asked]


STUDY = ledger.Kind("study or benchmark", key_of, (PICTURES,))


def open_book(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    fresh: bool,
    older: Sequence[Mapping[str, Any]] = (),
) -> AbstractContextManager[Book]:
    """`ledger.open_book` of a study's or a benchmark's folder."""
    return ledger.open_book(STUDY, folder, settings, fresh=fresh, older=older)


def done_already(
    folder: Path,
    settings: Mapping[str, Any],
    older: Sequence[Mapping[str, Any]],
    *,
    fresh: bool,
    retry_failed: bool,
) -> set[Key]:
    """The rows that a run would find there and not make again; changes nothing."""
    rows = [] if fresh else ledger.rows_alike(STUDY, folder, settings, older)
    return {key_of(row) for row in rows if not (retry_failed and row["status"] == "failed")}


def read_book(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """`ledger.read_book` of such a folder."""
    return ledger.read_book(STUDY, folder)


def finite(value: float) -> float:
    """A figure that JSON can hold."""
    assert math.isfinite(value), value
    return value

"""From rows to a table: for each experiment, variant and setting, every figure over the photos."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nulltext.evaluation.bootstrap import Summary, summarise
from nulltext.evaluation.measures import Figure, Undefined
from nulltext.evaluation.plan import EXPERIMENTS
from nulltext.evaluation.results import Row
from nulltext.evaluation.variants import LINES

COLUMNS = (
    *("experiment", "variant", "setting", "figure"),
    *("n", "mean", "low", "high", "undefined", "failed", "reasons"),
)


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    experiment: str
    variant: str
    setting: dict[str, Any]
    figures: dict[str, Summary]
    """Cost included: "iterations", "unet_evaluations", "seconds"."""
    failed: Counter[str] = field(default_factory=Counter)
    """Rows that failed, by reason."""


def lines_of(rows: Sequence[Row], seed: int = 0) -> list[Line]:
    """Group rows; in the order of experiments, variants and settings."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        setting = json.dumps(row["setting"], sort_keys=True)
        groups.setdefault((row["experiment"], row["variant"], setting), []).append(row)
    return [line_of(group, seed) for group in sorted(groups.values(), key=_rank)]


def csv_of(lines: Sequence[Line]) -> str:
    """The summary as CSV, one line per figure."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines:
        where = (line.experiment, line.variant, said(line.setting))
        failed = sum(line.failed.values())
        for name, summary in (line.figures or {"": Summary(0, None, None, None)}).items():
            reasons = summary.undefined + line.failed
            writer.writerow(
                [
                    *where,
                    name,
                    summary.n,
                    *(_number(v) for v in (summary.mean, summary.low, summary.high)),
                    sum(summary.undefined.values()),
                    failed,
                    "; ".join(f"{count} x {reason}" for reason, count in reasons.items()),
                ]
            )
    return stream.getvalue()


def said(setting: dict[str, Any]) -> str:
    """A setting in words."""
    return ", ".join(f"{key} = {value}" for key, value in setting.items())


def _rank(group: Sequence[Row]) -> tuple[int, int, tuple[float, ...]]:
    """Experiments and variants in their order, numbers ascending, words as they came."""
    row = group[0]
    numbers = tuple(float(v) for v in row["setting"].values() if isinstance(v, int | float))
    return list(EXPERIMENTS).index(row["experiment"]), LINES.index(row["variant"]), numbers


def line_of(rows: Sequence[Row], seed: int) -> Line:
    """The line of rows that have experiment, variant and setting in common."""
    first = rows[0]
    collected: dict[str, list[Figure]] = {}
    failed: Counter[str] = Counter()
    for row in rows:
        if row["status"] == "failed":
            failed[row["reason"]] += 1
            continue
        for name, value in {**row["figures"], **row.get("cost", {})}.items():
            figure = Undefined(row["undefined"][name]) if value is None else value
            collected.setdefault(name, []).append(figure)
    return Line(
        experiment=first["experiment"],
        variant=first["variant"],
        setting=dict(first["setting"]),
        figures={name: summarise(figures, seed) for name, figures in collected.items()},
        failed=failed,
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"

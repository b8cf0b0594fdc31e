"""The table of a study: for each experiment, variant and setting, every metric over the photos.

    interval = 2.5% and 97.5% quantiles of the means of B resamples with replacement

Resampling draws photos, the unit that varies; the draws are seeded, so a summary is reproducible.
Source: Efron & Tibshirani 1993, ch. 13 (percentile interval).
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from nulltext.evaluation.metrics import MetricValue, Undefined
from nulltext.evaluation.plan import EXPERIMENTS, variant_order
from nulltext.jobs.ledger import Row

RESAMPLES = 10_000
CONFIDENCE = 0.95

COLUMNS = (
    "experiment",
    "variant",
    "setting",
    "figure",
    "n",
    "mean",
    "low",
    "high",
    "undefined",
    "failed",
    "reasons",
)

T = TypeVar("T")
KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True)
class Summary:
    """Mean and interval of a metric over many photos."""

    n: int = 0
    """Photos for which it is defined."""
    mean: float | None = None
    """None where n is 0."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95% interval; None where n is below 2."""
    undefined: Counter[str] = field(default_factory=Counter)
    """How often it was undefined, by reason."""


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    experiment: str
    variant: str
    setting: dict[str, Any]
    figures: dict[str, Summary]
    """By metric, with the cost: "iterations", "unet_evaluations", "seconds"."""
    failed: Counter[str] = field(default_factory=Counter)


def summarise(values: Sequence[MetricValue], seed: int = 0) -> Summary:
    defined = np.array([v for v in values if not isinstance(v, Undefined)], dtype=np.float64)
    undefined = Counter(v.reason for v in values if isinstance(v, Undefined))
    n = len(defined)
    if n == 0:
        return Summary(undefined=undefined)
    mean = float(defined.mean())
    if n == 1:
        return Summary(1, mean, undefined=undefined)
    draw = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined[draw].mean(axis=1), [tail, 1 - tail])
    return Summary(n, mean, float(low), float(high), undefined)


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """Summarise rows by experiment, variant and setting, in table order.

    Settings are sorted by their numbers; texts stay in the order of the rows.
    """

    def rank(row: Row) -> tuple[int, int, tuple[float, ...]]:
        experiment, variant = row["experiment"], row["variant"]
        numbers = tuple(float(v) for v in row["setting"].values() if isinstance(v, int | float))
        return list(EXPERIMENTS).index(experiment), variant_order(variant), numbers

    groups = grouped(
        sorted(rows, key=rank),
        lambda row: (row["experiment"], row["variant"], json.dumps(row["setting"], sort_keys=True)),
    )
    return [line_of(group) for group in groups.values()]


def line_of(rows: Sequence[Row]) -> Line:
    collected: dict[str, list[MetricValue]] = {}
    failed: Counter[str] = Counter()
    for row in rows:
        if row["status"] == "failed":
            failed[row["reason"]] += 1
            continue
        for name, value in {**row["figures"], **row.get("cost", {})}.items():
            known = Undefined(row["undefined"][name]) if value is None else value
            collected.setdefault(name, []).append(known)
    return Line(
        experiment=rows[0]["experiment"],
        variant=rows[0]["variant"],
        setting=dict(rows[0]["setting"]),
        figures={name: summarise(values) for name, values in collected.items()},
        failed=failed,
    )


def grouped(items: Iterable[T], key: Callable[[T], KeyT]) -> dict[KeyT, list[T]]:
    groups: dict[KeyT, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def to_csv(lines: Sequence[Line]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines:
        for name, summary in (line.figures or {"": Summary()}).items():
            reasons = summary.undefined + line.failed
            ends = (summary.mean, summary.low, summary.high)
            writer.writerow(
                [
                    line.experiment,
                    line.variant,
                    setting_text(line.setting),
                    name,
                    summary.n,
                    *("" if value is None else f"{value:.6g}" for value in ends),
                    sum(summary.undefined.values()),
                    sum(line.failed.values()),
                    "; ".join(f"{count} x {reason}" for reason, count in reasons.items()),
                ]
            )
    return stream.getvalue()


def setting_text(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in setting.items())

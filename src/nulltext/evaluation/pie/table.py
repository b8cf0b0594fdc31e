"""The benchmark's table, in the paper's units, with published figures beside ours.

Published figures stand here only where they could be looked up; the paper's table has more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nulltext.evaluation.bootstrap import Summary
from nulltext.evaluation.results import Row
from nulltext.evaluation.summary import Line, line_of

SCALES = {1: "", 1e2: " ·10²", 1e3: " ·10³", 1e4: " ·10⁴"}


@dataclass(frozen=True)
class Column:
    """One metric of the table."""

    title: str
    factor: float
    """From the figure of a row to the table's unit."""
    digits: int
    higher_is_better: bool | None
    """None where it says nothing about the edit."""

    @property
    def heading(self) -> str:
        """The title, its unit, and which way is better."""
        scale = SCALES[self.factor]
        arrow = "" if self.higher_is_better is None else (" ↑" if self.higher_is_better else " ↓")
        return self.title + scale + arrow


COLUMNS = {
    "structure_distance": Column("structure", 1e3, 2, False),
    "psnr_unedited": Column("PSNR", 1, 2, True),
    "lpips_unedited": Column("LPIPS", 1e3, 2, False),
    "mse_unedited": Column("MSE", 1e4, 2, False),
    "ssim_unedited": Column("SSIM", 1e2, 2, True),
    "clip_source": Column("CLIP source", 1, 2, None),
    "clip_target": Column("CLIP whole", 1, 2, True),
    "clip_target_edited": Column("CLIP edited", 1, 2, True),
}

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "null-text": {
        "structure_distance": 13.44,
        "psnr_unedited": 27.03,
        "lpips_unedited": 60.67,
        "clip_target": 24.75,
    },
    "direct": {
        "structure_distance": 11.65,
        "psnr_unedited": 27.22,
        "lpips_unedited": 54.55,
        "clip_target": 25.02,
    },
}
"""By method, in the table's units: Stable Diffusion 1.4 with Prompt-to-Prompt on all 700 edits."""

PUBLISHED_SOURCE = (
    "Published: Ju et al. 2024 (arXiv 2310.01506), Stable Diffusion 1.4, 700 edits at 512 px, as "
    "listed by Papers with Code for PIE-Bench; other cells of the paper's table are left out"
)


def overall(rows: Sequence[Row], seed: int = 0) -> list[Line]:
    """One line per method over all its rows, in the order in which they came."""
    return [line_of([{**r, "setting": {}} for r in own], seed) for own in _groups(rows, "variant")]


def by_category(rows: Sequence[Row], seed: int = 0) -> list[Line]:
    """One line per category and method."""
    ordered = sorted(rows, key=lambda row: str(row["setting"]["category"]))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in ordered:
        groups.setdefault((row["setting"]["category"], row["variant"]), []).append(row)
    return [line_of(own, seed) for own in groups.values()]


def _groups(rows: Sequence[Row], field: str) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[field], []).append(row)
    return list(groups.values())


def as_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The table for a program: means and intervals in its units, null with reasons elsewhere."""
    return [
        {
            "method": line.variant,
            **line.setting,
            "failed": dict(line.failed),
            "figures": {
                name: _figure_json(column, line.figures.get(name, EMPTY))
                for name, column in COLUMNS.items()
            },
            "published": dict(PUBLISHED.get(line.variant, {})) if not line.setting else {},
        }
        for line in lines
    ]


EMPTY = Summary(0, None, None, None)


def _figure_json(column: Column, summary: Summary) -> dict[str, Any]:
    return {
        "n": summary.n,
        "mean": scaled(column, summary.mean),
        "low": scaled(column, summary.low),
        "high": scaled(column, summary.high),
        "unit": column.heading,
        "undefined": dict(summary.undefined),
    }


def scaled(column: Column, value: float | None) -> float | None:
    """A figure in the table's unit."""
    return None if value is None else value * column.factor


def as_text(lines: Sequence[Line]) -> list[str]:
    """The table for a terminal, published figures under ours, reasons below it."""
    head = ["", *(column.heading for column in COLUMNS.values())]
    body: list[list[str]] = []
    for line in lines:
        body.append([line.variant, *(_cell(line, name) for name in COLUMNS)])
        if line.variant in PUBLISHED:
            beside = PUBLISHED[line.variant]
            body.append(["  published", *(_number(beside.get(n), c) for n, c in COLUMNS.items())])
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
    text = [_row(row, widths) for row in (head, *body)]
    return [
        *text,
        *undefined_lines(lines),
        PUBLISHED_SOURCE[0].upper() + PUBLISHED_SOURCE[1:] + ".",
    ]


def undefined_lines(lines: Sequence[Line]) -> list[str]:
    """Why figures are missing, and in how many rows of all methods; rows that failed."""
    counts: dict[str, dict[str, int]] = {}
    for line in lines:
        for name in COLUMNS:
            for reason, count in line.figures.get(name, EMPTY).undefined.items():
                by_metric = counts.setdefault(reason, {})
                by_metric[name] = by_metric.get(name, 0) + count
    text = [f"Missing ({reason}): {_counted(by, lines)}." for reason, by in counts.items()]
    failed = {(line.variant, reason): n for line in lines for reason, n in line.failed.items()}
    return text + [f"Failed, {n} of {method}: {why}" for (method, why), n in failed.items()]


def _counted(by_metric: Mapping[str, int], lines: Sequence[Line]) -> str:
    """Metrics that are missing equally often, together."""
    groups: dict[str, list[str]] = {}
    for name, count in by_metric.items():
        summaries = [line.figures.get(name, EMPTY) for line in lines]
        rows = sum(summary.n + sum(summary.undefined.values()) for summary in summaries)
        groups.setdefault(f"{count} of {rows} rows", []).append(COLUMNS[name].title)
    return "; ".join(f"{', '.join(titles)} in {said}" for said, titles in groups.items())


def _cell(line: Line, name: str) -> str:
    summary = line.figures.get(name, EMPTY)
    if summary.mean is None:
        return "missing" if summary.undefined else "-"
    return _number(scaled(COLUMNS[name], summary.mean), COLUMNS[name])


def _number(value: float | None, column: Column) -> str:
    return "-" if value is None else f"{value:.{column.digits}f}"


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()

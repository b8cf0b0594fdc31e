"""The tables of PIE-Bench, in the paper's units, with published figures beside ours.

Published figures stand here only where they could be looked up; the paper's table has more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nulltext.evaluation.report import (
    EMPTY,
    REPORT,
    SUMMARY,
    Cell,
    Table,
    failures_table,
    number_cell,
    picture_cell,
    render,
    with_row_counts,
    write_files,
)
from nulltext.evaluation.summary import Line, Summary, grouped, line_of, to_csv
from nulltext.jobs.ledger import Row

SHOWN_EDITS = 40
"""Edits whose pictures the page has, at most; all are in the folder."""


@dataclass(frozen=True)
class Column:
    """A metric of the tables."""

    title: str
    unit: str = ""
    """With an arrow to the better values."""
    factor: float = 1
    """From the value of a row to the table's unit."""

    @property
    def heading(self) -> str:
        return f"{self.title} {self.unit}".strip()

    def scaled(self, value: float | None) -> float | None:
        return None if value is None else value * self.factor


COLUMNS = {
    "structure_distance": Column("structure", "·10³ ↓", 1e3),
    "psnr_unedited": Column("PSNR", "↑"),
    "lpips_unedited": Column("LPIPS", "·10³ ↓", 1e3),
    "mse_unedited": Column("MSE", "·10⁴ ↓", 1e4),
    "ssim_unedited": Column("SSIM", "·10² ↑", 1e2),
    "clip_source": Column("CLIP source"),
    "clip_target": Column("CLIP whole", "↑"),
    "clip_target_edited": Column("CLIP edited", "↑"),
}

DIGITS = 2

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


def publish(folder: Path, settings: Mapping[str, Any], rows: Sequence[Row]) -> list[Path]:
    """Write summary and page into the folder; return them, the page first."""
    whole, parts = overall(rows), by_category(rows)
    measured = [row for row in rows if row["status"] == "ok"]
    edits = len({row["image"] for row in rows})
    page = render(
        "pie.html.j2",
        title=f"nulltext: PIE-Bench, {edits} edits",
        edits=edits,
        methods=len(whole),
        settings=with_row_counts(settings, rows),
        overall=_metrics_table(whole, "Method", with_published=True),
        by_category=_metrics_table(parts, "Category and method", with_published=False),
        published_source=PUBLISHED_SOURCE,
        missing=missing_lines(whole),
        pictures=_pictures_table(folder, measured),
        edits_with_pictures=len({row["image"] for row in measured}),
        failed=failures_table(rows),
    )
    summary = to_csv([*whole, *parts])
    return write_files(folder, {REPORT: page.encode(), SUMMARY: summary.encode()})


def overall(rows: Sequence[Row]) -> list[Line]:
    groups = grouped([{**row, "setting": {}} for row in rows], lambda row: str(row["variant"]))
    return [line_of(own) for own in groups.values()]


def by_category(rows: Sequence[Row]) -> list[Line]:
    ordered = sorted(rows, key=lambda row: str(row["setting"]["category"]))
    groups = grouped(ordered, lambda row: (row["setting"]["category"], row["variant"]))
    return [line_of(own) for own in groups.values()]


def to_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    return [
        {
            "method": line.variant,
            **line.setting,
            "failed": dict(line.failed),
            "figures": {name: _summary_json(line, name) for name in COLUMNS},
            "published": dict(PUBLISHED.get(line.variant, {})) if not line.setting else {},
        }
        for line in lines
    ]


def _summary_json(line: Line, name: str) -> dict[str, Any]:
    column, summary = COLUMNS[name], line.figures.get(name, Summary())
    return {
        "n": summary.n,
        "mean": column.scaled(summary.mean),
        "low": column.scaled(summary.low),
        "high": column.scaled(summary.high),
        "unit": column.heading,
        "undefined": dict(summary.undefined),
    }


def to_text(lines: Sequence[Line]) -> list[str]:
    """Write a table for a terminal, published figures under ours, reasons below it."""
    table = [["", *(column.heading for column in COLUMNS.values())]]
    for line in lines:
        cells = [line.variant]
        for name, column in COLUMNS.items():
            summary = line.figures.get(name, Summary())
            unknown = summary.mean is None and summary.undefined
            cells.append("missing" if unknown else _number(column.scaled(summary.mean)))
        table.append(cells)
        if published := PUBLISHED.get(line.variant):
            table.append(["  published", *(_number(published.get(name)) for name in COLUMNS)])
    first, *others = (max(map(len, cells)) for cells in zip(*table, strict=True))
    text = []
    for name, *cells in table:
        padded = [cell.rjust(width) for cell, width in zip(cells, others, strict=True)]
        text.append("  ".join([name.ljust(first), *padded]).rstrip())
    return [*text, *missing_lines(lines), f"{PUBLISHED_SOURCE}."]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.{DIGITS}f}"


def missing_lines(lines: Sequence[Line]) -> list[str]:
    """Explain missing values, with the number of rows of all methods, and rows that failed."""
    undefined: dict[str, Counter[str]] = {}
    totals: Counter[str] = Counter()
    for line in lines:
        for name in COLUMNS:
            summary = line.figures.get(name, Summary())
            totals[name] += summary.n + summary.undefined.total()
            for reason, count in summary.undefined.items():
                undefined.setdefault(reason, Counter())[name] += count
    text = []
    for reason, counts in undefined.items():
        titles: dict[str, list[str]] = {}
        for name, count in counts.items():
            titles.setdefault(f"{count} of {totals[name]} rows", []).append(COLUMNS[name].title)
        told = [f"{', '.join(alike)} in {rows}" for rows, alike in titles.items()]
        text.append(f"Missing ({reason}): {'; '.join(told)}.")
    failed = {(line.variant, reason): n for line in lines for reason, n in line.failed.items()}
    return text + [f"Failed, {n} of {method}: {why}" for (method, why), n in failed.items()]


def _metrics_table(lines: Sequence[Line], caption: str, *, with_published: bool) -> Table:
    rows: list[list[Cell | str]] = []
    for line in lines:
        cells = [
            number_cell(line.figures.get(name, Summary()), DIGITS, column.factor)
            for name, column in COLUMNS.items()
        ]
        rows.append([" ".join([*map(str, line.setting.values()), line.variant]), *cells])
        if with_published and line.variant in PUBLISHED:
            known = PUBLISHED[line.variant]
            told = [_number(known[name]) if name in known else EMPTY for name in COLUMNS]
            rows.append(["\u2003published", *told])
    return Table(["", *(column.heading for column in COLUMNS.values())], rows, caption)


def _pictures_table(folder: Path, rows: Sequence[Row]) -> Table:
    methods = list(dict.fromkeys(row["variant"] for row in rows))
    lines = []
    for key, own in list(grouped(rows, lambda row: str(row["image"])).items())[:SHOWN_EDITS]:
        with_photo = next((row for row in own if "photo" in row["pictures"]), None)
        found = {row["variant"]: row for row in own}
        lines.append(
            [
                Cell(key, prompt=own[0]["notes"]["target"]),
                picture_cell(folder, with_photo, "photo", key),
                *(picture_cell(folder, found.get(m), "picture", f"{key}, {m}") for m in methods),
            ]
        )
    return Table(["", "photo", *methods], lines)

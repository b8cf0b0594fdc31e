"""What the benchmark hands over: summary and page, made from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nulltext.evaluation.bootstrap import Summary
from nulltext.evaluation.markup import gallery, number, page, picture, table, text
from nulltext.evaluation.pie.table import (
    COLUMNS,
    EMPTY,
    PUBLISHED,
    PUBLISHED_SOURCE,
    Column,
    by_category,
    overall,
    scaled,
    undefined_lines,
)
from nulltext.evaluation.report import facts, failures
from nulltext.evaluation.results import Row
from nulltext.evaluation.summary import Line, csv_of
from nulltext.storage.files import replace_file

SUMMARY, REPORT = "summary.csv", "report.html"

SHOWN = 40
"""Edits whose pictures the page has, at most; all are in the folder."""


def publish(folder: Path, settings: Mapping[str, Any], rows: Sequence[Row]) -> list[Path]:
    """Write summary and page; returns the files, the page first.

    Raises:
        OutputError: a file cannot be written.
    """
    whole, parts = overall(rows), by_category(rows)
    content = {
        REPORT: _page(folder, settings, rows, whole, parts).encode(),
        SUMMARY: csv_of([*whole, *parts]).encode(),
    }
    for name, data in content.items():
        replace_file(folder / name, data)
    return [folder / name for name in content]


def _page(
    folder: Path,
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    whole: Sequence[Line],
    parts: Sequence[Line],
) -> str:
    count = len({row["image"] for row in rows})
    reasons = "".join(f"<p class='soft'>{text(line)}</p>" for line in undefined_lines(whole))
    return page(
        f"nulltext: PIE-Bench, {count} edits",
        f"<h1>PIE-Bench: {count} edits by {len(whole)} methods</h1>"
        '<p class="soft">Made by <code>nulltext benchmark pie</code>. Means over edits; intervals '
        "are 95% bootstrap intervals of the mean.</p>"
        f"{facts(settings, rows)}"
        f"<section><h2>All edits</h2>{_table(whole, 'Method', beside=True)}"
        f"<p class='soft'>{text(PUBLISHED_SOURCE)}.</p>{reasons}</section>"
        f"<section><h2>By category</h2>{_table(parts, 'Category and method', beside=False)}"
        f"</section><section><h2>Pictures</h2>{_pictures(folder, rows)}</section>{failures(rows)}",
    )


def _table(lines: Sequence[Line], caption: str, *, beside: bool) -> str:
    body = []
    for line in lines:
        name = " ".join([*map(str, line.setting.values()), line.variant])
        cells = [_cell(column, line.figures.get(n, EMPTY)) for n, column in COLUMNS.items()]
        body.append([text(name), *cells])
        if beside and line.variant in PUBLISHED:
            known = PUBLISHED[line.variant]
            told = [f"{known[n]:.{c.digits}f}" if n in known else "–" for n, c in COLUMNS.items()]
            body.append(["&emsp;published", *told])
    return table(caption, ["", *(text(c.heading) for c in COLUMNS.values())], body)


def _cell(column: Column, summary: Summary) -> str:
    """In the table's unit."""
    mean, low, high = (scaled(column, v) for v in (summary.mean, summary.low, summary.high))
    return number(replace(summary, mean=mean, low=low, high=high), column.digits)


def _pictures(folder: Path, rows: Sequence[Row]) -> str:
    """The photo and every method's edit, edit by edit."""
    good = [row for row in rows if row["status"] == "ok"]
    methods = list(dict.fromkeys(row["variant"] for row in good))
    photos = {r["image"]: r["pictures"]["photo"] for r in good if "photo" in r["pictures"]}
    made = {(row["image"], row["variant"]): row for row in good}
    keys = list(dict.fromkeys(row["image"] for row in good))
    lines = []
    for key in keys[:SHOWN]:
        first = next(made[key, m] for m in methods if (key, m) in made)
        said = f"{text(key)}<small class='said'>{text(first['notes']['target'])}</small>"
        photo = picture(folder / photos[key], key) if key in photos else "–"
        edits = [
            picture(folder / made[key, m]["pictures"]["picture"], f"{key}, {m}")
            if (key, m) in made
            else "–"
            for m in methods
        ]
        lines.append([said, photo, *edits])
    more = f"<p class='soft'>The first {SHOWN} of {len(keys)} edits.</p>" * (len(keys) > SHOWN)
    return gallery(["", "photo", *map(text, methods)], lines) + more

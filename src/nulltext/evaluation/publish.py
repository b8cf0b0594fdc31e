"""What a study hands over: summary, plots and report, made from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nulltext.evaluation.plots import figures_of, png_and_svg
from nulltext.evaluation.report import report
from nulltext.evaluation.results import Row
from nulltext.evaluation.summary import csv_of, lines_of
from nulltext.storage.files import replace_file

SUMMARY, REPORT = "summary.csv", "report.html"


def publish(folder: Path, settings: Mapping[str, Any], rows: Sequence[Row]) -> list[Path]:
    """Write them; returns the files, the report first.

    Raises:
        ExtraError: matplotlib is not installed.
        OutputError: a file cannot be written.
    """
    lines = lines_of(rows)
    content: dict[str, bytes] = {
        REPORT: report(folder, settings, rows, lines).encode(),
        SUMMARY: csv_of(lines).encode(),
    }
    for name, draw in figures_of(lines).items():
        content[f"{name}.png"], content[f"{name}.svg"] = png_and_svg(draw)
    for name, data in content.items():
        replace_file(folder / name, data)
    return [folder / name for name in content]

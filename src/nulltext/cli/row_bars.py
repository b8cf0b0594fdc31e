"""A bar for work that makes rows: its unit is a UNet evaluation, so that time left is honest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nulltext.cli.report import Reporter, counted

if TYPE_CHECKING:
    from nulltext.evaluation.rows import Progress as RowProgress
    from nulltext.jobs.ledger import Book


def make_rows(reporter: Reporter, steps: Iterable[RowProgress], book: Book, all_rows: int) -> None:
    """Run the generator under the bar; Ctrl-C says what is kept, and ends as Ctrl-C does."""
    columns = (
        TextColumn("{task.fields[rows]}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[doing]}", markup=False),
    )
    try:
        with Progress(*columns, console=reporter.console, speed_estimate_period=600) as progress:
            bar = progress.add_task("", rows="", doing="")
            for info in steps:
                progress.update(
                    bar,
                    total=info.all_evaluations,
                    completed=info.evaluations,
                    rows=f"{info.rows}/{info.all_rows} rows",
                    doing=info.title,
                )
    except KeyboardInterrupt:
        reporter.note(
            f"Stopped. {len(book.rows)} of {counted(all_rows, 'row')} kept in {book.folder}; "
            "the same command continues there."
        )
        raise

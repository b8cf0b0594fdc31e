"""What a command ends with: 0 done, 2 bad input, 1 failed otherwise (130, interrupted: `entry`).

Verbs that make rows (batch, study, benchmarks) end with 0 where all rows that were asked for are
done, in whichever run; with 2 where some failed, all of them for input that can be mended; with 1
where some failed for another reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from nulltext.cli.report import Reporter, counted

if TYPE_CHECKING:
    from nulltext.jobs.ledger import Row

EXIT_OURS, EXIT_USER = 1, 2


def end_of_rows(
    reporter: Reporter, failed: Sequence[Row], what: str = "row", matter: str = "failed"
) -> None:
    """End a command that made rows, saying what has failed where its report is not wanted.

    Args:
        failed: those of the rows that were asked for, earlier runs' included. what: what they are.
        matter: what is the matter with them.

    Raises:
        typer.Exit: there are some.
    """
    if not failed:
        return
    reporter.errors([f"{counted(len(failed), what)} {matter}; the first: {failed[0]['reason']}"])
    raise typer.Exit(EXIT_USER if all(row.get("input") for row in failed) else EXIT_OURS)

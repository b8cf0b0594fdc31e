"""`nulltext batch`: many edits from one file, here or on a cluster, resumable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from nulltext.cli.exit_codes import end_of_rows
from nulltext.cli.model_options import CHOICE, takes_model
from nulltext.cli.options import (
    JsonOption,
    QuietOption,
)
from nulltext.cli.report import Reporter, counted
from nulltext.errors import OptionError
from nulltext.models.choice import ModelChoice

if TYPE_CHECKING:
    from collections.abc import Callable

    from nulltext.diffusion.loops import StepInfo
    from nulltext.jobs.batch import Batch, BatchInfo, Executor, Outcome
    from nulltext.jobs.worker import Setup

MOST_REASONS = 10
"""Failures that are told one by one; the others are in results.jsonl."""

ADDRESS = re.compile(r"auto|local|ray://\S+|[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+")
"""What may stand behind --ray; anything else there is the next argument."""


class OptionalAddress(TyperCommand):
    """A command whose --ray may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the local cluster's name behind a --ray without an address."""
        full: list[str] = []
        for here, following in zip(args, [*args[1:], ""], strict=True):
            full.append(here)
            if here == "--ray" and not ADDRESS.fullmatch(following):
                full.append("local")
        return super().parse_args(ctx, full)


@takes_model
def batch(
    jobs: Annotated[
        Path,
        typer.Argument(
            metavar="JOBS", help="One edit per line as JSON, a JSON array of them, or CSV."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of pictures and rows.")
    ],
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="[ADDRESS]",
            help="On a Ray cluster: HOST:PORT, ray://…, or auto; alone, one of this machine.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", min=1, help="With --ray: models side by side; default: all."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="The first N jobs only.")
    ] = None,
    within: Annotated[
        Path | None,
        typer.Option(
            "--within",
            metavar="FOLDER",
            help="Refuse jobs whose files are not in there: for job files by somebody else.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look at all jobs, load no model, write nothing.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try jobs that failed once more.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away what an earlier batch left in DIR.")
    ] = False,
    chosen: ModelChoice = CHOICE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Edit many photos: one job per line, any option of `edit` by its long name.

    Example: [bold]nulltext batch jobs.jsonl -o edited[/bold] with lines such as
    [bold]{"image": "a.jpg", "source": "a photo of a rose", "target": "a photo of a tulip"}[/bold]

    A table: [bold]nulltext batch jobs.csv -o edited[/bold], whose first row has the options' names.

    It may be stopped or killed at any moment: the same command continues, and repeats nothing that
    is finished. One bad job does not stop the others. Exit code: 0 all done; 2 some jobs are bad
    input, which results.jsonl explains line by line; 1 some failed for another reason.
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from nulltext.jobs.batch import read_batch
    from nulltext.jobs.worker import Setup

    if workers is not None and ray is None:
        raise OptionError("--workers is for --ray; add that, or leave it out.")
    with reporter.busy("Reading the jobs …"):
        found = read_batch(jobs, limit=limit, within=within)
    if found.repeated:
        reporter.note(f"Note: lines that repeat others are done once: {found.repeated}.")
    if dry_run:
        chosen.check()
        _dry_run(reporter, found)
        return
    setup = Setup(chosen, output.absolute())
    with _shown(reporter, len(found.units)) as (show, on_step):
        outcome = _run(reporter, setup, found, (ray, workers), (fresh, retry_failed), show, on_step)
    _report(reporter, outcome, output)


def _run(
    reporter: Reporter,
    setup: Setup,
    found: Batch,
    cluster: tuple[str | None, int | None],
    again: tuple[bool, bool],
    show: Callable[[BatchInfo], None],
    on_step: Callable[[StepInfo], None],
) -> Outcome:
    """Open the folder, and do what is open."""
    from nulltext.jobs.batch import batch_steps, open_batch

    fresh, retry_failed = again
    with (
        _executor(reporter, setup, *cluster, on_step) as executor,
        open_batch(setup, executor.identity, fresh=fresh) as book,
    ):
        steps = batch_steps(executor, found, book, retry_failed=retry_failed)
        try:
            while True:
                show(next(steps))
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome
        except KeyboardInterrupt:
            reporter.note(
                f"Stopped. {counted(len(book.rows), 'job')} kept in {setup.folder}; the same "
                "command continues there."
            )
            raise


@contextmanager
def _executor(
    reporter: Reporter,
    setup: Setup,
    address: str | None,
    workers: int | None,
    on_step: Callable[[StepInfo], None],
) -> Iterator[Executor]:
    """Who does the work."""
    if address is None:
        from nulltext.jobs.local import Local

        with reporter.loading(setup.chosen.model) as on_bytes:
            local = Local(setup, on_step, on_bytes)
        for note in local.worker.model.notes:
            reporter.note(note)
        yield local
        return
    import torch

    from nulltext.jobs.cluster import Cluster

    with reporter.busy("Starting the workers …"):
        cluster = Cluster(setup, address=address, workers=workers, threads=torch.get_num_threads())
    reporter.note(f"{counted(cluster.workers, 'worker')} on Ray.")
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def _shown(
    reporter: Reporter, total: int
) -> Iterator[tuple[Callable[[BatchInfo], None], Callable[[StepInfo], None]]]:
    """A bar of jobs with the time left; beside it, the step that one worker here is at."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from nulltext.cli.report import STAGES

    columns = (
        TextColumn("Jobs"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}{task.fields[doing]}", markup=False),
    )
    with Progress(*columns, console=reporter.console, speed_estimate_period=3600) as progress:
        bar = progress.add_task("", total=total, failed="", doing="", start=False)

        def show(info: BatchInfo) -> None:
            if info.row is None:
                progress.start_task(bar)
            failed = f"{info.failed} failed  " if info.failed else ""
            progress.update(bar, completed=info.done + info.failed, failed=failed, doing="")

        def on_step(info: StepInfo) -> None:
            stage = STAGES.get(info.stage, info.stage)
            progress.update(bar, doing=f"{stage} {info.index}/{info.total}")

        yield show, on_step


def _dry_run(reporter: Reporter, found: Batch) -> None:
    """Look at all jobs.

    Raises:
        typer.Exit: some are bad, with code 2.
    """
    from nulltext.jobs.batch import Outcome, check_steps
    from nulltext.jobs.units import grouped

    outcome = Outcome()
    with _shown(reporter, len(found.units)) as (show, _):
        for info in check_steps(found):
            show(info)
            outcome.count(info.row)
    groups = len(grouped([unit for unit in found.units if not unit.reason]))
    jobs, inversions = counted(len(found.units), "job"), counted(groups, "inversion")
    lines = [f"{jobs} on {inversions}; {outcome.done} can be done."]
    values = {"jobs": len(found.units), "inversions": groups, **_failures(outcome)}
    reporter.answer({"done": 0, **values}, [*lines, *_reasons(outcome)])
    _note_remarks(reporter, outcome)
    end_of_rows(reporter, outcome.failures, "job", "cannot be done")


def _report(reporter: Reporter, outcome: Outcome, output: Path) -> None:
    """Say what came of it.

    Raises:
        typer.Exit: some failed.
    """
    from nulltext.jobs.ledger import ROWS
    from nulltext.jobs.worker import PICTURES

    values = {"done": outcome.done, **_failures(outcome), "results": str(output / ROWS)}
    lines = [f"{counted(outcome.done, 'job')} done: {output / PICTURES}, {output / ROWS}"]
    if outcome.failures:
        lines += [f"{len(outcome.failures)} failed; --retry-failed tries them again."]
    reporter.result(values, [*lines, *_reasons(outcome)])
    _note_remarks(reporter, outcome, f"; see {output / ROWS}")
    end_of_rows(reporter, outcome.failures, "job")


def _failures(outcome: Outcome) -> dict[str, Any]:
    rows = outcome.failures[:MOST_REASONS]
    reasons = [{"line": row["line"], "reason": row["reason"]} for row in rows]
    return {"failed": len(outcome.failures), "reasons": reasons}


def _reasons(outcome: Outcome) -> list[str]:
    """The first failures, for a person."""
    return [f"  {row['reason']}" for row in outcome.failures[:MOST_REASONS]]


def _note_remarks(reporter: Reporter, outcome: Outcome, where: str = "") -> None:
    """Say how many jobs have remarks, and the first of them."""
    if not outcome.remarked:
        return
    count, first = len(outcome.remarked), outcome.remarked[0]
    have = "has" if count == 1 else "have"
    reporter.note(
        f"{counted(count, 'row')} {have} remarks{where}. The first, of line {first['line']}: "
        f"{first['remarks'][0]}"
    )

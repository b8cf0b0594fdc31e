"""`nulltext batch`: many edits from one file, here or on a cluster, resumable."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperCommand

from nulltext.cli.options import takes_options
from nulltext.cli.report import STAGES, Reporter, counted, end_of_rows
from nulltext.errors import OptionError
from nulltext.jobs.options import option_field
from nulltext.models.choice import ModelChoice

if TYPE_CHECKING:
    from nulltext.diffusion.loops import StepInfo
    from nulltext.jobs.batch import Batch, BatchProgress, Executor, Outcome
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


@dataclass(frozen=True)
class BatchOptions:
    """The options of `batch`."""

    jobs: Path = option_field(
        MISSING, "One edit per line as JSON, a JSON array of them, or CSV.", "JOBS", positional=True
    )
    output: Path = option_field(MISSING, "Folder of pictures and rows.", "DIR", short="-o")
    ray: str | None = option_field(
        None,
        "On a Ray cluster: HOST:PORT, ray://…, or auto; alone, one of this machine.",
        "[ADDRESS]",
    )
    workers: int | None = option_field(
        None, "With --ray: models side by side; default: all.", "N", least=1
    )
    batch_size: int | None = option_field(
        None,
        "Photos inverted side by side, by each worker; default 8, 1 with --low-memory.",
        "B",
        least=1,
    )
    limit: int | None = option_field(None, "The first N jobs only.", "N")
    within: Path | None = option_field(
        None,
        "Refuse jobs whose files are not in there: for job files from another source.",
        "FOLDER",
    )
    dry_run: bool = option_field(False, "Look at all jobs, load no model, write nothing.")
    retry_failed: bool = option_field(False, "Try jobs that failed once more.")
    fresh: bool = option_field(False, "Throw away what an earlier batch left in DIR.")


@takes_options
def batch(options: BatchOptions, chosen: ModelChoice, reporter: Reporter) -> None:
    """Edit many photos: one job per line, any option of `edit` by its long name.

    Example: [bold]nulltext batch jobs.jsonl -o edited[/bold] with lines such as
    [bold]{"image": "a.jpg", "source": "a photo of a rose", "target": "a photo of a tulip"}[/bold]

    A table: [bold]nulltext batch jobs.csv -o edited[/bold], whose first row has the options' names.

    It may be stopped or killed at any moment: the same command continues, and repeats nothing that
    is finished. One bad job does not stop the others. Exit code: 0 all done; 2 some jobs are bad
    input, which results.jsonl explains line by line; 1 some failed for another reason.
    """
    from nulltext.jobs.batch import read_batch
    from nulltext.jobs.worker import Setup

    if options.workers is not None and options.ray is None:
        raise OptionError("--workers is for --ray; add that, or leave it out.")
    with reporter.busy("Reading the jobs …"):
        found = read_batch(options.jobs, limit=options.limit, within=options.within)
    if found.repeated:
        reporter.note(f"Note: lines that repeat others are done once: {found.repeated}.")
    if options.dry_run:
        chosen.check()
        _dry_run(reporter, found)
        return
    setup = Setup(chosen, options.output.absolute(), options.batch_size)
    with (
        _bars(reporter, len(found.units)) as bars,
        _executor(reporter, setup, options, bars.on_step) as executor,
    ):
        outcome = _run(reporter, setup, found, options, executor, bars)
    _report(reporter, outcome, options.output)


def _run(
    reporter: Reporter,
    setup: Setup,
    found: Batch,
    options: BatchOptions,
    executor: Executor,
    bars: _Bars,
) -> Outcome:
    from nulltext.jobs.batch import batch_steps, open_batch

    with open_batch(setup, executor.identity, fresh=options.fresh) as book:
        steps = batch_steps(executor, found, book, retry_failed=options.retry_failed)
        try:
            while True:
                bars.show(next(steps))
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
    options: BatchOptions,
    on_step: Callable[[StepInfo], None],
) -> Iterator[Executor]:
    if options.ray is None:
        from nulltext.jobs.batch import LocalExecutor

        with reporter.loading(setup.chosen.model) as on_bytes:
            local = LocalExecutor(setup, on_step, on_bytes)
        for note in local.worker.model.notes:
            reporter.note(note)
        yield local
        return
    import torch

    from nulltext.jobs.cluster import Cluster

    with reporter.busy("Starting the workers …"):
        cluster = Cluster(
            setup,
            address=options.ray,
            workers=options.workers,
            threads=torch.get_num_threads(),
        )
    reporter.note(f"{counted(cluster.workers, 'worker')} on Ray.")
    try:
        yield cluster
    finally:
        cluster.close()


class _Bars:
    """A bar of jobs with the time left; beside it, the step of a worker in this process."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress = progress
        self.bar = progress.add_task("", total=total, failed="", doing="", start=False)

    def show(self, info: BatchProgress) -> None:
        if info.row is None:
            self.progress.start_task(self.bar)
        failed = f"{info.failed} failed  " if info.failed else ""
        done = info.done + info.failed
        self.progress.update(self.bar, completed=done, failed=failed, doing="")

    def on_step(self, info: StepInfo) -> None:
        stage = STAGES.get(info.stage, info.stage)
        self.progress.update(self.bar, doing=f"{stage} {info.index}/{info.total}")


@contextmanager
def _bars(reporter: Reporter, total: int) -> Iterator[_Bars]:
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
        yield _Bars(progress, total)


def _dry_run(reporter: Reporter, found: Batch) -> None:
    """Look at all jobs."""
    from nulltext.jobs.batch import Outcome, check_steps
    from nulltext.jobs.worker import grouped

    outcome = Outcome()
    with _bars(reporter, len(found.units)) as bars:
        for info in check_steps(found):
            bars.show(info)
            outcome.count(info.row)
    groups = len(grouped([unit for unit in found.units if not unit.reason]))
    jobs, inversions = counted(len(found.units), "job"), counted(groups, "inversion")
    lines = [f"{jobs} on {inversions}; {outcome.done} can be done."]
    values = {"jobs": len(found.units), "inversions": groups, **_failures(outcome)}
    reporter.answer({"done": 0, **values}, [*lines, *_reasons(outcome)])
    _note_remarks(reporter, outcome)
    end_of_rows(reporter, outcome.failures, "job", "cannot be done")


def _report(reporter: Reporter, outcome: Outcome, output: Path) -> None:
    """Say what came of it."""
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
    return [f"  {row['reason']}" for row in outcome.failures[:MOST_REASONS]]


def _note_remarks(reporter: Reporter, outcome: Outcome, where: str = "") -> None:
    if not outcome.remarked:
        return
    count, first = len(outcome.remarked), outcome.remarked[0]
    have = "has" if count == 1 else "have"
    reporter.note(
        f"{counted(count, 'row')} {have} remarks{where}. The first, of line {first['line']}: "
        f"{first['remarks'][0]}"
    )

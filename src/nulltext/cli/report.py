"""Write notes and progress to standard error, and results to standard output.

A redirected stream has the system's encoding (cp1252 on a Western Windows), which lacks most of
Unicode. What it lacks is written in ASCII: signs of our messages by `SIGNS`, all others, such as
letters of a file's name, as Python escapes them (`\\u4e2d`); a byte of a name that is no text as
`\\xff`. A failure to write, as of a full disk or a closed pipe, stops no work: files are results,
too. The end of a command asks for it (`unwritten`).
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from nulltext.cli import EXIT_OURS, EXIT_USER
from nulltext.jobs.ledger import finite
from nulltext.jobs.options import option_field
from nulltext.reprs import decibels
from nulltext.words.prompts import UNDECODED

if TYPE_CHECKING:
    from torch import Tensor

    from nulltext.diffusion.loops import StepInfo
    from nulltext.evaluation.rows import Progress as RowProgress
    from nulltext.evaluation.rows import Schedule
    from nulltext.jobs.ledger import Book, Row
    from nulltext.models.latent_diffusion import LatentDiffusion


ESCAPED = "nulltext-escaped"
"""Name of the error handler, for streams."""

SIGNS = {
    "…": "...",
    "–": "-",
    "—": "-",
    "−": "-",
    "“": '"',
    "”": '"',
    "≈": "~",
    "·": "*",
    "×": "x",
    "→": "->",
    "↑": "^",
    "↓": "v",
    "²": "^2",
    "³": "^3",
    "⁴": "^4",
}
"""What stands for the signs of our messages, tables and bars."""


class _Sink(io.FileIO):
    """A descriptor that keeps the first error of writing rather than raise it."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or count as written what cannot be."""
        try:
            return super().write(data)
        except OSError as error:
            self.failed = self.failed or error
            return memoryview(data).nbytes


def open_streams() -> None:
    """Let standard output and error take every line; one that is closed takes it for nothing."""
    codecs.register_error(ESCAPED, _escaped)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, or a Windows program without a console
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            if stream is getattr(sys, f"__{name}__"):
                setattr(sys, name, _sunk(stream))
            getattr(sys, name).reconfigure(errors=ESCAPED)


def unwritten() -> OSError | None:
    """Why standard output did not take all lines; None where it did, or where its reader wanted no
    more of them, as `head` does."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    failed: OSError | None = getattr(getattr(buffer, "raw", buffer), "failed", None)
    gone = failed is not None and failed.errno in (errno.EPIPE, errno.EINVAL)  # EINVAL: Windows
    return None if gone else failed


def _sunk(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The stream on a `_Sink`; itself where it is no file, as a Windows console."""
    if type(getattr(stream.buffer, "raw", stream.buffer)) is not io.FileIO:
        return stream
    sink = _Sink(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        sink if stream.write_through else io.BufferedWriter(sink),
        encoding=stream.encoding,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_sign, error.object[error.start : error.end])), error.end


def _sign(character: str) -> str:
    return SIGNS.get(character) or escaped(character)


def escaped(character: str) -> str:
    """A character that cannot be written, or should not be, in ASCII."""
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if code in UNDECODED else ascii(character)[1:-1]


LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogLevel(StrEnum):
    """Least level of the log lines that are shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"


class _StandardError(logging.Handler):
    """Writes to what `sys.stderr` is at the time: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:  # as logging's own handlers: a log line never breaks the work
            self.handleError(record)


def show_logs(level: LogLevel) -> None:
    logger = logging.getLogger("nulltext")
    for handler in [h for h in logger.handlers if isinstance(h, _StandardError)]:
        logger.removeHandler(handler)
    handler = _StandardError()
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logger.addHandler(handler)
    logger.setLevel(level.upper())


STAGES = {
    "pivot": "Inversion",
    "optimise": "Optimisation",
    "correct": "Corrections",
    "replay": "Replay",
    "region": "Finding where",
    "edit": "Editing",
    "outline": "Outlining",
    "composite": "Putting it in",
    "compare": "Comparing",
    "encode": "Compressing",
    "write": "Writing",
}
PLACING = "placing"
"""The bar of all stages in which the model does not run."""


@dataclass
class Reporter:
    """Says what a verb does and what came of it; its fields are options of every verb."""

    as_json: bool = option_field(
        False, "One JSON object on standard output, the rest elsewhere.", flags="--json"
    )
    quiet: bool = option_field(
        False,
        "Nothing but errors, and what is asked for: words, --json.",
        flags="--quiet",
        short="-q",
    )
    console: Console = field(init=False)
    spinner: str = field(init=False)

    def __post_init__(self) -> None:
        self.console = Console(stderr=True, quiet=self.quiet, highlight=False, soft_wrap=True)
        self.spinner = "dots" if self.console.encoding.startswith("utf") else "line"

    def note(self, text: str) -> None:
        self.console.print(visible(text), markup=False)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        with self.console.status(Text(visible(what)), spinner=self.spinner):
            yield

    @contextmanager
    def loading(self, model: str) -> Iterator[Callable[[int, int], None]]:
        """Show that a model is loaded; yields a callback for (done, total) bytes of a download."""
        columns = (
            SpinnerColumn(self.spinner),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with ExitStack() as shown:
            said = Text(visible(f"Loading the model '{model}' …"))
            spinner = shown.enter_context(self.console.status(said, spinner=self.spinner))
            bars: list[Progress] = []

            def on_bytes(done: int, total: int) -> None:
                if not bars:
                    spinner.stop()
                    bars.append(shown.enter_context(Progress(*columns, console=self.console)))
                    bars[0].add_task(f"Fetching {visible(model)}", total=total)
                bars[0].update(TaskID(0), completed=done, total=total)

            yield on_bytes

    def result(self, values: dict[str, Any] | list[dict[str, Any]], lines: Sequence[str]) -> None:
        """Write the result of the work: JSON if it is asked for, else lines, unless quiet."""
        if self.as_json or not self.quiet:
            self.answer(values, lines)

    def answer(self, values: dict[str, Any] | list[dict[str, Any]], lines: Sequence[str]) -> None:
        """Write what was asked for: one JSON object (or a list of them), or lines."""
        if self.as_json:
            plain = finite(values) if isinstance(values, dict) else [*map(finite, values)]
            text = json.dumps(plain, allow_nan=False)  # ASCII, whatever it holds
        else:
            text = visible("\n".join(lines))
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def errors(self, problems: Sequence[str]) -> None:
        """Write problems to standard error where --quiet leaves out the result with them."""
        if self.quiet:
            sys.stderr.writelines(f"Error: {visible(problem)}\n" for problem in problems)

    def bars(self) -> Progress:
        """Bars with count, time left, and a field "remark" for what there is to say."""
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
        )
        return Progress(*columns, console=self.console)

    @contextmanager
    def progress(
        self, model: LatentDiffusion, photo: Tensor | None = None
    ) -> Iterator[Callable[[StepInfo], None]]:
        """Bars for a generator of steps: one per stage of the model, one for the photo's own size.

        Args:
            photo: [1, 3, H, W] in [-1, 1]; when given, the PSNR so far is shown.
        """
        previews = None
        if photo is not None and not self.quiet:
            from nulltext.inversion.previews import Previews

            previews = Previews(model, photo)
        tasks: dict[str, TaskID] = {}
        with self.bars() as progress:

            def on_step(info: StepInfo) -> None:
                name = STAGES.get(info.stage, info.stage)
                key = PLACING if info.level is None else info.stage
                if key not in tasks:
                    tasks[key] = progress.add_task(name, total=info.total, remark="")
                task = tasks[key]
                progress.update(task, completed=info.index, total=info.total, description=name)
                preview = previews.of(info) if previews else None
                if preview is not None:
                    progress.update(task, remark=f"{decibels(preview.psnr)} so far")

            yield on_step


def counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def ahead(schedule: Schedule[Any], count: int, thing: str) -> str:
    """Say what a run of rows over so many things is about to do, in one line."""
    done = schedule.all_rows - schedule.open_rows
    there, left = (f", {done:,} of them done", " to go") if done else ("", "")
    rows, cost = counted(schedule.all_rows, "row"), counted(schedule.evaluations, "UNet evaluation")
    return f"{counted(count, thing)}, {rows}{there}; about {cost}{left}."


def visible(text: str) -> str:
    """Write out control characters but the end of line, which could steer a terminal."""
    return "".join(c if c == "\n" or c.isprintable() else escaped(c) for c in text)


def make_rows(reporter: Reporter, steps: Iterable[RowProgress], book: Book, all_rows: int) -> None:
    """Run a generator of rows under a bar, and say on Ctrl-C what is kept.

    The unit of the bar is a UNet evaluation, so that the time left is right.
    """
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


def end_of_rows(
    reporter: Reporter, failed: Sequence[Row], what: str = "row", matter: str = "failed"
) -> None:
    """End a command that made rows, with the exit code that fits what failed.

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

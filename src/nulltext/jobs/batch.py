"""Many edits, from a job file to a folder of pictures; a kill loses no finished row.

    settings.json     model and precision, the same for all rows
    results.jsonl     one row per job, done or failed; see `ledger`
    pictures/         of the jobs
    inversions/       shared between jobs on the same photo and settings, and the partial ones

A row is written when its pictures are on disk, so a job without a row is simply done again, to the
same names, and to the same bytes if its photo is inverted alone or beside the same others (else to
rounding). Jobs that share an inversion are handed out together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nulltext.constants import __version__
from nulltext.errors import DataError, NulltextError, OptionError
from nulltext.jobs import ledger
from nulltext.jobs.edits import axes_of, base_edit, plan_of
from nulltext.jobs.job_files import EXAMPLE, read_jobs
from nulltext.jobs.ledger import Book, Row
from nulltext.jobs.request import check_options, check_targets, open_inputs
from nulltext.jobs.worker import (
    INVERSIONS,
    PICTURES,
    Identity,
    Setup,
    Unit,
    Worker,
    cut,
    failed,
    grouped,
    unit_of,
)
from nulltext.storage.files import clear_temporaries

if TYPE_CHECKING:
    from nulltext.diffusion.loops import StepInfo

BATCH = ledger.Kind("batch", lambda row: str(row["job"]), (PICTURES, INVERSIONS))


class Executor(Protocol):
    """Makes rows of units; ready when it is constructed, and does lost units again by itself."""

    @property
    def identity(self) -> Identity:
        """Model and precision of its workers."""
        ...

    @property
    def workers(self) -> int:
        """How many work side by side."""
        ...

    def rows(self, groups: Sequence[Sequence[Unit]]) -> Generator[Row, None, None]:
        """Exactly one row for each unit, as they come.

        Raises:
            OutputError: the folder cannot be written any more.
        """
        ...


class LocalExecutor:
    """Invert photos side by side and do units one after the other, in this process; see `Executor`.

    Raises:
        UserError: the model cannot be loaded.
    """

    workers = 1

    def __init__(
        self,
        setup: Setup,
        on_step: Callable[[StepInfo], None] | None = None,
        on_bytes: Callable[[int, int], None] | None = None,
    ) -> None:
        self.worker, self.on_step = Worker(setup, on_bytes), on_step

    @property
    def identity(self) -> Identity:
        return self.worker.identity

    def rows(self, groups: Sequence[Sequence[Unit]]) -> Generator[Row, None, None]:
        for together in cut(groups, self.worker.batch_size):
            if len(together) > 1:
                self.worker.invert([group[0] for group in together], self.on_step)
            for unit in chain(*together):
                yield self.worker.do(unit, self.on_step)


@dataclass(frozen=True)
class Batch:
    """The jobs of a job file."""

    units: Sequence[Unit]
    """Each once, in the file's order."""
    repeated: int
    """Lines that ask for what another line asks for."""


@dataclass(frozen=True)
class BatchProgress:
    """Progress of a batch."""

    done: int
    """Jobs with pictures, earlier runs' included."""
    failed: int
    all_jobs: int
    row: Row | None
    """The newest; None at first."""


@dataclass
class Outcome:
    """Results of a batch's jobs."""

    done: int = 0
    failures: list[Row] = field(default_factory=list)
    remarked: list[Row] = field(default_factory=list)
    """Done ones with remarks."""

    def count(self, row: Row | None) -> None:
        if row is not None and row["status"] == "ok":
            self.done += 1
            self.remarked += [row] if row.get("remarks") else []
        elif row is not None:
            self.failures.append(row)


def read_batch(path: Path, *, limit: int | None = None, within: Path | None = None) -> Batch:
    """Read a job file; opens the files that it names only to tell their contents apart.

    Args:
        limit: read that many jobs at most. within: the folder that their files have to be in.

    Raises:
        DataError: it cannot be read, or holds no job. OptionError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"The limit is {limit}; choose 1 job or more.")
    units: dict[str, Unit] = {}
    count = 0
    for found in read_jobs(path):
        unit = unit_of(found, within)
        units.setdefault(unit.id, unit)
        count += 1
        if count == limit:
            break
    if not units:
        raise DataError(f"'{path}' holds no jobs; {EXAMPLE}.")
    return Batch(list(units.values()), count - len(units))


def check_steps(batch: Batch) -> Iterator[BatchProgress]:
    """Check every job without a model: options, photos, masks, inversions."""
    bad = 0
    for index, unit in enumerate(batch.units, start=1):
        reason, remarks = _checked(unit)
        bad += reason is not None
        row = {**unit.names, "status": "ok", "remarks": remarks}
        if reason is not None:
            row = failed(unit, reason, user_error=True)
        yield BatchProgress(index - bad, bad, len(batch.units), row)


def _checked(unit: Unit) -> tuple[str | None, list[str]]:
    """(why it cannot be done, remarks on how it was read)"""
    if unit.job is None or unit.reason:
        return unit.reason, []
    try:
        options = unit.job.edit_options()
        check_options(options)
        axes_of(options)
        base_edit(options)
        if options.inversion is None:
            plan_of(options)
        inputs = open_inputs(options)
        check_targets(options, inputs.prompt)
    except NulltextError as error:
        return f"{unit.place}: {error}", []
    return None, [*filter(None, [inputs.mask_note])]


def open_batch(
    setup: Setup, identity: Identity, *, fresh: bool = False
) -> AbstractContextManager[Book]:
    from nulltext.models.fingerprint import spellings

    settings = {
        "nulltext": __version__,
        "model": f"{setup.chosen.model} ({identity.fingerprints[0][:8]})",
        "dtype": identity.dtype,
    }
    older = spellings(settings, identity.fingerprints)
    return ledger.open_book(BATCH, setup.folder, settings, fresh=fresh, older=older)


def batch_steps(
    executor: Executor, batch: Batch, book: Book, *, retry_failed: bool = False
) -> Generator[BatchProgress, None, Outcome]:
    """Do every job that has no row yet, yielding first and after each row.

    Args:
        book: from `open_batch`.

    Raises:
        OutputError: the folder cannot be written any more.
    """
    _clear(book.folder)
    wanted = {unit.id for unit in batch.units}
    book.forget(lambda row: row["status"] == "ok" and not _is_there(book.folder, row))
    if retry_failed:
        book.forget_failed()
    outcome = Outcome()
    for row in book.rows:
        if row["job"] in wanted:
            outcome.count(row)
    known = book.keys
    still = [unit for unit in batch.units if unit.id not in known]
    total = len(batch.units)
    yield BatchProgress(outcome.done, len(outcome.failures), total, None)
    for row in executor.rows(grouped(still)):
        book.add(row)
        outcome.count(row)
        yield BatchProgress(outcome.done, len(outcome.failures), total, row)
    _clear(book.folder)
    return outcome


def _is_there(folder: Path, row: Row) -> bool:
    return all((folder / name).is_file() for name in row["outputs"])


def _clear(folder: Path) -> None:
    """Remove unfinished files of killed workers of this machine."""
    clear_temporaries(folder)
    for part in (PICTURES, INVERSIONS):
        for below in (folder / part).iterdir():
            if below.is_dir() and not below.is_symlink():
                clear_temporaries(below)

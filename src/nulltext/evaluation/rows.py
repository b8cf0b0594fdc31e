"""Rows of results: what a row needs, how it is measured and saved, and the folder of all rows.

    settings.json     what every row was made with
    results.jsonl     one row per line: experiment, image, variant, setting, figures, cost
    pictures/         what the rows show
    summary.csv, *.png, *.svg, report.html     made from the rows, anew after each run

A row that fails (a photo that cannot be read, values that become infinite) holds the reason and
stops no other row; only an unwritable folder or exhausted memory ends the run. Rows that exist are
not made again.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from nulltext.errors import OutOfMemoryError, OutputError
from nulltext.evaluation.metrics import MetricValue, Undefined
from nulltext.image.images import to_pil
from nulltext.image.saving import save_image
from nulltext.inversion.record import Inversion
from nulltext.jobs import ledger
from nulltext.jobs.ledger import Book, Row, failure

PICTURES = "pictures"

PhotoT = TypeVar("PhotoT")


class RowKey(NamedTuple):
    """Identity of a row."""

    experiment: str
    image: str
    variant: str
    setting: str
    """As JSON."""


@dataclass(frozen=True)
class Measurement:
    """Content of a row."""

    figures: Mapping[str, MetricValue]
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    """[3, H, W] in [-1, 1], by what they show."""
    inversion: Inversion | None = None
    """The inversion whose cost the row reports."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Texts to keep with the row, such as prompts."""


@dataclass(frozen=True)
class Task:
    """A row that is still to be made."""

    experiment: str
    image: str
    variant: str
    setting: Mapping[str, str | int | float]
    measure: Callable[[Any], Measurement]
    needs: Mapping[Hashable, int] = field(default_factory=dict)
    """Results that tasks of one photo share (inversions, replays, edits), each with the UNet
    evaluations that it takes."""
    evaluations: int = 0
    """UNet evaluations besides."""

    @property
    def key(self) -> RowKey:
        setting = json.dumps(dict(self.setting), sort_keys=True)
        return RowKey(self.experiment, self.image, self.variant, setting)

    @property
    def title(self) -> str:
        settings = [f"{name} = {value}" for name, value in self.setting.items()]
        return f"{self.image}: {', '.join([self.experiment, self.variant, *settings])}"


class OpenTasks(NamedTuple, Generic[PhotoT]):
    """The rows of a photo that are still to be made."""

    photo: PhotoT
    tasks: list[Task]


class Schedule(Generic[PhotoT]):
    """The tasks of a run, photo by photo, without those whose rows are done."""

    def __init__(
        self, photos: Iterable[tuple[PhotoT, Sequence[Task]]], done: Collection[Hashable]
    ) -> None:
        self.keys: list[RowKey] = []
        """Of all rows in their order, including finished ones."""
        self.photos: list[OpenTasks[PhotoT]] = []
        for photo, tasks in photos:
            self.keys += [task.key for task in tasks]
            self.photos.append(OpenTasks(photo, [t for t in tasks if t.key not in done]))

    @property
    def all_rows(self) -> int:
        return len(self.keys)

    @property
    def open_rows(self) -> int:
        return sum(len(each.tasks) for each in self.photos)

    @property
    def evaluations(self) -> int:
        """UNet evaluations of the open tasks; what they share counts once."""
        return sum(sum(costs_of(each.tasks)) for each in self.photos)


@dataclass(frozen=True)
class Progress:
    """Position of a run, for progress bars."""

    rows: int
    """Finished rows, including those of earlier runs."""
    all_rows: int
    evaluations: int
    """Planned UNet evaluations of the tasks that this run has finished."""
    all_evaluations: int
    """Planned UNet evaluations of this run."""
    title: str
    """Of the task that comes next or, with several processes, came last; empty at the end."""


def costs_of(tasks: Sequence[Task]) -> list[int]:
    """Count the UNet evaluations of each task of one photo, after those before it."""
    made: set[Hashable] = set()
    costs = []
    for task in tasks:
        new = task.needs.keys() - made
        costs.append(task.evaluations + sum(task.needs[what] for what in new))
        made |= new
    return costs


def run_tasks(
    schedule: Schedule[PhotoT], book: Book, open_photo: Callable[[PhotoT], Any]
) -> Generator[Progress, None, None]:
    """Make every open row, yielding before each and at the end.

    Args: open_photo: makes what the tasks of a photo measure; called once per photo.
    """
    done, spent, total = schedule.all_rows - schedule.open_rows, 0, schedule.evaluations
    for photo, tasks in schedule.photos:
        opened = open_photo(photo)
        for task, cost in zip(tasks, costs_of(tasks), strict=True):
            yield Progress(done, schedule.all_rows, spent, total, task.title)
            book.add(make_row(task, opened, book.folder))
            done, spent = done + 1, spent + cost
    yield Progress(done, schedule.all_rows, spent, total, "")


def make_row(task: Task, opened_photo: object, folder: Path) -> Row:
    """Measure a task and save its pictures into the folder.

    Raises:
        OutputError: the folder cannot be written any more.
        OutOfMemoryError: the device's memory does not suffice.
    """
    row: Row = {
        "experiment": task.experiment,
        "image": task.image,
        "variant": task.variant,
        "setting": dict(sorted(task.setting.items())),
    }
    started = time.perf_counter()
    try:
        measured = task.measure(opened_photo)
    except (OutOfMemoryError, OutputError):
        raise
    except Exception as error:  # one bad row is no reason to lose the others
        return row | failure(error)
    row |= {"status": "ok", "seconds_row": round(time.perf_counter() - started, 3)}
    figures = measured.figures
    defined = {n: None if isinstance(v, Undefined) else v for n, v in figures.items()}
    assert all(value is None or math.isfinite(value) for value in defined.values()), defined
    row["figures"] = defined
    row["undefined"] = {n: v.reason for n, v in figures.items() if isinstance(v, Undefined)}
    row["notes"] = dict(measured.notes)
    if measured.inversion is not None:
        header = measured.inversion.header
        row["cost"] = {
            "iterations": header.iterations,
            "unet_evaluations": header.unet_evaluations,
            "seconds": round(header.seconds, 3),
        }
    row["pictures"] = {
        shown: _save_picture(picture, task.key, shown, folder)
        for shown, picture in measured.pictures.items()
    }
    return row


def _save_picture(picture: Tensor, key: RowKey, shown: str, folder: Path) -> str:
    parts = [key.image, key.experiment, key.variant]
    parts += [f"{name} {value}" for name, value in json.loads(key.setting).items()]
    parts += [] if shown == "picture" else [shown]
    digest = hashlib.sha256(repr((tuple(key), shown)).encode()).hexdigest()[:8]
    name = "--".join(re.sub(r"[^\w.]+", "-", part) for part in (*parts, digest))
    relative = f"{PICTURES}/{name}.png"
    save_image(to_pil(picture), folder / relative)
    return relative


def key_of(row: Row) -> RowKey:
    setting = json.dumps(row["setting"], sort_keys=True)
    return RowKey(row["experiment"], row["image"], row["variant"], setting)


RESULTS = ledger.Kind("study or benchmark", key_of, (PICTURES,))

open_results = partial(ledger.open_book, RESULTS)
read_results = partial(ledger.read_book, RESULTS)


def finished_keys(
    folder: Path,
    settings: Mapping[str, Any],
    older: Sequence[Mapping[str, Any]],
    *,
    fresh: bool,
    retry_failed: bool,
) -> set[RowKey]:
    """Find the rows in a folder that a run would not make again, without changing anything."""
    rows = [] if fresh else ledger.rows_alike(RESULTS, folder, settings, older)
    return {key_of(row) for row in rows if not (retry_failed and row["status"] == "failed")}


def failed_rows(rows: Iterable[Row], keys: Iterable[RowKey]) -> list[Row]:
    asked = set(keys)
    return [row for row in rows if row["status"] == "failed" and key_of(row) in asked]

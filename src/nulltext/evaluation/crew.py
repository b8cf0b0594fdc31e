"""A study by several processes: photos are handed out, rows come back, one process keeps them.

Photos share nothing, so a row is what it would be in a study by one process, to rounding (products
may be summed in another order with another number of threads). When one process dies, the study
ends with a sentence, its rows kept; a crew whose study is gone ends by itself at the next row.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias

from nulltext.errors import NulltextError, OptionError, WorkerError
from nulltext.evaluation.agreement import open_judge
from nulltext.evaluation.datasets import Item
from nulltext.evaluation.measures import open_lpips
from nulltext.evaluation.plan import Plan
from nulltext.evaluation.results import Book, Row
from nulltext.evaluation.rows import made_row
from nulltext.evaluation.study import Schedule, StudyInfo, costs_of
from nulltext.evaluation.tasks import Task
from nulltext.evaluation.workbench import Workbench
from nulltext.models.load import load
from nulltext.names import Precision

PATIENCE = 1.0
"""Seconds after which a process that waits looks whether the other one is still alive."""

Photo: TypeAlias = tuple[Item, list[Task]]
Queue: TypeAlias = Any
"""Of multiprocessing, which has no public type for it."""


@dataclass(frozen=True)
class Tools:
    """What each process opens for itself; plain data."""

    model: str
    device: str | None
    dtype: Precision
    clip: str | None
    plan: Plan
    folder: Path
    """Of the book."""

    def work(self, photos: Queue, made: Queue, threads: int) -> None:
        """Take photos and put (row, cost) until there are no more; last an error, or None."""
        import torch

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the study's, which ends its crew
        torch.set_num_threads(threads)
        try:
            for row in self._rows(photos):
                made.put(row)
            made.put(None)
        except NulltextError as error:
            made.put(error)

    def _rows(self, photos: Queue) -> Iterator[tuple[Row, int]]:
        plan, model = self.plan, load(self.model, device=self.device, dtype=self.dtype)
        judge, lpips = open_judge(self.clip, model, plan.seed), open_lpips()
        while (photo := _next(photos)) is not None:
            item, tasks = photo
            bench = Workbench(model, item, plan.num_steps, plan.seed, judge, lpips)
            for task, cost in zip(tasks, costs_of(tasks, plan.num_steps), strict=True):
                if not _study_lives():
                    return
                yield made_row(task.key, partial(task.measure, bench), self.folder), cost


def crew_steps(
    tools: Tools, workers: int, schedule: Schedule, book: Book
) -> Generator[StudyInfo, None, None]:
    """`study.study_steps` by several processes; rows come in the order in which they are done.

    Raises:
        OutputError, OutOfMemoryError: as there.
        WorkerError: a process was killed.
    """
    total, spent = schedule.evaluations(tools.plan.num_steps), 0
    done = schedule.all_rows - sum(len(tasks) for _, tasks in schedule.photos)
    with _crew(tools, workers, schedule.photos) as (made, processes):
        yield StudyInfo(done, schedule.all_rows, spent, total, f"{len(processes)} processes begin")
        for row, cost in _arriving(made, processes):
            book.add(row)
            done, spent = done + 1, spent + cost
            doing = f"{row['image']}: {row['experiment']}, {row['variant']}"
            yield StudyInfo(done, schedule.all_rows, spent, total, doing)


def check_workers(workers: int) -> int:
    """Refuse a crew of nobody.

    Raises:
        OptionError: it is none.
    """
    if workers < 1:
        raise OptionError(f"The number of workers is {workers}; choose 1 or more.")
    return workers


@contextlib.contextmanager
def _crew(
    tools: Tools, workers: int, photos: list[Photo]
) -> Iterator[tuple[Queue, list[BaseProcess]]]:
    """Processes that work on the photos, and where their rows arrive; ended when left."""
    context = multiprocessing.get_context("spawn")  # a fork has torch's locks without its threads
    todo, made = context.Queue(), context.Queue()
    open_photos = [photo for photo in photos if photo[1]]
    count = min(workers, len(open_photos))
    for photo in [*open_photos, *[None] * count]:
        todo.put(photo)
    threads = max(1, (os.cpu_count() or 1) // max(1, count))
    processes: list[BaseProcess] = [
        context.Process(target=tools.work, args=(todo, made, threads), daemon=True)
        for _ in range(count)
    ]
    try:
        for process in processes:
            process.start()
        yield made, processes
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()
        todo.cancel_join_thread()


def _arriving(made: Queue, processes: list[BaseProcess]) -> Iterator[tuple[Row, int]]:
    """Rows as they come, until every process has said that it has done.

    Raises:
        NulltextError: a process raised it, or died.
    """
    working = len(processes)
    while working:
        try:
            found = made.get(timeout=PATIENCE)
        except queue.Empty:
            _check_alive(processes)
            continue
        if isinstance(found, NulltextError):
            raise found
        if found is None:
            working -= 1
        else:
            yield found


def _check_alive(processes: list[BaseProcess]) -> None:
    for process in processes:
        if process.exitcode:
            how = f"signal {-process.exitcode}" if process.exitcode < 0 else str(process.exitcode)
            raise WorkerError(
                f"A process of the study ended by itself ({how}); all finished rows are kept: run "
                "the same command again, with fewer --workers if memory ran out."
            )


def _next(photos: Queue) -> Photo | None:
    """The next photo; None if there is none, or nobody who would want it."""
    while _study_lives():
        with contextlib.suppress(queue.Empty):
            photo: Photo | None = photos.get(timeout=PATIENCE)
            return photo
    return None


def _study_lives() -> bool:
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()

"""A study by several processes: photos are handed out, rows come back, one process keeps them.

Photos share nothing, so a row is what it would be in a study by one process, to rounding (products
may be summed in another order with another number of threads). When a process dies with rows that
nobody else makes, the study ends with a sentence, its rows kept. When the study dies, so does its
crew. Each process has a model of its own, the study besides.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias

from nulltext.errors import NulltextError, OptionError, WorkerError
from nulltext.evaluation.agreement import open_judge
from nulltext.evaluation.datasets import Item
from nulltext.evaluation.measures import open_lpips
from nulltext.evaluation.plan import Plan
from nulltext.evaluation.results import PICTURES, Book, Row
from nulltext.evaluation.rows import made_row
from nulltext.evaluation.study import Schedule, StudyInfo, costs_of
from nulltext.evaluation.tasks import Task
from nulltext.evaluation.workbench import Workbench
from nulltext.models.choice import ModelChoice
from nulltext.storage.files import clear_temporaries

PATIENCE = 1.0
"""Seconds without a row after which the study looks whether its processes are alive."""

Photo: TypeAlias = tuple[Item, list[Task]]
Queue: TypeAlias = Any
"""Of multiprocessing, which has no public type for it."""


@dataclass(frozen=True)
class Tools:
    """What each process opens for itself; plain data."""

    chosen: ModelChoice
    clip: str | None
    plan: Plan
    folder: Path
    """Of the book."""

    def work(self, photos: Queue, made: Queue, workers: int) -> None:
        """Take photos and put (row, cost) until there are no more; an error, and it is over."""
        import torch

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the study's, which ends its crew
        threading.Thread(target=_follow_the_study, daemon=True).start()
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
        try:
            for row in self._rows(photos):
                made.put(row)
        except NulltextError as error:
            made.put(error)

    def _rows(self, photos: Queue) -> Iterator[tuple[Row, int]]:
        plan, model = self.plan, self.chosen.load()
        judge, lpips = open_judge(self.clip, model, plan.seed), open_lpips()
        while (photo := photos.get()) is not None:
            item, tasks = photo
            bench = Workbench(model, item, plan.num_steps, plan.seed, judge, lpips)
            for task, cost in zip(tasks, costs_of(tasks), strict=True):
                yield made_row(task.key, partial(task.measure, bench), self.folder), cost


def crew_steps(
    tools: Tools, workers: int, schedule: Schedule, book: Book
) -> Generator[StudyInfo, None, None]:
    """`study.study_steps` by several processes: rows in the order in which they are done, each told
    of when it is.

    Raises:
        UserError: a process could not load the model, write a picture, or find memory.
        WorkerError: a process died.
    """
    total, spent = schedule.evaluations, 0
    still = sum(len(tasks) for _, tasks in schedule.photos)
    done = schedule.all_rows - still
    with _crew(tools, workers, schedule.photos) as (made, processes):
        yield StudyInfo(done, schedule.all_rows, spent, total, "starting")
        for row, cost in _arriving(made, processes, still):
            book.add(row)
            done, spent = done + 1, spent + cost
            doing = f"{row['image']}: {row['experiment']}, {row['variant']}"
            yield StudyInfo(done, schedule.all_rows, spent, total, doing)
    yield StudyInfo(done, schedule.all_rows, spent, total, "")


def check_workers(workers: int) -> int:
    """Refuse a crew of nobody.

    Raises:
        OptionError: it is none.
    """
    if workers < 1:
        raise OptionError(f"--workers is {workers}; choose 1 or more.")
    return workers


@contextlib.contextmanager
def _crew(
    tools: Tools, workers: int, photos: list[Photo]
) -> Iterator[tuple[Queue, list[BaseProcess]]]:
    """Processes that work on the photos, and where their rows arrive; ended when left."""
    context = multiprocessing.get_context("spawn")  # a fork has torch's locks without its threads
    todo, made = context.Queue(), context.Queue()
    still = [photo for photo in photos if photo[1]]
    count = min(workers, len(still))
    for photo in [*still, *[None] * count]:
        todo.put(photo)
    arguments = (todo, made, count)
    processes: list[BaseProcess] = [
        context.Process(target=tools.work, args=arguments, daemon=True) for _ in range(count)
    ]
    clear_temporaries(tools.folder / PICTURES)
    try:
        with _deaf_to_interrupts():
            for process in processes:
                process.start()
        yield made, processes
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()
        todo.cancel_join_thread()
        clear_temporaries(tools.folder / PICTURES)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started inside the block does not hear Ctrl-C, not even while it imports."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _arriving(made: Queue, processes: list[BaseProcess], still: int) -> Iterator[tuple[Row, int]]:
    """Rows as they come, until all that were to be made are there.

    Raises:
        NulltextError: a process raised it.
        WorkerError: a process died, and rows are missing.
    """
    while still:
        ends = [process.exitcode for process in processes]  # before looking for their last rows
        try:
            found = made.get(timeout=PATIENCE)
        except queue.Empty:
            if any(ends) or None not in ends:
                raise _died(ends) from None
            continue
        if isinstance(found, NulltextError):
            raise found
        still -= 1
        yield found


def _died(ends: list[int | None]) -> WorkerError:
    """In words, from exit codes."""
    code = next((end for end in ends if end), 0)
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return WorkerError(
        f"A process of the study ended by itself ({how}); all finished rows are kept: run the same "
        "command again, with fewer --workers if memory ran out."
    )


def _follow_the_study() -> None:
    """End this process when the one that started it has ended."""
    study = multiprocessing.parent_process()
    if study is not None:
        wait([study.sentinel])
        os._exit(1)

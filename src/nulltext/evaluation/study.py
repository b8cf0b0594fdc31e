"""The study: every task of every photo, one row each, by one process or by several.

Photos share nothing, so a row made by one of several processes is the row of a single one, to
rounding (products may be summed in another order with another number of threads). Each process has
its own model, and the process of the study keeps the rows. When a process dies, the study ends
with an error, its rows kept; when the study dies, so do its processes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Collection, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from nulltext.errors import NulltextError, WorkerError
from nulltext.evaluation.datasets import CaptionedPhoto, captions_of_others
from nulltext.evaluation.experiments import PhotoTasks, StudiedPhoto
from nulltext.evaluation.metrics import Judge, load_judge, load_lpips
from nulltext.evaluation.plan import StudyPlan
from nulltext.evaluation.rows import PICTURES, Progress, Schedule, costs_of, make_row, run_tasks
from nulltext.jobs.ledger import Book, Row
from nulltext.models.choice import ModelChoice
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.storage.files import clear_temporaries

POLL = 1.0
"""Seconds without a row after which the study looks whether its processes are alive."""

StudySchedule: TypeAlias = Schedule[CaptionedPhoto]
Queue: TypeAlias = Any
"""Of multiprocessing, which has no public type for it."""


def plan_study(
    photos: Sequence[CaptionedPhoto],
    all_photos: Sequence[CaptionedPhoto],
    plan: StudyPlan,
    done: Collection[Hashable],
    judge_evaluations: int,
) -> StudySchedule:
    """List the rows that are still open.

    Args:
        all_photos: those whose captions may serve as other photos' captions.
        judge_evaluations: UNet evaluations of one verdict on an edit.
    """
    others = captions_of_others(all_photos, plan.seed)
    tasks = (
        PhotoTasks(photo, others[photo.name], plan, judge_evaluations).of_plan() for photo in photos
    )
    return Schedule(zip(photos, tasks, strict=True), done)


def study_steps(
    model: LatentDiffusion, schedule: StudySchedule, plan: StudyPlan, book: Book, judge: Judge
) -> Generator[Progress, None, None]:
    return run_tasks(schedule, book, _opener(model, plan, judge))


def _opener(
    model: LatentDiffusion, plan: StudyPlan, judge: Judge
) -> Callable[[CaptionedPhoto], StudiedPhoto]:
    lpips = load_lpips()
    return lambda item: StudiedPhoto(model, item, plan.num_steps, plan.seed, judge, lpips)


class FinishedRow(NamedTuple):
    """A row as a worker process sends it."""

    row: Row
    cost: int
    """Planned UNet evaluations."""
    title: str


@dataclass(frozen=True)
class StudyWorker:
    """What each process needs to make rows; plain data, sent to the process."""

    chosen: ModelChoice
    clip: str | None
    plan: StudyPlan
    folder: Path
    """Of the results."""

    def work(self, photos: Queue, finished: Queue, workers: int) -> None:
        """Take photos and put finished rows until there are no more photos; put an error at last.

        This is the main function of a process.
        """
        import torch

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study handles Ctrl-C, ends its workers
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
        try:
            model = self.chosen.load()
            open_photo = _opener(model, self.plan, load_judge(self.clip, model, self.plan.seed))
            while (each := photos.get()) is not None:
                opened = open_photo(each.photo)
                for task, cost in zip(each.tasks, costs_of(each.tasks), strict=True):
                    finished.put(FinishedRow(make_row(task, opened, self.folder), cost, task.title))
        except NulltextError as error:
            finished.put(error)


def parallel_study_steps(
    worker: StudyWorker, workers: int, schedule: StudySchedule, book: Book
) -> Generator[Progress, None, None]:
    """Make every open row in several processes, yielding at the start and after each row.

    Raises:
        UserError: a process could not load the model, write a picture, or allocate memory.
        WorkerError: a process died.
    """
    spent, total = 0, schedule.evaluations
    done = schedule.all_rows - schedule.open_rows
    with _started(worker, workers, schedule) as (finished, processes):
        yield Progress(done, schedule.all_rows, spent, total, "starting")
        for found in _arriving(finished, processes, schedule.open_rows):
            book.add(found.row)
            done, spent = done + 1, spent + found.cost
            yield Progress(done, schedule.all_rows, spent, total, found.title)
    yield Progress(done, schedule.all_rows, spent, total, "")


@contextlib.contextmanager
def _started(
    worker: StudyWorker, workers: int, schedule: StudySchedule
) -> Iterator[tuple[Queue, list[BaseProcess]]]:
    """Start processes that work on the photos; yield the queue of their rows, and end them."""
    context = multiprocessing.get_context("spawn")  # a fork has torch's locks without its threads
    photos, finished = context.Queue(), context.Queue()
    still_open = [each for each in schedule.photos if each.tasks]
    count = min(workers, len(still_open))
    for each in [*still_open, *[None] * count]:
        photos.put(each)
    processes: list[BaseProcess] = [
        context.Process(target=worker.work, args=(photos, finished, count), daemon=True)
        for _ in range(count)
    ]
    clear_temporaries(worker.folder / PICTURES)
    try:
        with _interrupts_ignored():
            for process in processes:
                process.start()
        yield finished, processes
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()
        photos.cancel_join_thread()
        clear_temporaries(worker.folder / PICTURES)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let processes that start inside the block ignore Ctrl-C, also while they import."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _arriving(
    finished: Queue, processes: Sequence[BaseProcess], count: int
) -> Iterator[FinishedRow]:
    while count:
        exits = [process.exitcode for process in processes]  # read before their last rows
        try:
            found = finished.get(timeout=POLL)
        except queue.Empty:
            if None in exits and not any(exits):
                continue
            code = next((code for code in exits if code), 0)
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise WorkerError(
                f"A process of the study ended by itself ({how}); all finished rows are kept: run "
                "the same command again, with fewer --workers if memory ran out."
            ) from None
        if isinstance(found, NulltextError):
            raise found
        count -= 1
        yield found


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)

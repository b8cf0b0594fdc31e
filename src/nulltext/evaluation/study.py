"""The study: every task of every photo, one row each, one after the other.

Rows that are there already are not made again. A photo that fails (it cannot be read, its numbers
stop being finite) fails its own rows, with the reason, and nothing else.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nulltext.errors import NulltextError, OutOfMemoryError, OutputError
from nulltext.evaluation.agreement import Judge
from nulltext.evaluation.datasets import Item
from nulltext.evaluation.experiments import strangers, tasks_of
from nulltext.evaluation.measures import Undefined, open_lpips
from nulltext.evaluation.plan import Plan
from nulltext.evaluation.results import PICTURES, Book, Row, finite
from nulltext.evaluation.tasks import Measurement, Task
from nulltext.evaluation.workbench import InversionKey, Workbench
from nulltext.images import save_image, to_pil
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class StudyInfo:
    """Where a study is; for progress bars."""

    rows: int
    """Rows that are done, earlier runs' included."""
    all_rows: int
    evaluations: int
    """UNet evaluations that this run has behind it, as estimated."""
    all_evaluations: int
    """That it will have taken at its end, as estimated."""
    doing: str
    """The row that comes next, in words; empty at the end."""


@dataclass(frozen=True)
class Schedule:
    """What is to be done, photo by photo."""

    photos: list[tuple[Item, list[Task]]]
    """Tasks that are still open."""
    all_rows: int
    """Rows of the whole study, the finished ones included."""

    def evaluations(self, num_steps: int) -> int:
        """UNet evaluations of the open tasks, as estimated; shared inversions count once."""
        return sum(sum(_costs(tasks, num_steps)) for _, tasks in self.photos)


def plan_study(
    items: Sequence[Item],
    everybody: Sequence[Item],
    plan: Plan,
    book: Book | None,
    judge_evaluations: int,
) -> Schedule:
    """What is still open.

    Args:
        items: the photos that are studied. everybody: all that there are, whose captions serve as
            strangers'. book: what is there already; None for nothing.
    """
    done = set() if book is None else book.keys
    others = strangers(everybody, plan.seed)
    photos, count = [], 0
    for item in items:
        tasks = tasks_of(item, others[item.name], plan, judge_evaluations)
        count += len(tasks)
        photos.append((item, [task for task in tasks if task.key not in done]))
    return Schedule(photos, count)


def study_steps(
    model: LatentDiffusion, schedule: Schedule, plan: Plan, book: Book, judge: Judge
) -> Generator[StudyInfo, None, None]:
    """Make every open row, yielding before each and at the end.

    Raises:
        OutputError: the folder cannot be written any more.
        OutOfMemoryError: the device's memory does not suffice.
    """
    lpips = open_lpips()
    spent, total = 0, schedule.evaluations(plan.num_steps)
    done = schedule.all_rows - sum(len(tasks) for _, tasks in schedule.photos)
    for item, tasks in schedule.photos:
        bench = Workbench(model, item, plan.num_steps, plan.seed, judge, lpips)
        for task, cost in zip(tasks, _costs(tasks, plan.num_steps), strict=True):
            doing = f"{item.name}: {task.experiment}, {task.variant}{_said(task)}"
            yield StudyInfo(done, schedule.all_rows, spent, total, doing)
            book.add(_row(bench, task, book))
            done, spent = done + 1, spent + cost
    yield StudyInfo(done, schedule.all_rows, spent, total, "")


def _costs(tasks: Sequence[Task], num_steps: int) -> list[int]:
    """UNet evaluations of each task of one photo, after those before it."""
    made: set[InversionKey] = set()
    costs = []
    for task in tasks:
        new = set(task.needs) - made
        costs.append(task.evaluations + sum(key.evaluations(num_steps) for key in new))
        made |= new
    return costs


def _said(task: Task) -> str:
    return "".join(f", {key} = {value}" for key, value in task.setting.items())


def _row(bench: Workbench, task: Task, book: Book) -> Row:
    row: Row = {
        "experiment": task.experiment,
        "image": task.image,
        "variant": task.variant,
        "setting": dict(task.setting),
    }
    started = time.perf_counter()
    try:
        measured = task.measure(bench)
    except (OutOfMemoryError, OutputError):
        raise
    except NulltextError as error:
        return row | {"status": "failed", "reason": str(error)}
    row |= {"status": "ok", "seconds_row": round(time.perf_counter() - started, 3)}
    return row | _content(measured) | {"pictures": _saved(measured.pictures, task, book)}


def _content(measured: Measurement) -> dict[str, Any]:
    figures = measured.figures
    content: dict[str, Any] = {
        "figures": {
            name: None if isinstance(figure, Undefined) else finite(figure)
            for name, figure in figures.items()
        },
        "undefined": {
            name: figure.reason for name, figure in figures.items() if isinstance(figure, Undefined)
        },
        "notes": dict(measured.notes),
    }
    if measured.inversion is not None:
        header = measured.inversion.header
        content["cost"] = {
            "iterations": header.iterations,
            "unet_evaluations": header.unet_evaluations,
            "seconds": round(header.seconds, 3),
        }
    return content


def _saved(pictures: Any, task: Task, book: Book) -> dict[str, str]:
    """Write the pictures; returns their names relative to the study's folder."""
    names = {}
    for what, picture in pictures.items():
        names[what] = _save(picture, task, what, book)
    return names


def _save(picture: Tensor, task: Task, what: str, book: Book) -> str:
    parts = [task.image, task.experiment, task.variant]
    parts += [f"{key} {value}" for key, value in task.setting.items()]
    parts += [] if what == "picture" else [what]
    digest = hashlib.sha256(repr((task.key, what)).encode()).hexdigest()[:8]
    name = "--".join(re.sub(r"[^\w.]+", "-", part) for part in (*parts, digest))
    relative = f"{PICTURES}/{name}.png"
    save_image(to_pil(picture), book.folder / relative)
    return relative

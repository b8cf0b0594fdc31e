"""The study: every task of every photo, one row each, one after the other.

Rows that are there already are not made again. A photo that fails (it cannot be read, its numbers
stop being finite) fails its own rows, with the reason, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

from nulltext.evaluation.agreement import Judge
from nulltext.evaluation.datasets import Item
from nulltext.evaluation.experiments import strangers, tasks_of
from nulltext.evaluation.measures import open_lpips
from nulltext.evaluation.plan import Plan
from nulltext.evaluation.results import Book
from nulltext.evaluation.rows import made_row
from nulltext.evaluation.tasks import Key, Task
from nulltext.evaluation.workbench import Workbench
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class StudyInfo:
    """Where a study is; for progress bars."""

    rows: int
    """Rows that are done, earlier runs' included."""
    all_rows: int
    evaluations: int
    """UNet evaluations that this run has behind it, as planned."""
    all_evaluations: int
    """That it will have taken at its end, as planned."""
    doing: str
    """The row that comes next, in words; empty at the end."""


@dataclass(frozen=True)
class Schedule:
    """What is to be done, photo by photo."""

    photos: list[tuple[Item, list[Task]]]
    """Tasks that are still open."""
    keys: list[Key]
    """Of all rows in their order, the finished ones included."""

    @property
    def all_rows(self) -> int:
        """How many there are with the finished ones."""
        return len(self.keys)

    @property
    def evaluations(self) -> int:
        """UNet evaluations that the open tasks will take; what they share counts once."""
        return sum(sum(costs_of(tasks)) for _, tasks in self.photos)


def plan_study(
    items: Sequence[Item],
    everybody: Sequence[Item],
    plan: Plan,
    done: Collection[Hashable],
    judge_evaluations: int,
) -> Schedule:
    """What is still open.

    Args:
        items: the photos that are studied. everybody: all that there are, whose captions serve as
            strangers'. done: keys of rows that there are.
    """
    others = strangers(everybody, plan.seed)
    photos, keys = [], list[Key]()
    for item in items:
        tasks = tasks_of(item, others[item.name], plan, judge_evaluations)
        keys += [task.key for task in tasks]
        photos.append((item, [task for task in tasks if task.key not in done]))
    return Schedule(photos, keys)


def study_steps(
    model: LatentDiffusion, schedule: Schedule, plan: Plan, book: Book, judge: Judge
) -> Generator[StudyInfo, None, None]:
    """Make every open row, yielding before each and at the end.

    Raises:
        OutputError: the folder cannot be written any more.
        OutOfMemoryError: the device's memory does not suffice.
    """
    lpips = open_lpips()
    spent, total = 0, schedule.evaluations
    done = schedule.all_rows - sum(len(tasks) for _, tasks in schedule.photos)
    for item, tasks in schedule.photos:
        bench = Workbench(model, item, plan.num_steps, plan.seed, judge, lpips)
        for task, cost in zip(tasks, costs_of(tasks), strict=True):
            doing = f"{item.name}: {task.experiment}, {task.variant}{_said(task)}"
            yield StudyInfo(done, schedule.all_rows, spent, total, doing)
            book.add(made_row(task.key, partial(task.measure, bench), book.folder))
            done, spent = done + 1, spent + cost
    yield StudyInfo(done, schedule.all_rows, spent, total, "")


def costs_of(tasks: Sequence[Task]) -> list[int]:
    """UNet evaluations of each task of one photo, after those before it."""
    made: set[Hashable] = set()
    costs = []
    for task in tasks:
        new = task.needs.keys() - made
        costs.append(task.evaluations + sum(task.needs[what] for what in new))
        made |= new
    return costs


def _said(task: Task) -> str:
    return "".join(f", {key} = {value}" for key, value in task.setting.items())

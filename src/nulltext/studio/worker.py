"""One thread that uses the model: it runs jobs in the order in which they come, and meters them.

A job is a generator of steps, so it can be cancelled between two of them. The time left of a stage
with n of N steps done after s seconds is s (N - n) / n.
"""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from contextlib import closing
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, TypeVar

from PIL import Image

from nulltext.diffusion.loops import StepInfo, run
from nulltext.image.images import to_pil
from nulltext.inversion.previews import Previews

Result = TypeVar("Result")
Steps = Generator[StepInfo, None, Result]

STAGES = {
    "pivot": "Following the photo into noise",
    "optimise": "Learning the way back",
    "correct": "Noting what the way back misses",
    "replay": "Trying the way back",
    "edit": "Painting the edit",
}
"""Stage to its name on the page."""

OPENING_STAGES = ("pivot",)
"""Stages before the main work, whose time left would mislead."""

PREVIEW_SIDE = 320
"""Longest side of a preview in pixels."""


class ReplacedError(CancelledError):
    """Something else has taken the result's place, so there is nothing to tell the user."""


class Job(Future[Result]):
    """A generator of steps that waits for the worker, runs, or has ended."""

    def __init__(
        self, steps: Callable[[], Steps[Result]], on_step: Callable[[StepInfo], None] | None
    ) -> None:
        super().__init__()
        self._steps, self._on_step = steps, on_step
        self._stopping = threading.Event()

    def cancel(self) -> bool:
        """Cancel the job: at once while it waits, before its next step while it runs."""
        self._stopping.set()
        return super().cancel()

    def run(self) -> None:
        if not self.set_running_or_notify_cancel():
            return
        try:
            with closing(self._steps()) as steps:  # closed before the job counts as done
                result = run(steps, self._check)
                self._check()
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(result)

    def _check(self, info: StepInfo | None = None) -> None:
        if self._stopping.is_set():
            raise CancelledError
        if info is not None and self._on_step is not None:
            self._on_step(info)


class Worker:
    """The thread and the queue of its jobs."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._jobs: list[Future[Any]] = []  # not done yet
        threading.Thread(target=self._serve, name="nulltext-studio", daemon=True).start()

    def submit(
        self,
        steps: Callable[[], Steps[Result]],
        on_step: Callable[[StepInfo], None] | None = None,
    ) -> Job[Result]:
        """Put a job at the end of the queue.

        Args:
            steps: makes the generator when it is the job's turn.
            on_step: called with each step, in the worker's thread.
        """
        job = Job(steps, on_step)
        self._jobs.append(job)
        job.add_done_callback(self._jobs.remove)
        self._queue.put(job)
        return job

    def ahead(self, job: Job[Any]) -> int:
        """Count the jobs before this one; 0 once it runs or is done."""
        jobs = list(self._jobs)
        return jobs.index(job) if job in jobs else 0

    def close(self) -> None:
        for job in list(self._jobs):
            job.cancel()
        self._queue.put(None)

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            job.run()


@dataclass(frozen=True)
class Progress:
    """The progress of a job at one moment."""

    doing: str
    done: int = 0
    total: int = 0
    """Steps of this stage; 0 before its first."""
    ahead: int = 0
    """Jobs that come first."""
    seconds_left: float | None = None
    """Of this stage."""
    curve: tuple[float, ...] = ()
    """PSNR of each preview so far, decibels."""
    bound: float | None = None
    """PSNR of the autoencoder's round trip, decibels."""
    picture: str | None = None
    """The last preview as a data URL."""


class Meter:
    """Measures a job's progress in the worker's thread; other threads read it."""

    def __init__(self, doing: str) -> None:
        self.progress = Progress(doing)
        self._previews: Previews | None = None
        self._stage, self._started, self._first = "", time.monotonic(), 0

    def watch(self, previews: Previews, bound: float) -> None:
        """Show previews from now on; `bound` is the PSNR that they can reach."""
        self._previews = previews
        self.progress = replace(self.progress, bound=bound)

    def update(self, info: StepInfo) -> None:
        preview = self._previews.of(info) if self._previews else None
        if preview is not None:
            self.progress = replace(
                self.progress,
                curve=(*self.progress.curve, preview.psnr),
                picture=_data_url(to_pil(preview.picture)),
            )
        now = time.monotonic()
        if info.stage != self._stage:
            self._stage, self._started, self._first = info.stage, now, info.index
        steps = info.index - self._first
        is_known = steps > 0 and info.stage not in OPENING_STAGES
        self.progress = replace(
            self.progress,
            doing=STAGES.get(info.stage, info.stage),
            done=info.index,
            total=info.total,
            seconds_left=(
                (now - self._started) * (info.total - info.index) / steps if is_known else None
            ),
        )


def _data_url(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()

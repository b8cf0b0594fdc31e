"""One model, one thread that uses it, and a line of jobs in front of it: first come, first served.

A job is a generator of steps. Between two of its steps it can be cancelled, and then the next one
begins; nobody has to be listening for that to happen.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from nulltext.diffusion.loops import StepInfo, run

Result = TypeVar("Result")
Steps = Generator[StepInfo, None, Result]


class CancelledError(Exception):
    """The job was cancelled before it ended."""


class ReplacedError(CancelledError):
    """Something else took its place meanwhile, so there is nothing to say about it."""


class Job(Generic[Result]):
    """Work in the line, or at the model, or done."""

    def __init__(self, steps: Callable[[], Steps[Result]], on_step: Callable[[StepInfo], None]):
        """Args: steps: makes the generator, when it is this job's turn."""
        self._steps, self._on_step = steps, on_step
        self._cancelled, self._done = threading.Event(), threading.Event()
        self._result: Result | None = None
        self._error: BaseException | None = None

    def cancel(self) -> None:
        """Stop before the next step, or never begin; a job that is done stays done."""
        self._cancelled.set()

    def wait(self, seconds: float) -> bool:
        """Wait so long at most; whether the job is over."""
        return self._done.wait(seconds)

    def result(self) -> Result:
        """What the job came to, once it is over.

        Raises:
            CancelledError: it was cancelled. Else whatever its steps raised.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def work(self) -> None:
        """Go through the steps, in the calling thread."""
        try:
            self._check(None)
            steps = self._steps()
            try:
                self._result = run(steps, self._check)
                self._check(None)  # cancelled during the last step
            finally:
                steps.close()  # now, not when somebody collects it
        except BaseException as error:  # handed to whoever waits
            self._error = error
        finally:
            self._done.set()

    def _check(self, info: StepInfo | None) -> None:
        if self._cancelled.is_set():
            raise CancelledError
        if info is not None:
            self._on_step(info)


class Worker:
    """The thread that jobs run in."""

    def __init__(self) -> None:
        self._line: deque[Job[Any]] = deque()
        self._current: Job[Any] | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="nulltext-studio", daemon=True)
        self._thread.start()

    def submit(
        self,
        steps: Callable[[], Steps[Result]],
        on_step: Callable[[StepInfo], None] = lambda info: None,  # noqa: ARG005
    ) -> Job[Result]:
        """Put a job at the end of the line."""
        job = Job(steps, on_step)
        with self._changed:
            self._line.append(job)
            self._changed.notify_all()
        return job

    def ahead(self, job: Job[Any]) -> int:
        """How many jobs come before this one; 0 while it runs, or is over."""
        with self._changed:
            if job not in self._line:
                return 0
            return self._line.index(job) + (self._current is not None)

    def cancel(self, job: Job[Any]) -> None:
        """Cancel a job; one that is still in the line is over at once."""
        job.cancel()
        with self._changed:
            waiting = job in self._line
            if waiting:
                self._line.remove(job)
        if waiting:
            job.work()

    def close(self) -> None:
        """Cancel everything and let the thread end."""
        with self._changed:
            self._closed = True
            jobs = [*self._line, *([self._current] if self._current else [])]
            self._changed.notify_all()
        for job in jobs:
            self.cancel(job)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line or self._closed)
                if self._closed:
                    return
                self._current = self._line.popleft()
            self._current.work()
            with self._changed:
                self._current = None

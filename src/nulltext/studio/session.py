"""What belongs to one person: a photo, its inversion, the edits made of it, and one job at most.

Pictures lie as files in the session's own folder, so that a session weighs little while nobody
looks at it, and nothing is left when it ends.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nulltext.diffusion.loops import StepInfo
from nulltext.errors import OptionError
from nulltext.image.images import CropBox
from nulltext.image.photos import Photo
from nulltext.inversion.record import Inversion, InversionHeader
from nulltext.studio.chips import chips_of
from nulltext.studio.forms import Asked, EditForm, InvertForm
from nulltext.studio.meter import Meter, Progress
from nulltext.studio.worker import Job, ReplacedError
from nulltext.words.prompts import TokenizedPrompt

if TYPE_CHECKING:
    from collections.abc import Callable

    from nulltext.studio.house import Studio

GLANCE = 0.25
"""Seconds between two looks at a job."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class OpenPhoto:
    """The photo on the table."""

    path: Path
    """The file as it came."""
    name: str
    """What it was called."""
    size: tuple[int, int]
    """(width, height) of the upright photo."""
    sha256: str
    shown: Path
    """JPEG for the page."""
    crop: CropBox
    """What the page proposes at first."""


@dataclass(frozen=True)
class Inverted:
    """The photo as the model holds it."""

    key: str
    """What it is kept under."""
    file: Path
    form: InvertForm
    header: InversionHeader
    prompt: TokenizedPrompt
    brought: str | None
    """File name of an inversion that was uploaded; None for one made here."""
    cached: bool
    """Whether nothing had to be computed."""


@dataclass(frozen=True)
class Entry:
    """An edit that was made."""

    number: int
    form: EditForm
    inverted: Inverted
    picture: Path
    """PNG at the photo's own size, its settings within."""
    shown: Path
    """JPEG for the page."""
    mask: Path | None
    """PNG of what was painted."""
    label: str
    """What it changes, in short."""
    command: str
    changed_fraction: float
    psnr_outside: float
    psnr_reconstruction: float
    remark: str | None = None
    """What is odd about it."""


@dataclass(frozen=True)
class Field:
    """What a field of the page shall say."""

    value: Any
    revision: int
    """Higher than of all before."""
    ask: int
    """The page's number of what it asked for; it knows what was changed after that."""


class Session:
    """One person's."""

    def __init__(self, studio: Studio, folder: Path) -> None:
        self.studio, self.folder = studio, folder
        self.seen = time.monotonic()
        self.photo: OpenPhoto | None = None
        self.inverted: Inverted | None = None
        self.look: tuple[int, Path] | None = None
        """The word whose attention is shown, and the picture."""
        self.history: list[Entry] = []
        self.strip: list[Entry] = []
        self.result: Entry | None = None
        self.fields: dict[str, Field] = {}
        """What the page's fields shall say; see `revise`."""
        self.opening = 0
        """Number of the photo that was asked for last."""
        self.revision = 0
        self.progress: Progress | None = None
        self.problem: str | None = None
        self.notice: str | None = None
        self.gives_way = False
        """Whether what is being made may be called off by the next thing."""
        self._job: Job[Any] | None = None
        self._verbs = 0
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._serials = itertools.count(1)

    def number(self) -> int:
        """A number that nothing else of this session has."""
        return next(self._numbers)

    def place(self, name: str) -> Path:
        """Where a file of this name can be written: browsers save it under the same."""
        folder = self.folder / str(self.number())
        folder.mkdir(mode=0o700)
        return folder / name

    @property
    def at_work(self) -> bool:
        """Whether a verb runs."""
        return self._verbs > 0

    def serial(self) -> int:
        """A number above all before, so that a page can tell which of two views is newer."""
        return next(self._serials)

    def revise(self, asked: Asked, **fields: Any) -> None:
        """Let the page's fields say this, but those that somebody changed after asking for it."""
        ask = asked.get("ask")
        number = ask if type(ask) is int else 0
        with self._lock:
            self.revision += 1
            new = {name: Field(value, self.revision, number) for name, value in fields.items()}
            self.fields = {**self.fields, **new}

    def begin_edits(self, asked: Asked, inverted: Inverted) -> None:
        """Start from an inversion, with nothing changed."""
        self.inverted, self.look, self.result, self.strip = inverted, None, None, []
        form = inverted.form
        self.revise(
            asked,
            source=form.source,
            proposed=False,
            crop=form.crop.as_list(),
            target=form.source,
            chips=chips_of(inverted.prompt),
        )

    @contextlib.contextmanager
    def unless_replaced(self, still: Callable[[], bool]) -> Iterator[None]:
        """Put something in its place, with the session held.

        Args:
            still: whether what it was made for is still here.

        Raises:
            ReplacedError: it is not.
        """
        with self._lock:
            if not still():
                raise ReplacedError
            yield

    def table(self) -> OpenPhoto:
        """The photo.

        Raises:
            OptionError: there is none.
        """
        if self.photo is None:
            raise OptionError("There is no photo here any more; open one first.")
        return self.photo

    def opened(self) -> Photo:
        """The photo's pixels."""
        return self.studio.photo(self.table().path)

    def inversion(self) -> tuple[Inverted, Inversion]:
        """The inversion and its tensors.

        Raises:
            OptionError: there is none.
        """
        if self.inverted is None:
            raise OptionError("The photo is not inverted yet; do that first.")
        return self.inverted, self.studio.inversion(self.inverted.key, self.inverted.file)

    def do(
        self,
        meter: Meter,
        steps: Callable[[], Generator[StepInfo, None, Result]],
        *,
        gives_way: bool = False,
    ) -> Generator[None, None, Result]:
        """Have the worker do a job; yields whenever there is progress to show.

        Args:
            gives_way: whether the next job of this session may call it off.

        Raises:
            OptionError: another one is still on. CancelledError: this one was called off.
        """
        worker = self.studio.worker
        with self._lock:
            if self._job is not None and not self.gives_way:
                raise OptionError("One thing at a time: wait for what is being made, or cancel it.")
            before, self.gives_way = self._job, gives_way
            job = self._job = worker.submit(steps, meter.show)
        if before is not None:
            worker.cancel(before)
        try:
            while not job.wait(GLANCE):
                self.progress = meter.progress(worker.ahead(job))
                yield
            return job.result()
        finally:
            worker.cancel(job)  # nobody looks any more, or it is over
            with self._lock:
                if self._job is job:
                    self._job = self.progress = None

    def cancel(self) -> None:
        """Call off what is being made."""
        with self._lock:
            job = self._job
        if job is not None:
            self.studio.worker.cancel(job)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """While a verb runs; after the last one, files that nothing points to any more go."""
        with self._lock:
            self._verbs += 1
        try:
            yield
        finally:
            with self._lock:
                self._verbs -= 1
                if self._verbs == 0:
                    self._tidy()

    def _tidy(self) -> None:
        entries = [*self.history, *self.strip, *([self.result] if self.result else [])]
        kept = {path for e in entries for path in (e.picture, e.shown, e.mask, e.inverted.file)}
        kept |= {self.photo.path, self.photo.shown} if self.photo else set()
        kept |= {self.inverted.file} if self.inverted else set()
        kept |= {self.look[1]} if self.look else set()
        folders = {path.parent for path in kept if path}
        with contextlib.suppress(OSError):
            for folder in self.folder.iterdir():
                if folder not in folders:
                    shutil.rmtree(folder)

    def close(self) -> None:
        """Call off the work and remove the files."""
        self.cancel()
        if self.photo is not None:
            self.studio.photos.forget(str(self.photo.path))
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)

"""The state of browser sessions: a photo, its inversion, the edits made of it, and one job each.

Pictures are files in the session's own folder, which is removed with the session.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from PIL import Image

from nulltext.diffusion.loops import StepInfo
from nulltext.errors import OptionError
from nulltext.image.images import CropBox
from nulltext.image.photos import Photo
from nulltext.image.profiles import as_srgb
from nulltext.image.saving import save_image
from nulltext.inversion.record import Inversion, InversionHeader
from nulltext.studio.forms import EditForm, InvertForm, PageRequest, chips_of
from nulltext.studio.resources import Job, Meter, Progress, ReplacedError, Resources
from nulltext.words.prompts import TokenizedPrompt

POLL_SECONDS = 0.25
"""Between two looks at a job's progress."""
PREVIEW_SIDE = 1800
"""Longest side of a picture on the page; downloads have the photo's own size."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class OpenPhoto:
    """The photo that is edited."""

    path: Path
    name: str
    size: tuple[int, int]
    """(width, height) of the upright photo."""
    sha256: str
    colours: str | None
    """See `Photo.colours`."""
    preview: Path
    crop: CropBox
    has_position: bool
    """Whether its file says where it was taken."""


@dataclass(frozen=True)
class OpenInversion:
    """The inversion that edits start from."""

    key: str
    file: Path
    form: InvertForm
    header: InversionHeader
    prompt: TokenizedPrompt
    uploaded_name: str | None
    """File name of an inversion that was uploaded; None for one made here."""
    cached: bool
    """Whether nothing had to be computed."""


@dataclass(frozen=True)
class EditRecord:
    """An edit with its files and figures."""

    number: int
    form: EditForm
    inverted: OpenInversion
    name: str
    """What a download of it is called, without the suffix."""
    picture: Path
    """PNG at the photo's own size, with its settings; `jobs.export` gives it other formats."""
    preview: Path
    """Of `picture`."""
    mask: Path | None
    """PNG of the painted mask."""
    region: Path | None
    """PNG of the region that was found; None where a mask or words said it."""
    label: str
    """What it changes, in short."""
    command: str
    """The command line that makes the same picture."""
    changed_fraction: float
    psnr_outside: float
    remark: str | None
    cut: tuple[str, ...]
    """The sides of the crop at which it stops inside the photo."""
    base: int | None
    """Number of the edit that it starts from; None for the photo."""
    earlier: tuple[EditForm, ...]
    """The edits from the photo to that one."""
    job: Mapping[str, Any]
    """The job that makes it again; see `jobs.settings`."""
    faded: Path | None = None
    """`picture` at the form's opacity; None where that is 1. The page shows it by `preview`."""


@dataclass(frozen=True)
class Export:
    """An edit as a file to download, in the format that was asked for."""

    number: int
    """Of the edit."""
    kind: str
    quality: int | None
    bits: int | None
    gps: bool
    path: Path
    name: str
    """What the download is called."""


@dataclass(frozen=True)
class ShownAttention:
    """The picture of where a word of the source prompt attends."""

    word: int
    picture: Path


@dataclass(frozen=True)
class FieldValue:
    """A value for a field of the page."""

    value: Any
    revision: int
    """Higher than that of all values before."""
    ask: int
    """The number of the page's request; the page knows what was changed after it."""


class Session:
    """State of one browser session."""

    def __init__(self, resources: Resources, folder: Path) -> None:
        self.resources, self.folder = resources, folder
        self.seen = time.monotonic()
        self.photo: OpenPhoto | None = None
        self.inverted: OpenInversion | None = None
        self.look: ShownAttention | None = None
        self.last_look: ShownAttention | None = None
        """The latest, shown or not: a page may still be loading its picture."""
        self.history: list[EditRecord] = []
        self.strip: list[EditRecord] = []
        self.result: EditRecord | None = None
        self.exports: list[Export] = []
        """The latest last."""
        self.exported: int | None = None
        """Number of the page's request that the last of them answers."""
        self.fields: dict[str, FieldValue] = {}
        self.opening = 0
        """Number of the last request for a photo."""
        self.fading: dict[int, int] = {}
        """Numbers of the last requests for another opacity, by the edits'."""
        self.progress: Progress | None = None
        self.problem: str | None = None
        self.wrong: str | None = None
        """The page's field that the problem is about, if it is about one."""
        self.notice: str | None = None
        self.preemptible = False
        """Whether the next job may cancel the running one."""
        self.num_handlers = 0
        """Running handlers; see `handling`."""
        self._job: Job[Any] | None = None
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)

    def next_number(self) -> int:
        return next(self._numbers)

    def new_path(self, name: str) -> Path:
        """Return the path of a new file in a folder of its own, so that it keeps its name."""
        folder = self.folder / str(self.next_number())
        folder.mkdir(mode=0o700)
        return folder / name

    def save_preview(self, image: Image.Image, icc_profile: bytes | None) -> Path:
        """Write a picture for the page, in sRGB."""
        path, reduction = self.new_path("preview.jpg"), max(image.size) // (2 * PREVIEW_SIDE)
        small = image.reduce(max(1, reduction))
        small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
        save_image(as_srgb(small, icc_profile), path)
        return path

    def without_folders(self, message: str) -> str:
        """Return a message with the bare names of this session's files."""
        separator = re.escape(os.sep)
        return re.sub(rf"{re.escape(str(self.folder))}{separator}\d+{separator}", "", message)

    def set_fields(self, request: PageRequest, **values: Any) -> None:
        """Set fields of the page, except those that are changed after the request."""
        ask = request.get("ask")
        number = ask if type(ask) is int else 0
        with self._lock:
            revision = self.next_number()
            new = {name: FieldValue(value, revision, number) for name, value in values.items()}
            self.fields = {**self.fields, **new}

    def start_edits(self, request: PageRequest, inverted: OpenInversion) -> None:
        form, before = inverted.form, self.inverted
        self.inverted, self.look, self.result, self.strip = inverted, None, None, []
        words = {"target": form.source, "chips": chips_of(inverted.prompt)}
        if before is not None and before.form.source == form.source:
            words = {}  # another frame or method: what the user wrote stays
        self.set_fields(
            request,
            source=form.source,
            proposed=False,
            crop=form.crop.as_list(),
            base=None,
            **words,
        )

    def show_edit(self, record: EditRecord) -> None:
        self.result, self.look = record, None
        history = [record, *(old for old in self.history if old.number != record.number)]
        self.history = history[: self.resources.limits.history]

    def replace_edit(self, record: EditRecord) -> None:
        """Put another record in the place of the one with its number."""

        def renewed(old: EditRecord) -> EditRecord:
            return record if old.number == record.number else old

        self.history = [renewed(old) for old in self.history]
        self.strip = [renewed(old) for old in self.strip]
        self.result = renewed(self.result) if self.result else None
        self.exports = [one for one in self.exports if one.number != record.number]

    @contextlib.contextmanager
    def commit(self, is_current: Callable[[], bool]) -> Iterator[None]:
        """Hold the session's lock while a result is stored.

        Args:
            is_current: whether the photo or inversion that it was made of is still open.

        Raises:
            ReplacedError: it is not.
        """
        with self._lock:
            if not is_current():
                raise ReplacedError
            yield

    def current_photo(self) -> OpenPhoto:
        """Return the open photo.

        Raises:
            OptionError: there is none.
        """
        if self.photo is None:
            raise OptionError("There is no photo here any more; open one first.")
        return self.photo

    def load_photo(self) -> Photo:
        return self.resources.photo(self.current_photo().path)

    def current_inversion(self) -> OpenInversion:
        """Return the open inversion.

        Raises:
            OptionError: there is none.
        """
        if self.inverted is None:
            raise OptionError("The photo is not inverted yet; do that first.")
        return self.inverted

    def load_inversion(self, inverted: OpenInversion) -> Inversion:
        inversions = self.resources.inversions
        return inversions.get_or_make(inverted.key, lambda: Inversion.load(inverted.file))

    @contextlib.contextmanager
    def showing(self, progress: Progress) -> Iterator[None]:
        """Show what a handler does, unless a job shows its own progress."""
        if self._job is None:
            self.progress = progress
        try:
            yield
        finally:
            if self.progress is progress:
                self.progress = None

    def run_job(
        self,
        meter: Meter,
        steps: Callable[[], Generator[StepInfo, None, Result]],
        *,
        preemptible: bool = False,
    ) -> Generator[None, None, Result]:
        """Have the worker run a job; yields whenever there is progress to show.

        Args:
            preemptible: whether the next job of this session may cancel it.

        Raises:
            OptionError: another job is running.
            CancelledError: this one was cancelled; ReplacedError if it is preemptible.
        """
        worker = self.resources.worker
        with self._lock:
            if self._job is not None and not self.preemptible:
                raise OptionError("One thing at a time: wait for what is being made, or cancel it.")
            self.cancel()
            self.preemptible = preemptible
            job = self._job = worker.submit(steps, meter.update)
        try:
            while wait([job], POLL_SECONDS).not_done:
                self.progress = replace(meter.progress, ahead=worker.ahead(job))
                yield
            return job.result()
        except CancelledError:
            if preemptible:
                raise ReplacedError from None
            raise
        finally:
            job.cancel()  # the page was closed, or the job is done
            with self._lock:
                if self._job is job:
                    self._job = self.progress = None

    def cancel(self) -> None:
        with self._lock:
            job = self._job
        if job is not None:
            job.cancel()

    @contextlib.contextmanager
    def handling(self) -> Iterator[None]:
        """Count a running handler; after the last one, files that are not shown are removed."""
        with self._lock:
            self.num_handlers += 1
        try:
            yield
        finally:
            with self._lock:
                self.num_handlers -= 1
                if self.num_handlers == 0:
                    self._remove_files()

    def _remove_files(self) -> None:
        records = [*self.history, *self.strip, *([self.result] if self.result else [])]
        kept = {path for r in records for path in _files_of(r)}
        kept |= {self.photo.path, self.photo.preview} if self.photo else set()
        kept |= {self.inverted.file} if self.inverted else set()
        kept |= {self.last_look.picture} if self.last_look else set()
        kept |= {one.path for one in self.exports}
        folders = {path.parent for path in kept if path}
        with contextlib.suppress(OSError):
            for folder in self.folder.iterdir():
                if folder not in folders:
                    shutil.rmtree(folder)

    def clear(self) -> None:
        self.cancel()
        if self.photo is not None:
            self.resources.photos.remove(str(self.photo.path))
        self.inverted = self.look = self.result = None
        self.history, self.strip, self.exports = [], [], []

    def close(self) -> None:
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def _files_of(record: EditRecord) -> tuple[Path | None, ...]:
    shown = (record.picture, record.faded, record.preview, record.mask, record.region)
    return (*shown, record.inverted.file)


class Studio:
    """The sessions that share a model."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def session(self, key: str) -> Session:
        """Get or create the session of a page; evict idle ones."""
        now = time.monotonic()
        with self._lock:
            if key not in self._sessions:
                folder = self.resources.folder / "sessions" / secrets.token_urlsafe(16)
                folder.mkdir(mode=0o700, parents=True)
                self._sessions[key] = Session(self.resources, folder)
            session = self._sessions[key]
            session.seen = now
            self._sessions.move_to_end(key)
            evicted = self._evict(now)
        for other in evicted:
            other.close()
        return session

    def _evict(self, now: float) -> list[Session]:
        """Take out the sessions idle for too long, and the least recent of too many.

        Sessions with a running handler stay.
        """
        limits = self.resources.limits
        free = [key for key, session in self._sessions.items() if session.num_handlers == 0]
        idle = [key for key in free if self._sessions[key].seen < now - limits.idle_seconds]
        excess = max(0, len(self._sessions) - len(idle) - limits.sessions)
        idle += [key for key in free[:-1] if key not in idle][:excess]
        return [self._sessions.pop(key) for key in idle]

    def leave(self, key: str) -> None:
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.close()

    def close(self) -> None:
        self.resources.worker.close()
        with self._lock:
            sessions, self._sessions = [*self._sessions.values()], OrderedDict()
        for session in sessions:
            session.close()
        shutil.rmtree(self.resources.folder, ignore_errors=True)


def url(path: Path) -> str:
    return f"gradio_api/file={quote(str(path))}"

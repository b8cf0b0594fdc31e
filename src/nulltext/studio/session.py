"""The state of a session: a photo, its inversion, the edits made of it, and one job at a time.

A session is what the pages of one photo show. Its pictures are files in a folder of its own;
`keeping` writes the rest of it beside them, so that it goes on where it was after a restart.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
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
from nulltext.studio.resources import (
    Job,
    LRUCache,
    Meter,
    Progress,
    ReplacedError,
    Resources,
)
from nulltext.words.prompts import TokenizedPrompt

POLL_SECONDS = 0.25
"""Between two looks at a job's progress."""
PREVIEW_SIDE = 1800
"""Longest side of a picture on the page; downloads have the photo's own size."""

ANSWERS = 200
"""Requests that are known again if they come twice, as a page has got no answer."""

Result = TypeVar("Result")
Listener = Callable[[dict[str, Any]], None]


class Upload(NamedTuple):
    """A file that has arrived, and its own name, which is for people and commands alone."""

    path: Path
    name: str


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
    page: str
    """The name of the page; several may show the session."""


class Session:
    """State of one session."""

    def __init__(
        self, resources: Resources, folder: Path, on_change: Callable[[Session], None]
    ) -> None:
        """Begin an empty session.

        Args:
            folder: named by the session's id; made when there is a first file.
            on_change: called after each handler and upload.
        """
        self.resources, self.folder, self._on_change = resources, folder, on_change
        self.seen = time.time()
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
        self.running: tuple[str, ...] = ()
        """Verbs whose handlers run; see `handling`."""
        self.listeners: list[Listener] = []
        self.answers = LRUCache[Any](ANSWERS, lambda _: 1)
        """What came of requests, by the page's name and their number."""
        self._left = time.monotonic()
        """When the last listener left."""
        self._upload: tuple[int, Upload] | None = None
        self._job: Job[Any] | None = None
        self._lock = threading.RLock()
        self._numbers = itertools.count(time.time_ns() // 1_000_000)  # grow over restarts, too

    @property
    def id(self) -> str:
        return self.folder.name

    def next_number(self) -> int:
        return next(self._numbers)

    def new_path(self, name: str) -> Path:
        """Return the path of a new file in a folder of its own, so that it keeps its name."""
        folder = self.folder / str(self.next_number())
        self.folder.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700)
        return folder / name

    def add_upload(self, path: Path, name: str) -> int:
        """Take over a file that has arrived; one that was not asked for meanwhile goes."""
        with self._lock:
            own = path.replace(self.new_path("upload"))
            number = int(own.parent.name)
            former, self._upload = self._upload, (number, Upload(own, name))
        if former is not None:
            shutil.rmtree(former[1].path.parent, ignore_errors=True)
        self._on_change(self)
        return number

    def take_upload(self, number: object) -> Upload:
        """Return the file that has arrived, once.

        Raises:
            OptionError: it is another one, or none.
        """
        with self._lock:
            if self._upload is None or type(number) is not int or number != self._upload[0]:
                raise OptionError("No file has arrived; choose it once more.")
            _, upload = self._upload
            self._upload = None
        return upload

    @contextlib.contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Have a function called with every view, from any thread, while the block runs."""
        self.listeners.append(listener)
        try:
            yield
        finally:
            self._left = time.monotonic()
            self.listeners.remove(listener)

    def publish(self, view: dict[str, Any]) -> None:
        for listener in list(self.listeners):
            listener(view)

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
        return re.sub(rf"{re.escape(str(self.folder))}{separator}(\d+{separator})?", "", message)

    def set_fields(self, request: PageRequest, **values: Any) -> None:
        """Set fields of the page, except those that are changed after the request."""
        ask, page = request.get("ask"), request.get("page")
        number, name = ask if type(ask) is int else 0, page if isinstance(page, str) else ""
        with self._lock:
            revision = self.next_number()
            new = {key: FieldValue(value, revision, number, name) for key, value in values.items()}
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
        begun = time.monotonic()
        try:
            while wait([job], POLL_SECONDS).not_done:
                if self._is_abandoned(begun):
                    job.cancel()
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

    def _is_abandoned(self, begun: float) -> bool:
        """Whether no page has shown the session for long, nor since then."""
        limit = self.resources.limits.abandoned_seconds
        return not self.listeners and time.monotonic() - max(begun, self._left) > limit

    @property
    def is_used(self) -> bool:
        return bool(self.running or self.listeners)

    @contextlib.contextmanager
    def handling(self, verb: str) -> Iterator[None]:
        """Count a running handler; after the last one, files that are not shown are removed."""
        with self._lock:
            self.running = (*self.running, verb)
        try:
            yield
        finally:
            with self._lock:
                running = [*self.running]
                running.remove(verb)
                self.running = tuple(running)
            self.seen = time.time()
            self._on_change(self)

    def records(self) -> list[EditRecord]:
        """Return the edits that are kept, each once."""
        kept = [*self.history, *self.strip, *([self.result] if self.result else [])]
        return [*{record.number: record for record in kept}.values()]

    def remove_files(self) -> None:
        """Remove the files that nothing of the session names, unless a handler may be at them."""
        with self._lock:
            if self.running:
                return
            kept = {path for record in self.records() for path in _files_of(record)}
            kept |= {self.photo.path, self.photo.preview} if self.photo else set()
            kept |= {self.inverted.file} if self.inverted else set()
            kept |= {self.last_look.picture} if self.last_look else set()
            kept |= {one.path for one in self.exports}
            kept |= {self._upload[1].path} if self._upload else set()
            folders = {path.parent for path in kept if path}
            with contextlib.suppress(OSError):
                for folder in self.folder.iterdir():
                    if folder.is_dir() and folder not in folders:
                        shutil.rmtree(folder)

    def clear(self) -> None:
        self.cancel()
        if self.photo is not None:
            self.resources.photos.remove(str(self.photo.path))
        self.inverted = self.look = self.result = None
        self.history, self.strip, self.exports = [], [], []

    def close(self) -> None:
        """End what runs, and leave the memory; what is on disk stays."""
        self.cancel()
        if self.photo is not None:
            self.resources.photos.remove(str(self.photo.path))


def _files_of(record: EditRecord) -> tuple[Path | None, ...]:
    shown = (record.picture, record.faded, record.preview, record.mask, record.region)
    return (*shown, record.inverted.file)


def url(path: Path) -> str:
    """Return the address of a session's file, as the page has it."""
    return "/".join(["files", *(quote(part) for part in path.parts[-3:])])

"""What all sessions share: the model and the thread that uses it, limits, and caches in memory.

The worker runs jobs in the order in which they come. A job is a generator of steps, so it can be
cancelled between two of them. The time left of a stage with n of N steps done after s seconds is
s (N - n) / n.

A cached value is a pure function of its key (a photo's file; or photo, crop, prompt, model and
settings of an inversion), so it does not matter which session made it.
"""

from __future__ import annotations

import base64
import io
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from PIL import Image
from torch import Tensor

from nulltext.diffusion.loops import StepInfo, run
from nulltext.image.images import to_pil
from nulltext.image.photos import Photo, load_photo
from nulltext.inversion.previews import Previews
from nulltext.inversion.record import Inversion
from nulltext.models.choice import ModelChoice
from nulltext.models.latent_diffusion import LatentDiffusion

if TYPE_CHECKING:
    from nulltext.captioning.captioner import Captioner


Result = TypeVar("Result")
Steps = Generator[StepInfo, None, Result]

STAGES = {
    "pivot": "Following the photo into noise",
    "optimise": "Learning the way back",
    "correct": "Noting what the way back misses",
    "replay": "Trying the way back",
    "region": "Finding where the edit belongs",
    "edit": "Painting the edit",
    "outline": "Drawing the outline",
    "composite": "Putting the edit into the photo",
    "compare": "Comparing with the photo",
    "encode": "Compressing the picture",
    "write": "Saving the picture",
}
"""Stage to its name on the page."""

OPENING_STAGES = ("pivot", "region")
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

    def __init__(self, doing: str, *, is_one_stage: bool = False) -> None:
        """Args: is_one_stage: `doing` names all stages, as the page shows them."""
        self.progress = Progress(doing)
        self._name = doing if is_one_stage else None
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
            doing=self._name or STAGES.get(info.stage, info.stage),
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


MEGABYTE = 1 << 20
Value = TypeVar("Value")


@dataclass(frozen=True)
class Limits:
    """Bounds that keep a server with many visitors within its memory."""

    upload_bytes: int = 80 * MEGABYTE
    """Largest photo or saved inversion that can be uploaded."""
    pixels: int = 50_000_000
    mask_pixels: int = 4_000_000
    sessions: int = 32
    """Sessions in memory; beyond, those that no page shows are read from disk again."""
    session_bytes: int = 2048 * MEGABYTE
    """Files of a session; beyond, its oldest edits are removed."""
    total_bytes: int = 8192 * MEGABYTE
    """Files of all sessions; beyond, those that were not used for the longest time are removed."""
    kept_seconds: float = 30 * 24 * 60 * 60.0
    """Time after which a session that is not used is removed."""
    abandoned_seconds: float = 10 * 60.0
    """Time without any page after which a session's job is cancelled."""
    history: int = 20
    """Edits in a session's history; beyond, the oldest is removed."""
    exports: int = 4
    """Downloads in other formats that a session keeps; beyond, the oldest is made again."""
    cache_bytes: int = 256 * MEGABYTE
    """Of each cache: decoded photos, inversions, attention maps."""


class LRUCache(Generic[Value]):
    """A cache of bounded size for several threads; the least recently used values go first."""

    def __init__(self, max_bytes: int, size_of: Callable[[Value], int]) -> None:
        self.max_bytes, self.size_of, self.bytes = max_bytes, size_of, 0
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Value | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: str, value: Value) -> None:
        """Store a value, unless it alone is larger than the cache."""
        size = self.size_of(value)
        with self._lock:
            self._remove(key)
            if size > self.max_bytes:
                return
            self._values[key] = value
            self.bytes += size
            while self.bytes > self.max_bytes:
                self._remove(next(iter(self._values)))

    def get_or_make(self, key: str, make: Callable[[], Value]) -> Value:
        value = self.get(key)
        if value is None:
            value = make()
            self.put(key, value)
        return value

    def remove(self, key: str) -> None:
        with self._lock:
            self._remove(key)

    def _remove(self, key: str) -> None:
        if key in self._values:
            self.bytes -= self.size_of(self._values.pop(key))


@dataclass
class Resources:
    """The model, its worker and the caches."""

    model: LatentDiffusion
    folder: Path
    """Private, for everything that is written."""
    chosen: ModelChoice
    captioner: Captioner | None = None
    limits: Limits = field(default_factory=Limits)
    is_kept: bool = True
    """Whether sessions outlive the server."""
    boot: str = field(default_factory=secrets.token_hex)
    """Another one whenever the server starts."""

    def __post_init__(self) -> None:
        # Targets pass one at a time, so that one of several is bit for bit what it is alone.
        self.model = replace(self.model, memory=replace(self.model.memory, targets=1))
        self.worker = Worker()
        self.decoding = threading.Lock()
        """Held for a download, another opacity or a zoom: one picture at a time is in memory."""
        size = self.limits.cache_bytes
        self.photos = LRUCache[Photo](size, _photo_bytes)
        self.inversions = LRUCache[Inversion](size, lambda one: _bytes([*one.tensors().values()]))
        self.maps = LRUCache[list[Tensor]](size, _bytes)

    def photo(self, path: Path) -> Photo:
        limit = self.limits.pixels
        return self.photos.get_or_make(str(path), lambda: load_photo(path, max_pixels=limit))


def _photo_bytes(photo: Photo) -> int:
    planes = 3 + (4 if photo.alpha is not None else 0)
    return planes * photo.image.width * photo.image.height


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)

"""What all sessions share: the model and its worker, limits, and caches in memory.

A cached value is a pure function of its key (a photo's file; or photo, crop, prompt, model and
settings of an inversion), so it does not matter which session made it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import Tensor

from nulltext.image.photos import Photo, load_photo
from nulltext.inversion.record import Inversion
from nulltext.models.choice import ModelChoice
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.studio.worker import Worker

if TYPE_CHECKING:
    from nulltext.captioning.captioner import Captioner

MEGABYTE = 1 << 20
Value = TypeVar("Value")


@dataclass(frozen=True)
class Limits:
    """Bounds that keep a server with many visitors within its memory."""

    upload_bytes: int = 80 * MEGABYTE
    """Largest photo or saved inversion that can be uploaded."""
    pixels: int = 50_000_000
    """Largest photo that is decoded."""
    mask_pixels: int = 4_000_000
    """Largest painted mask."""
    sessions: int = 32
    """Sessions at once; beyond, the one that was idle longest is closed."""
    idle_seconds: float = 2 * 60 * 60.0
    """Time without a request after which a session is closed."""
    history: int = 20
    """Edits in a session's history; beyond, the oldest is removed."""
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
    """The options that the model was loaded with."""
    captioner: Captioner | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        # Targets pass one at a time, so that one of several is bit for bit what it is alone.
        self.model = replace(self.model, memory=replace(self.model.memory, targets=1))
        self.worker = Worker()
        size = self.limits.cache_bytes
        self.photos = LRUCache[Photo](size, _photo_bytes)
        self.inversions = LRUCache[Inversion](size, lambda one: _bytes([*one.tensors().values()]))
        self.maps = LRUCache[list[Tensor]](size, _bytes)

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    def photo(self, path: Path) -> Photo:
        limit = self.limits.pixels
        return self.photos.get_or_make(str(path), lambda: load_photo(path, max_pixels=limit))


def _photo_bytes(photo: Photo) -> int:
    planes = 3 + (4 if photo.alpha is not None else 0)
    return planes * photo.image.width * photo.image.height


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)

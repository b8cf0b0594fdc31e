"""What all visitors share: the model and its worker, the shelves, and the list of sessions.

Everything on the shelves is a pure function of what it is kept under (a photo's bytes; photo, crop,
prompt, model and settings of an inversion), so it does not matter who made it first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from nulltext.image.photos import Photo, load_photo
from nulltext.inversion.record import Inversion
from nulltext.models.choice import ModelChoice
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.studio.limits import Limits
from nulltext.studio.session import Session
from nulltext.studio.shelf import Shelf
from nulltext.studio.worker import Worker

if TYPE_CHECKING:
    from nulltext.captioning.captioner import Captioner
    from nulltext.studio.forms import InvertForm


class Studio:
    """One model and the people who work with it."""

    def __init__(
        self,
        model: LatentDiffusion,
        folder: Path,
        *,
        chosen: ModelChoice,
        captioner: Captioner | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Args:
        folder: private, for everything that is written; removed by `close`.
        chosen: as the command line took it.
        """
        # Targets pass one at a time, so that one of several is bit for bit what it is alone.
        self.model = replace(model, memory=replace(model.memory, targets=1))
        self.folder, self.chosen = folder, chosen
        self.captioner, self.limits = captioner, limits or Limits()
        self.worker = Worker()
        self.photos = Shelf[Photo](self.limits.shelf_bytes)
        self.inversions = Shelf[Inversion](self.limits.shelf_bytes)
        self.maps = Shelf[list[Tensor]](self.limits.shelf_bytes)
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def uploads(self) -> Path:
        """Where files arrive."""
        return self.folder / "uploads"

    def session(self, key: str) -> Session:
        """Somebody's session, made at first sight; whoever was away too long makes room."""
        now = time.monotonic()
        with self._lock:
            if key not in self._sessions:
                own = self.folder / "sessions" / secrets.token_urlsafe(16)
                own.mkdir(mode=0o700, parents=True)
                self._sessions[key] = Session(self, own)
            found = self._sessions[key]
            found.seen = now
            self._sessions.move_to_end(key)
            away = self._too_many(now)
        for other in away:
            other.close()
        return found

    def _too_many(self, now: float) -> list[Session]:
        """Take out the sessions that are idle, and the longest unseen of too many.

        Nobody who is having something made has to go.
        """
        at_rest = [key for key, session in self._sessions.items() if not session.at_work]
        latest = now - self.limits.idle_seconds
        idle = [key for key in at_rest if self._sessions[key].seen < latest]
        excess = max(0, len(self._sessions) - len(idle) - self.limits.sessions)
        idle += [key for key in at_rest[:-1] if key not in idle][:excess]
        return [self._sessions.pop(key) for key in idle]

    def leave(self, key: str) -> None:
        """Somebody closed the page: nothing of theirs stays."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.close()

    def close(self) -> None:
        """Stop the work and remove every file."""
        self.worker.close()
        with self._lock:
            sessions, self._sessions = [*self._sessions.values()], OrderedDict()
        for session in sessions:
            session.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)

    def photo(self, path: Path) -> Photo:
        """A decoded photo, from the shelf or from its file."""
        kept = self.photos.get(str(path))
        if kept is None:
            kept = load_photo(path, max_pixels=self.limits.pixels)
            planes = 3 + (4 if kept.alpha is not None else 0)
            self.photos.put(str(path), kept, planes * kept.image.width * kept.image.height)
        return kept

    def inversion(self, key: str, path: Path) -> Inversion:
        """An inversion, from the shelf or from a session's file."""
        kept = self.inversions.get(key)
        if kept is None:
            kept = Inversion.load(path)
            self.keep_inversion(key, kept)
        return kept

    def keep_inversion(self, key: str, inversion: Inversion) -> None:
        """Put an inversion on the shelf."""
        size = sum(t.numel() * t.element_size() for t in inversion.tensors().values())
        self.inversions.put(key, inversion, size)

    def keep_maps(self, key: str, maps: list[Tensor]) -> None:
        """Put the words' heat maps of an inversion on the shelf."""
        self.maps.put(key, maps, sum(t.numel() * t.element_size() for t in maps))

    def key_of(self, photo_sha256: str, form: InvertForm) -> str:
        """What an inversion depends on: photo, crop, prompt, model, settings."""
        plan = form.plan()
        parts = {
            "photo": photo_sha256,
            "crop": form.crop.as_list(),
            "prompt": form.source,
            "model": self.model.fingerprint,
            "method": [plan.method.name, asdict(plan.method)],  # type: ignore[call-overload]
            "steps": plan.num_steps,
            "guidance": self.model.guidance_scale if form.guidance is None else form.guidance,
            "seed": form.seed,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

"""All sessions of a studio: those in memory, those on disk, and the bounds of both."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from nulltext.errors import NulltextError
from nulltext.studio.keeping import RECORD, restore_session, save_session
from nulltext.studio.resources import Resources
from nulltext.studio.session import Session

LOG = logging.getLogger(__name__)

ID = re.compile(r"[0-9a-f]{32}")
"""Names of sessions: 128 bits that a page has drawn at random."""


class Studio:
    """The sessions that share a model."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.folder, self._incoming = (resources.folder / name for name in ("sessions", "incoming"))
        shutil.rmtree(self._incoming, ignore_errors=True)
        for folder in (self.folder, self._incoming):
            folder.mkdir(mode=0o700, exist_ok=True)
        self._loaded: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.RLock()
        self._arriving = 0
        """Bytes of uploads under way."""
        self._kept: dict[str, tuple[float, int]] = {}
        """By session: when it was used last, and the bytes of its files."""
        for folder in self.folder.iterdir():
            if (folder / RECORD).is_file():
                self._kept[folder.name] = (folder / RECORD).stat().st_mtime, _bytes_in(folder)
            else:  # a photo that was never opened
                shutil.rmtree(folder, ignore_errors=True)
        self._make_room(0)

    def session(self, key: str) -> Session | None:
        """Return the session of that name, from memory, from disk, or a new one.

        Returns None if it is no name of a session.
        """
        if not ID.fullmatch(key):
            return None
        with self._lock:
            session = self._loaded.get(key)
            if session is None:
                session = self._loaded[key] = self._read(key)
                self._unload()
            self._loaded.move_to_end(key)
            session.seen = time.time()
        return session

    def find(self, key: str) -> Session | None:
        """Return the session of that name, if there is one already."""
        known = key in self._loaded or key in self._kept
        return self.session(key) if known else None

    def _read(self, key: str) -> Session:
        session = Session(self.resources, self.folder / key, self._keep)
        if (session.folder / RECORD).is_file():
            try:
                restore_session(session)
            except (OSError, ValueError, KeyError, TypeError, NulltextError) as error:
                LOG.warning("The session in %s cannot be read (%s)", session.folder, error)
                with contextlib.suppress(OSError):
                    session.folder.rename(session.folder.with_name(f"{key}-damaged"))
                return Session(self.resources, session.folder, self._keep)
        return session

    def _unload(self) -> None:
        """Take the sessions that are in memory beyond the limit, and not in use, out of it."""
        idle = [key for key, one in self._loaded.items() if not one.is_used][:-1]
        for key in idle[: max(0, len(self._loaded) - self.resources.limits.sessions)]:
            self._loaded.pop(key).close()

    def _keep(self, session: Session) -> None:
        """Write down what has changed in a session."""
        with self._lock:
            if self._loaded.get(session.id) is not session:
                return  # it was removed
            session.remove_files()
            while _bytes_in(session.folder) > self.resources.limits.session_bytes:
                if len(session.history) < 2 or session.running:
                    break
                session.history = session.history[:-1]
                session.remove_files()
            if session.photo is not None:
                save_session(session)
            self._kept[session.id] = session.seen, _bytes_in(session.folder)
            self._make_room(0)

    def _make_room(self, more: int) -> bool:
        """Remove sessions that nobody uses until there is room for `more` bytes.

        Those whose photo was never opened go first, then those that were not used for the longest
        time. Returns whether there is room.
        """
        limits, oldest = self.resources.limits, time.time() - self.resources.limits.kept_seconds
        total = self._arriving + more + sum(size for _, size in self._kept.values())

        def order(key: str) -> tuple[bool, float]:
            return (self.folder / key / RECORD).is_file(), self._kept[key][0]

        for key in sorted(self._kept, key=order):
            seen, size = self._kept[key]
            is_used = key in self._loaded and self._loaded[key].is_used
            if not is_used and (total > limits.total_bytes or seen < oldest):
                self.forget(key)
                total -= size
        return total <= limits.total_bytes

    @contextlib.contextmanager
    def receiving(self, length: int) -> Iterator[Path | None]:
        """Yield the path for a file of `length` bytes that arrives; None: there is no room."""
        with self._lock:
            if not self._make_room(length):
                length = 0
                path = None
            else:
                path = self._incoming / secrets.token_hex(16)
            self._arriving += length
        try:
            yield path
        finally:
            with self._lock:
                self._arriving -= length
            if path is not None:
                path.unlink(missing_ok=True)

    def file(self, key: str, number: int, name: str) -> Path | None:
        """Return a file of a session; None where there is none."""
        path = self.folder / key / str(number) / name
        is_plain = ID.fullmatch(key) and Path(name).name == name and name not in (".", "..")
        return path if is_plain and path.is_file() else None

    def forget(self, key: str) -> None:
        """Remove a session and its files."""
        with self._lock:
            session = self._loaded.pop(key, None)
            known = self._kept.pop(key, None)
        if session is not None:
            session.close()
        if session is not None or known is not None:
            shutil.rmtree(self.folder / key, ignore_errors=True)

    def close(self) -> None:
        """End all jobs; what is on disk stays."""
        self.resources.worker.close()
        with self._lock:
            sessions = [*self._loaded.values()]
        for session in sessions:
            session.close()


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                total += (Path(parent) / name).stat().st_size
    return total

"""A studio on a tiny model, and what a page would send it."""

from __future__ import annotations

import contextlib
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nulltext
from nulltext.diffusion.levels import Level
from nulltext.diffusion.loops import StepInfo
from nulltext.models.choice import ModelChoice
from nulltext.models.side_files import KnownWords
from nulltext.studio.handlers import handle
from nulltext.studio.resources import Resources
from nulltext.studio.server import private_folder
from nulltext.studio.session import Session
from nulltext.studio.sessions import Studio

STEPS = 3
TAUGHT = KnownWords(
    ("cat", "flower", "red", "white", "dark"),
    ("a", "photo", "of", "with", "background"),
    {"kind": ("cat", "flower"), "colour": ("red", "white"), "background": ("dark", "white")},
)
"""Words of a model that was taught few."""


@contextlib.contextmanager
def studio_on(
    model: nulltext.LatentDiffusion, name: str, folder: Path | None = None, **more: Any
) -> Iterator[Studio]:
    """A studio in a folder of its own, which goes with it, or in one that is given."""
    with contextlib.nullcontext(folder) if folder else private_folder() as place:
        studio = Studio(Resources(model, place, ModelChoice(name), **more))
        try:
            yield studio
        finally:
            studio.close()


class Visitor:
    """Somebody with a page open."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.key = studio, uuid.uuid4().hex
        self.views: list[dict[str, Any]] = []

    @property
    def session(self) -> Session:
        session = self.studio.session(self.key)
        assert session is not None
        return session

    def start(self, verb: str, **asked: Any) -> Iterator[dict[str, Any]]:
        """The views of a request as they come; the request has begun."""
        views = handle(self.session, verb, asked)
        next(views)
        return views

    def ask(self, verb: str, **asked: Any) -> dict[str, Any]:
        """The last view of what comes back; all are kept."""
        self.views = list(handle(self.session, verb, asked))
        return self.views[-1]

    def upload(self, path: Path, name: str | None = None) -> int:
        """A file as it arrives."""
        with self.studio.receiving(path.stat().st_size) as place:
            assert place is not None
            shutil.copy(path, place)
            return self.session.add_upload(place, path.name if name is None else name)

    def open(self, path: Path) -> dict[str, Any]:
        return self.ask("open", file=self.upload(path))

    def invert(self, source: str = "a red cat", **more: Any) -> dict[str, Any]:
        return self.ask("invert", **{"source": source, "steps": STEPS, **more})

    def leave(self) -> None:
        self.studio.forget(self.key)

    @property
    def folder(self) -> Path:
        return self.session.folder

    def local(self, url: str) -> Path:
        """The file that the page finds at an address."""
        files, *place = unquote(url).split("/")
        assert files == "files"
        return self.studio.folder.joinpath(*place)


class Gate:
    """A job that goes on only when it is let."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def steps(self) -> Iterator[StepInfo]:
        self.begun.set()
        while not self.open.wait(0.01):
            yield StepInfo("edit", 1, 2, Level(1.0, 0.0, 0))

"""Ask the hub for a commit and download files of it, through the hub's own client."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nulltext.errors import ModelError, OutputError
from nulltext.storage.files import replace_file

logger = logging.getLogger(__name__)

OnBytes = Callable[[int, int], None]
"""Is told how many bytes of how many have come; may be called from another thread."""

COMMIT = re.compile("[0-9a-f]{40}")

PATIENCE = 4.0, 5.0
"""Seconds that the hub has to answer, try by try; HF_HUB_ETAG_TIMEOUT stands in for them."""


@dataclass(frozen=True)
class HubModel:
    """A repository of the hub at a revision, and a file of it where one is meant."""

    repository: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        name = f"{self.repository}/{self.file}" if self.file else self.repository
        return name if self.revision == "main" else f"{name}@{self.revision}"

    @property
    def cache(self) -> Path:
        """Where the client keeps what it has of the repository."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        name = repo_folder_name(repo_id=self.repository, repo_type="model")
        return Path(constants.HF_HUB_CACHE) / name

    @property
    def snapshot(self) -> Path | None:
        """The folder of the commit that the revision was when the hub was last asked."""
        commit = self.revision
        if not COMMIT.fullmatch(commit):
            try:
                commit = (self.cache / "refs" / commit).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                return None
        folder = self.cache / "snapshots" / commit
        return folder if COMMIT.fullmatch(commit) and folder.is_dir() else None


@dataclass(frozen=True)
class HubFile:
    """A file of a commit."""

    size: int
    blob: str
    """Name of its content in the cache."""


@dataclass(frozen=True)
class Commit:
    """A commit of a repository, and the files that it has."""

    name: HubModel
    sha: str
    files: Mapping[str, HubFile]

    @property
    def folder(self) -> Path:
        """Where the client puts its files."""
        return self.name.cache / "snapshots" / self.sha

    def download(self, file: str, tell: Callable[[int], None] = lambda _: None) -> Path:
        """A file, from the cache if it is there.

        Args:
            tell: is called with the number of bytes that have come.
        """
        from huggingface_hub import hf_hub_download

        bar: Any = _counter(tell)
        path = hf_hub_download(self.name.repository, file, revision=self.sha, tqdm_class=bar)
        return Path(path)

    def download_all(self, files: Sequence[str], on_bytes: OnBytes | None) -> None:
        """Download files; then note in the cache that the revision is this commit.

        Raises:
            ModelError: the disk has less room than they need.
        """
        missing = [file for file in files if not (self.folder / file).is_file()]
        blobs = self.name.cache / "blobs"
        sizes = {
            file: 0 if (blobs / self.files[file].blob).is_file() else self.files[file].size
            for file in missing
        }
        total, done = sum(sizes.values()), 0
        self._check_room(total)
        tell = on_bytes if on_bytes and total else lambda _done, _total: None
        tell(0, total)
        for file, size in sizes.items():

            def count(come: int, before: int = done, most: int = size) -> None:
                tell(before + min(come, most), total)

            self.download(file, count)
            done += size
            tell(done, total)
        self._remember()

    def _check_room(self, size: int) -> None:
        cache = self.name.cache.parent
        place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
        free = shutil.disk_usage(place).free
        if free < size:
            raise ModelError(
                f"The hub model '{self.name}' needs {_room(size)} more in the cache {cache}, whose "
                f"disk has {_room(free)} free; make room, or set HF_HOME to a folder on another "
                "disk."
            )

    def _remember(self) -> None:
        """Only once all files are here: what the revision was before may be complete."""
        if self.name.snapshot != self.folder:
            ref = self.name.cache / "refs" / self.name.revision
            with contextlib.suppress(OSError, OutputError):  # the cache may be read-only
                ref.parent.mkdir(parents=True, exist_ok=True)
                replace_file(ref, self.sha.encode())


def ask(name: HubModel, patience: Sequence[float]) -> Commit:
    """The commit that a revision is, with its files.

    Args:
        patience: seconds that the hub has to answer, try by try.

    Raises:
        ModelError: the answer is no hub's.
        Exception: of the hub's client.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_ETAG_TIMEOUT != constants.DEFAULT_ETAG_TIMEOUT:
        patience = [constants.HF_HUB_ETAG_TIMEOUT] * len(patience)

    def info(seconds: float) -> Any:
        return HfApi().model_info(
            name.repository, revision=name.revision, files_metadata=True, timeout=seconds
        )

    for seconds in patience[:-1]:
        try:
            return _commit(name, _within(seconds, info))
        except (HfHubHTTPError, ModelError):
            raise
        except Exception as error:  # of the library that speaks HTTP for the client
            logger.info("load: the hub does not answer (%s); once more", type(error).__name__)
    return _commit(name, _within(patience[-1], info))


def _commit(name: HubModel, info: Any) -> Commit:
    if not COMMIT.fullmatch(str(info.sha)):
        raise ModelError(f"The hub names no commit of '{name}'; check HF_ENDPOINT.")
    files = {}
    for file in info.siblings or []:
        blob = file.lfs.sha256 if file.lfs else file.blob_id
        files[file.rfilename] = HubFile(file.size or 0, str(blob))
    return Commit(name, info.sha, files)


def _within(seconds: float, call: Callable[[float], Any]) -> Any:
    """Call a function that may take longer than it is told.

    The client gives that time to each address of a host, and no limit to looking up its name.

    Raises:
        TimeoutError: it did not return; its thread is left behind.
    """
    outcome: list[tuple[Any, Exception | None]] = []

    def work() -> None:
        try:
            outcome.append((call(seconds), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    answer, error = outcome[0]
    if error is not None:
        raise error
    return answer


def _counter(tell: Callable[[int], None]) -> type:
    """A class that takes the place of the client's progress bar for one file."""

    class Counter:
        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            self.n = initial

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            tell(self.n)

        def __enter__(self) -> Counter:
            return self

        def ignore(self, *_: object, **__: object) -> None:
            """Of what else the client calls, nothing is shown."""

        update_transfer = set_postfix_str = set_transfer_postfix_str = ignore
        set_description = set_description_str = refresh = close = __exit__ = ignore

    return Counter


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Keep the client's warnings off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _room(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

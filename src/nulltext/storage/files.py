"""Output files: written whole, or not at all.

The new file is complete on disk under a temporary name before it takes its own, so an older file
survives every failure. A folder that one process at a time may write to is `locked`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from nulltext.errors import OutputError, reason_of
from nulltext.logs import timed

logger = logging.getLogger(__name__)

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
"""Name of the empty file in a folder that `locked` holds; by itself it means nothing."""

S_IWRITE_ALL = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def named_path(text: str | Path) -> Path:
    """A path as a person wrote it, with ~ for the home folder of somebody who has one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def exists(path: Path) -> bool:
    """Whether anything has this name, which may be none that a file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def check_target(path: str | Path) -> Path:
    """The file behind any symbolic link, found to be writable now; leaves no trace.

    Raises:
        OutputError: the name is no regular file's, or its folder is missing, read-only or full.
    """
    target = _regular_target(path)
    with _temporary_beside(target) as temporary, temporary.open("xb"):
        pass
    return target


def replace_file(path: str | Path, data: bytes) -> None:
    """Write `data` under a temporary name in the same folder, then rename.

    Raises:
        OutputError: as in `check_target`; an older file is as it was.
    """
    target = _regular_target(path)
    said = timed(logger, "write: %s, %d bytes", path, len(data))
    with said, _temporary_beside(target) as temporary:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder to write into, which takes the place of `folder` when the block ends well.

    Its files get the permissions of any new file; some libraries write for the owner alone.

    Raises:
        OutputError: the disk is full, read-only, or the like; an older folder is as it was.
    """
    target = folder.absolute()
    fresh, older = (target.with_name(f"{_own_prefix()}{uuid.uuid4().hex}") for _ in range(2))
    try:
        fresh.mkdir(parents=True)
        yield fresh
        _give_usual_permissions(fresh)
        if target.exists():
            target.replace(older)
        try:
            fresh.replace(target)
        except OSError:
            if older.exists():
                older.replace(target)
            raise
        shutil.rmtree(older, ignore_errors=True)  # only now that it is not needed any more
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _give_usual_permissions(folder: Path) -> None:
    """To all files in a folder, what a new file gets."""
    (folder / LOCK).touch()
    usual = stat.S_IMODE((folder / LOCK).stat().st_mode)
    (folder / LOCK).unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(usual)


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep other processes that ask for the same folder out of it while the block runs.

    The system lets go however the process ends, so no lock is ever left behind; the file `LOCK`
    stays. Where the system or the file system has no locks, there is none.

    Args:
        folder: exists.

    Raises:
        OutputError: another process holds it, or it cannot be written to.
    """
    try:
        descriptor = os.open(Path(folder) / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        hold(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def hold(descriptor: int, folder: str | Path) -> None:
    """Lock an open file of a folder until it is closed; see `locked`.

    Raises:
        OutputError: another process holds it.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"'{folder}' is being written by another nulltext: wait until it ends, or choose "
            "another folder."
        ) from error
    except OSError:  # a network file system without locks
        return


def unwritable(path: str | Path, error: Exception) -> OutputError:
    """The OutputError for what a system call or an encoder raised."""
    return OutputError(
        f"'{path}' cannot be written ({reason_of(error)}): free some space or choose another place."
    )


def _regular_target(path: str | Path) -> Path:
    """The file behind any symbolic link, or why there can be none."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG | S_IWRITE_ALL  # what it will be
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"'{path}' is a folder: give the name of a file.")
    if not stat.S_ISREG(mode):
        raise OutputError(f"'{path}' is not a regular file: give another name.")
    if mode & S_IWRITE_ALL == 0:
        raise OutputError(f"'{path}' is read-only: choose another name.")
    target = Path(path).resolve() if Path(path).is_symlink() else Path(path)
    if not target.parent.exists():
        raise OutputError(f"The folder '{target.parent}' does not exist: create it first.")
    return target


def clear_temporaries(folder: str | Path) -> None:
    """Remove what killed processes of this machine left behind in a folder; best effort.

    The name of a temporary file says whose it is, so one that is being written stays.
    """
    prefix = _own_prefix()
    with contextlib.suppress(OSError):
        for path in Path(folder).glob(f"{prefix}*.tmp"):
            owner = path.name.removeprefix(prefix).partition("-")[0]
            if owner.isdecimal() and not _is_running(int(owner)):
                path.unlink(missing_ok=True)


def _own_prefix() -> str:
    """Of temporary files that processes of this machine write."""
    return f".nulltext-{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"


def _is_running(process: int) -> bool:
    if sys.platform == "win32":  # there, asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


@contextlib.contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    """A fresh name in the target's folder, removed afterwards; failures become OutputError."""
    temporary = target.with_name(f"{_own_prefix()}{os.getpid()}-{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)

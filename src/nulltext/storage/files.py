"""Write files and folders whole or not at all, and lock them against other processes.

New content is complete on disk under a temporary name before it takes its own, so an older file
survives every failure. What cannot be written or locked is an OutputError.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import re
import shutil
import stat
import sys
import unicodedata
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePath

from nulltext.errors import OutputError, reason_of
from nulltext.logs import timed

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Name of the empty file by which `lock_folder` locks a folder; it stays in the folder."""
LONGEST_NAME = 200
"""Bytes of a name in UTF-8; file systems take 255, and a download or a copy adds some."""
LONGEST_SUFFIX = 16
"""Letters at the end of a name, its point included, beyond which they are no suffix."""
RESERVED = re.compile(r"(?i)con|prn|aux|nul|(com|lpt)[0-9¹²³]|con(in|out)\$")
"""Stems that Windows keeps for devices."""
INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
)
"""Control characters, marks of writing direction, and spaces without width; not the joiners, which
Persian and emoji are written with."""
S_IWRITE_ALL = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def expand_user(text: str | Path) -> Path:
    """Return a path with ~ replaced by the home folder, where there is one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def path_exists(path: Path) -> bool:
    """Whether a file or folder has this name; False for names that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def safe_name(name: str) -> str:
    """Return a file's name that every common file system takes, as like the given one as possible.

    Signs that Windows or a path reserves become "_"; `INVISIBLE` characters, and what would
    hide a file or make it an option at the start, go; it has at most `LONGEST_NAME` bytes, its
    suffix included.
    """
    text = re.sub(r'[<>:"/\\|?*]', "_", name.encode("utf-8", "replace").decode())
    text = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
    text = text.strip().lstrip(".- ").rstrip(". ")
    stem, suffix = PurePath(text).stem, PurePath(text).suffix
    if len(suffix) > LONGEST_SUFFIX:
        stem, suffix = text, ""
    room = LONGEST_NAME - len(suffix.encode())
    stem = stem.encode()[:room].decode("utf-8", "ignore").rstrip(". ")
    if RESERVED.fullmatch(stem.partition(".")[0]):
        stem = f"_{stem}"
    return f"{stem or 'picture'}{suffix}"


def check_target(path: str | Path) -> Path:
    """Return the file behind any symbolic link, after checking that it can be written."""
    target = _regular_target(path)
    with _temporary_beside(target) as temporary, temporary.open("xb"):
        pass
    return target


def replace_file(path: str | Path, data: bytes | bytearray) -> None:
    """Write `data` under a temporary name in the same folder, then rename."""
    target = _regular_target(path)
    log = timed(logger, "write: %s, %d bytes", path, len(data))
    with log, _temporary_beside(target) as temporary:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)


def _regular_target(path: str | Path) -> Path:
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG | S_IWRITE_ALL  # what it will be
    except (OSError, ValueError) as error:
        raise output_error(path, error) from error
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


@contextlib.contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    temporary = target.with_name(f"{_own_prefix()}{os.getpid()}-{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _own_prefix() -> str:
    return f".nulltext-{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"


def clear_temporaries(folder: str | Path) -> None:
    """Remove temporary files of processes of this machine that have ended, where possible."""
    prefix = _own_prefix()
    with contextlib.suppress(OSError):
        for path in Path(folder).glob(f"{prefix}*.tmp"):
            owner = path.name.removeprefix(prefix).partition("-")[0]
            if owner.isdecimal() and not _is_running(int(owner)):
                path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if sys.platform == "win32":  # where os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` when the block succeeds.

    Its files get the permissions of new files; some libraries write for the owner alone.
    """
    target = folder.absolute()
    fresh, older = (target.with_name(f"{_own_prefix()}{uuid.uuid4().hex}") for _ in range(2))
    try:
        fresh.mkdir(parents=True)
        yield fresh
        _reset_permissions(fresh)
        if target.exists():
            target.replace(older)
        try:
            fresh.replace(target)
        except OSError:
            if older.exists():
                older.replace(target)
            raise
        shutil.rmtree(older, ignore_errors=True)
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _reset_permissions(folder: Path) -> None:
    sample = folder / LOCK
    sample.touch()
    usual = stat.S_IMODE(sample.stat().st_mode)
    sample.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(usual)


@contextlib.contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Lock an existing folder against other nulltext processes while the block runs.

    The system releases the lock however the process ends. Without effect where the system or the
    file system has no locks.
    """
    try:
        descriptor = os.open(Path(folder) / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise output_error(folder, error) from error
    try:
        lock_file(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def lock_file(descriptor: int, folder: str | Path) -> None:
    """Lock an open file of a folder until it is closed; see `lock_folder`."""
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


def is_abandoned(folder: Path) -> bool:
    """Whether a folder was locked by a process that has ended; False where that cannot be told."""
    if sys.platform == "win32":
        return False
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def output_error(path: str | Path, error: Exception) -> OutputError:
    return OutputError(
        f"'{path}' cannot be written ({reason_of(error)}): free some space or choose another place."
    )

"""Check one input: is it read, refused with a clear message, or a finding?

Allowed are a value and a `UserError` of one line. Any other exception is a finding, and so are more
than `SECONDS` and more than `BYTES` beside what the process had. Seconds are of the process's own
time, so that a busy machine is no finding; `STALLED` limits the waiting.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fuzz.readers import Reader
from nulltext.errors import UserError

SECONDS = 5.0
"""Computing time of one input."""
STALLED = 24
"""The limit by the clock, as a multiple of that of computing time."""
BYTES = 1 << 30
MAX_MESSAGE = 1000
"""Characters of a message: it must not repeat the file."""


class HangError(BaseException):
    """Raised when time is up; not an Exception, so that no reader catches it."""


@dataclass(frozen=True)
class Verdict:
    """What became of an input."""

    outcome: str
    """"read", "refused", or a finding: "crash", "hang", "memory", "unclear"."""
    detail: str = ""

    @property
    def is_finding(self) -> bool:
        """Whether the input was neither read nor refused."""
        return self.outcome not in ("read", "refused")


@dataclass(frozen=True)
class Harness:
    """A reader with the folder that it reads from."""

    reader: Reader
    folder: Path

    @classmethod
    @contextlib.contextmanager
    def prepared(cls, reader: Reader) -> Iterator[Harness]:
        """Prepare a folder for the reader, and remove it afterwards."""
        with tempfile.TemporaryDirectory(prefix="nulltext-fuzz-") as folder:
            reader.prepare(Path(folder))
            yield cls(reader, Path(folder))

    def check(self, name: str, data: bytes, *, seconds: float = SECONDS) -> Verdict:
        """Read a file in the place that its name says, then restore the folder.

        Args:
            name: of the file in the corpus; see `readers`.
            seconds: time limit; 0 for none.
        """
        path = self.folder / name.split("--")[-1].replace("__", "/")
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(data)
        try:
            return _verdict(self.reader, path, seconds)
        finally:
            if before is None:
                path.unlink()
            else:
                path.write_bytes(before)


def _verdict(reader: Reader, path: Path, seconds: float) -> Verdict:
    try:
        with _time_limit(seconds):
            reader.read(path)
    except UserError as error:
        message = str(error)
        if _is_out_of_memory(error):
            return Verdict("memory", message)
        if "\n" in message or len(message) > MAX_MESSAGE or not message.endswith("."):
            return Verdict("unclear", message[:MAX_MESSAGE])
        return Verdict("refused", message)
    except HangError:
        return Verdict("hang", traceback.format_exc())
    except MemoryError:
        return Verdict("memory", traceback.format_exc())
    except BaseException:
        return Verdict("crash", traceback.format_exc())
    return Verdict("read")


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Look for an allocation that failed among an error and its causes."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise HangError

    timers = (
        (signal.SIGPROF, signal.ITIMER_PROF, seconds),
        (signal.SIGALRM, signal.ITIMER_REAL, seconds * STALLED),
    )
    before = [signal.signal(number, stop) for number, _, _ in timers]
    try:
        for _, timer, limit in timers:
            signal.setitimer(timer, limit)
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def limit_memory() -> None:
    """Limit the address space of this process to `BYTES` beside what it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

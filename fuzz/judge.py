"""One input, one verdict: read, refused with a sentence, or broken.

Allowed are a value and a `UserError` of one line. Everything else is a finding: any other
exception, more than `SECONDS`, or more than `BYTES` beside what the process had. Time is the
process's own, so that a busy machine is no finding; one that waits is noticed by the clock.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fuzz.mutate import mutated
from fuzz.readers import Reader
from nulltext.errors import UserError

SECONDS, STALLED = 5.0, 24
"""Of computing; so many times as long by the clock."""
BYTES = 1 << 30
WARM_UP = 3
"""So many inputs are read before any is judged."""
LONGEST = 1000
"""Characters of a message; a sentence repeats no file."""
CORPUS = Path(__file__).parent / "corpus"
BROKE = "broke-"
"""Begins the names of inputs that once broke something."""


class HangError(BaseException):
    """Not an Exception, so that no reader catches it."""


@dataclass(frozen=True)
class Verdict:
    """What came of an input."""

    outcome: str
    """"read", "refused", or what is wrong: "crash", "hang", "memory", "unclear"."""
    detail: str = ""

    @property
    def broken(self) -> bool:
        """Whether it is a finding."""
        return self.outcome not in ("read", "refused")


@dataclass(frozen=True)
class Bench:
    """A reader with its surroundings, ready for one file after another."""

    reader: Reader
    folder: Path

    @classmethod
    @contextlib.contextmanager
    def of(cls, reader: Reader) -> Iterator[Bench]:
        """Made in a folder that is removed afterwards."""
        with tempfile.TemporaryDirectory(prefix="nulltext-fuzz-") as folder:
            reader.around(Path(folder))
            yield cls(reader, Path(folder))

    def judge(self, name: str, data: bytes, *, seconds: float = SECONDS) -> Verdict:
        """Put a file in its place, read it, and put everything back.

        Args:
            name: of its seed; see `readers`. seconds: what it may take; 0 for no limit.
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
        said = str(error)
        if _ran_out(error):
            return Verdict("memory", said)
        if "\n" in said or len(said) > LONGEST or not said.endswith("."):
            return Verdict("unclear", said[:LONGEST])
        return Verdict("refused", said)
    except HangError:
        return Verdict("hang", traceback.format_exc())
    except MemoryError:
        return Verdict("memory", traceback.format_exc())
    except BaseException:
        return Verdict("crash", traceback.format_exc())
    return Verdict("read")


def _ran_out(error: BaseException | None) -> bool:
    """Whether memory's end is behind an error, however many others are between."""
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


def warm_up(bench: Bench, name: str) -> None:
    """Read a few of a reader's corpus: what is imported then is no input's time or memory."""
    for origin in corpus_of(name)[:WARM_UP]:
        bench.judge(origin.name, origin.read_bytes(), seconds=0)


def limit_memory() -> None:
    """Let this process have `BYTES` of address space beside what it has now, for good."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def corpus_of(reader: str) -> list[Path]:
    """All files of a reader's corpus, seeds and findings, by name."""
    return sorted(path for path in (CORPUS / reader).iterdir() if path.is_file())


def fuzzed(reader: str, number: int, seed: int) -> tuple[str, bytes]:
    """(name, content) of the input of this number, the same every time."""
    rng = random.Random(f"{seed}/{reader}/{number}")
    seeds = [path for path in corpus_of(reader) if not path.name.startswith(BROKE)]
    origin = rng.choice(seeds)
    data = origin.read_bytes()
    for _ in range(rng.choice((1, 1, 1, 2))):
        data = mutated(data, rng)
    return origin.name, data

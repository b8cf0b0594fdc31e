"""Command lines in processes of their own, past the imports, and what SIGKILL leaves of them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nulltext.cli.main import main

PATIENCE = 300
"""Seconds after which something that should have happened long ago counts as a failure."""


def fork(*line: object) -> int:
    """Run a command line of `nulltext`; the id of the process, which is that of its session.

    It has what this process has imported, but none of its threads, and there are some: the receiver
    of pytest-xdist, servers of earlier tests. A lock that one of them held stays locked there.
    Python renews its own, tests compute with one thread, and no command line waits for a server of
    the tests; should one wait all the same, `PATIENCE` ends it.

    Of files and pipes it has none: each one becomes the null device. They are not closed, since the
    objects that hold them would later close whatever has got their numbers.
    """
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        let_go()
        sys.argv = ["nulltext", *map(str, line)]
        main()
    finally:
        os._exit(1)  # never back into the tests


def let_go() -> None:
    """Keep no descriptor that belongs to somebody else."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        with contextlib.suppress(OSError):  # the one that listed them is closed again
            os.fstat(descriptor)
            os.dup2(null, descriptor, inheritable=descriptor <= 2)


@contextlib.contextmanager
def session_killed_when(
    condition: Callable[[], object], *line: object, later: float = 0.0
) -> Iterator[int]:
    """Run a command line, and SIGKILL it as soon as something is so, or so many seconds later.

    Yields the id that the process and its session had. What is left of the session by the end of
    the block is killed, however that ends.
    """
    child = fork(*line)
    try:
        _kill_when(condition, child, later)
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):  # nobody is left, as it should be
            os.killpg(child, signal.SIGKILL)


def killed_when(condition: Callable[[], object], *line: object, later: float = 0.0) -> None:
    """`session_killed_when` for a command line of one process."""
    with session_killed_when(condition, *line, later=later):
        pass


def _kill_when(condition: Callable[[], object], child: int, later: float) -> None:
    end = time.monotonic() + PATIENCE
    try:
        while not condition():
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            assert ended is None, "it ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.002)
        time.sleep(later)
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "it had ended by itself"

"""Command lines in processes of their own, past the imports, and what SIGKILL leaves of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from nulltext.cli.main import main

PATIENCE = 300
"""Seconds after which something that should have happened long ago counts as a failure."""


def fork(*line: object) -> int:
    """Run a command line of `nulltext`; the id of the process, which is that of its session.

    It has what this process has imported, but none of its threads: tests compute with one, so there
    is no pool that it would wait for.
    """
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        sys.argv = ["nulltext", *map(str, line)]
        main()
    finally:
        os._exit(1)  # never back into the tests


def killed_when(condition: Callable[[], object], *line: object, later: float = 0.0) -> int:
    """Run a command line, and SIGKILL it as soon as something is so, or so many seconds later.

    Returns:
        The id that the process and its session had.
    """
    child, end = fork(*line), time.monotonic() + PATIENCE
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
    return child

"""What the library says while it works: one line per stage, through Python's own `logging`.

Loggers are named after their modules, below "nulltext"; no handler is installed and no level is
set, so a program that uses the library decides what it wants to hear. Lines begin with the stage:
load, caption, encode, invert, replay, edit, decode, write.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import Logger


@contextmanager
def timed(logger: Logger, message: str, *values: object) -> Iterator[None]:
    """Log a stage with its wall time when it is done; nothing if it fails.

    Args:
        message, values: as for `Logger.info`.
    """
    started = time.perf_counter()
    yield
    logger.info(f"{message}, %.2f s", *values, time.perf_counter() - started)

"""Timing of stages through Python's own `logging`.

Loggers are named after their modules, below "nulltext"; no handler is installed and no level is
set. Lines begin with the stage: load, caption, encode, invert, replay, edit, decode, write.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import Logger


@contextmanager
def timed(logger: Logger, message: str, *values: object) -> Iterator[None]:
    """Log a stage and its wall time when the block ends without an exception."""
    started = time.perf_counter()
    yield
    logger.info(f"{message}, %.2f s", *values, time.perf_counter() - started)

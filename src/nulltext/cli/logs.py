"""`--log-level`: the library's log lines on standard error."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogLevel(StrEnum):
    """How much is said."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"


class _StandardError(logging.Handler):
    """Writes to what standard error is at the time: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:  # as logging's own handlers: a log line never breaks the work
            self.handleError(record)


def show_logs(level: LogLevel) -> None:
    """Let the library's loggers be heard from this level up; twice is as once."""
    logger = logging.getLogger("nulltext")
    for handler in [h for h in logger.handlers if isinstance(h, _StandardError)]:
        logger.removeHandler(handler)
    handler = _StandardError()
    handler.setFormatter(logging.Formatter(FORMAT))
    logger.addHandler(handler)
    logger.setLevel(level.upper())

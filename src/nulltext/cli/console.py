"""Standard output and error that take every line, whatever their encoding.

A redirected stream has the system's encoding (cp1252 on a Western Windows), which lacks most of
Unicode. What it lacks is written in ASCII: signs of ours by `SIGNS`, all others, such as letters of
a file's name, as Python escapes them (`\\u4e2d`); a byte of a name that is no text as `\\xff`.

What cannot be written any more, as the disk of a redirected stream is full or the reader of a pipe
has gone, stops no work: files are results, too. The end of a command asks for it (`unwritten`).

`--log-level` shows the library's log lines on standard error (`show_logs`).
"""

from __future__ import annotations

import codecs
import errno
import io
import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

from nulltext.words.prompts import UNDECODED

ESCAPED = "nulltext-escaped"
"""Name of the error handler, for streams."""

SIGNS = {
    "…": "...",
    "–": "-",
    "—": "-",
    "−": "-",
    "“": '"',
    "”": '"',
    "≈": "~",
    "·": "*",
    "×": "x",
    "→": "->",
    "↑": "^",
    "↓": "v",
    "²": "^2",
    "³": "^3",
    "⁴": "^4",
}
"""What stands for the signs of our messages, tables and bars."""


class _Sink(io.FileIO):
    """A descriptor that keeps the first error of writing rather than raise it."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or count as written what cannot be."""
        try:
            return super().write(data)
        except OSError as error:
            self.failed = self.failed or error
            return memoryview(data).nbytes


def open_streams() -> None:
    """Let standard output and error take every line; one that is closed takes it for nothing."""
    codecs.register_error(ESCAPED, _escaped)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, or a Windows program without a console
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            if stream is getattr(sys, f"__{name}__"):
                setattr(sys, name, _sunk(stream))
            getattr(sys, name).reconfigure(errors=ESCAPED)


def unwritten() -> OSError | None:
    """Why standard output did not take all lines; None where it did, or where its reader wanted no
    more of them, as `head` does."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    failed: OSError | None = getattr(getattr(buffer, "raw", buffer), "failed", None)
    gone = failed is not None and failed.errno in (errno.EPIPE, errno.EINVAL)  # EINVAL: Windows
    return None if gone else failed


def _sunk(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The stream on a `_Sink`; itself where it is no file, as a Windows console."""
    if type(getattr(stream.buffer, "raw", stream.buffer)) is not io.FileIO:
        return stream
    sink = _Sink(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        sink if stream.write_through else io.BufferedWriter(sink),
        encoding=stream.encoding,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_sign, error.object[error.start : error.end])), error.end


def _sign(character: str) -> str:
    return SIGNS.get(character) or escaped(character)


def escaped(character: str) -> str:
    """A character that cannot be written, or should not be, in ASCII."""
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if code in UNDECODED else ascii(character)[1:-1]


LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogLevel(StrEnum):
    """Least level of the log lines that are shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"


class _StandardError(logging.Handler):
    """Writes to what `sys.stderr` is at the time: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:  # as logging's own handlers: a log line never breaks the work
            self.handleError(record)


def show_logs(level: LogLevel) -> None:
    logger = logging.getLogger("nulltext")
    for handler in [h for h in logger.handlers if isinstance(h, _StandardError)]:
        logger.removeHandler(handler)
    handler = _StandardError()
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logger.addHandler(handler)
    logger.setLevel(level.upper())

"""Standard output and error that take every line, whatever their encoding.

A redirected stream has the system's encoding (cp1252 on a Western Windows), which lacks most of
Unicode. What it lacks is written in ASCII: signs of ours by `SIGNS`, all others, such as letters of
a file's name, as Python escapes them (`\\u4e2d`); a byte of a name that is no text as `\\xff`.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from pathlib import Path

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

UNDECODED = range(0xDC80, 0xDD00)
"""Surrogates that stand for bytes of names that are no text (PEP 383)."""


def open_streams() -> None:
    """Let standard output and error take every line; one that is closed takes it for nothing."""
    codecs.register_error(ESCAPED, _escaped)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, or a Windows program without a console
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPED)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What is written in the place of characters that cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_sign, error.object[error.start : error.end])), error.end


def _sign(character: str) -> str:
    return SIGNS.get(character) or escaped(character)


def escaped(character: str) -> str:
    """A character that cannot be written, or should not be, in ASCII."""
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if code in UNDECODED else ascii(character)[1:-1]

"""Read text, JSON and file names from untrusted sources, with bounds checked first.

A file's size is looked at before a byte of it is read. Text is UTF-8, or UTF-16 with the byte-order
mark by which it is known; marks are taken off. JSON is refused where a key stands twice
(readers disagree on which one holds), where it is nested deeper than any file of ours, and where a
string holds half a character, which no terminal and no file takes. A name leads nowhere outside
its folder, by dots or by a symbolic link.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import IO, Any
from urllib.parse import unquote

from nulltext.errors import UserError

MEGABYTE = 1 << 20
DEPTH = 64
"""Most levels of lists and objects; files that nulltext reads have at most a handful."""

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
ADDRESS = re.compile(r"(?:^|[/\\])((?:https?|ftp|s3|gs|file):)/{1,2}(?=[^/])", re.IGNORECASE)

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",  # Notepad's "Unicode", Excel's "Unicode Text", PowerShell's >
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte-order marks that a text begins with, and what the text is then written in."""
SAVE_AS_UTF8 = 'save it as UTF-8 (in Excel as "CSV UTF-8")'
WORKBOOKS = (b"PK\3\4", b"\xd0\xcf\x11\xe0")
"""How spreadsheets' own files begin."""
DAMAGED = f"it is damaged UTF-16; {SAVE_AS_UTF8}"


def read_text(path: Path, most: int) -> str:
    """A text file of at most `most` bytes, its lines ended by newlines; see `decoded`.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is no regular file, larger, or in another encoding.
    """
    with _opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than the {most / MEGABYTE:g} MiB that are read")
    return decoded(data).replace("\r\n", "\n").replace("\r", "\n")


def decoded(data: bytes) -> str:
    """The text of bytes in UTF-8, or in UTF-16 with a byte-order mark, without the mark.

    Raises:
        ValueError: they are in another encoding; says in which, and what to do.
    """
    if data.startswith(WORKBOOKS):
        raise ValueError(
            'it is a workbook (.xlsx, .ods, .xls) or an archive; save it as "CSV UTF-8"'
        )
    encoding = _encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise ValueError(DAMAGED) from None
        raise ValueError(
            f"byte {error.start + 1} of it, 0x{data[error.start]:02X}, is no UTF-8: it may be in "
            f"Windows-1252 or Latin-1; {SAVE_AS_UTF8}"
        ) from None
    if "\0" in text:
        raise ValueError(
            "it has zero bytes, as UTF-16 without a byte-order mark or no text at all; "
            + SAVE_AS_UTF8
        )
    return text


def read_lines(path: Path, longest: int) -> Iterator[tuple[int, bytes]]:
    """Number and text of each line of a file, as UTF-8 without its mark, to be decoded by itself.

    One line is in memory at a time: the file may be larger. A line of more than `longest` bytes is
    cut off one byte behind them.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is no regular file, or broken UTF-16.
    """
    with open_text(path) as text:
        number = 0
        while line := text.readline(longest + 1):
            number += 1
            rest = line
            while rest and not rest.endswith("\n") and len(rest) > longest:
                rest = text.readline(longest + 1)
            yield number, line.encode("utf-8", "surrogateescape")[: longest + 1]


@contextlib.contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[IO[str]]:
    """A text file of any size, open to be read; bytes that are no UTF-8 are escaped in it.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is no regular file; reading may find broken UTF-16.
    """
    with _opened(path) as file:
        encoding = _encoding(file.peek(len(codecs.BOM_UTF8)))
        errors = "strict" if encoding == "utf-16" else "surrogateescape"
        with io.TextIOWrapper(file, encoding, errors, newline) as text:
            try:
                yield text
            except UnicodeDecodeError:
                raise ValueError(DAMAGED) from None


def is_marked(path: Path) -> bool:
    """Whether a regular file begins with a byte-order mark."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)).startswith(tuple(MARKS))


def _opened(path: Path) -> io.BufferedReader:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    return path.open("rb")


def _encoding(data: bytes) -> str:
    """What bytes are written in, by the mark that they begin with."""
    return next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is no JSON, has a key twice, is nested too deeply, or holds half a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEPTH} levels") from None
    _check_depth(value)
    if LONE_SURROGATE.search(text) or ("\\u" in text and _has_lone_surrogate(value)):
        raise ValueError("it holds half a character (a lone surrogate)")
    return value


def inside(folder: Path, name: str) -> Path:
    """The file of this name in a folder, or below it.

    Raises:
        ValueError: the name is no relative path, or leads out of the folder.
        OSError: it is too long, or its links run in a circle.
    """
    if "\0" in name or LONE_SURROGATE.search(name):
        raise ValueError("it is no file name")
    path = folder / name
    if PurePath(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("it is outside the folder")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.stat()
    return path


def refuse_address(path: Path, kind: type[UserError]) -> None:
    """Tell an address from a file that is not there.

    Raises:
        UserError: it is one; of the given kind.
    """
    address = ADDRESS.search(str(path))
    if address is None:
        return
    rest = str(path)[address.end() :]  # a path has lost some of the slashes
    if address[1].lower() == "file:":
        raise kind(f"'file:///{rest}' is an address: give the path, '/{unquote(rest)}'.")
    raise kind(
        f"'{address[1]}//{rest}' is an address, and nothing is fetched from the web: download "
        "the file and give its path."
    )


def repeated_key(pairs: Sequence[tuple[str, Any]]) -> str | None:
    """The first key that stands twice in a JSON object, as far as a message can hold it."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) == len(keys):
        return None
    return next(key[:40] for key in keys if keys.count(key) > 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = repeated_key(pairs)
    if twice is not None:
        raise ValueError(f"the key {twice!r} stands twice")
    return dict(pairs)


def _levels(value: Any) -> Iterator[list[Any]]:
    """The values at each depth, outermost first."""
    level = [value]
    while level:
        yield level
        level = [entry for each in level for entry in _entries(each)]


def _entries(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else []


def _check_depth(value: Any) -> None:
    for depth, _ in enumerate(_levels(value)):
        if depth > DEPTH:
            raise ValueError(f"it is nested deeper than {DEPTH} levels")


def _has_lone_surrogate(value: Any) -> bool:
    return any(
        isinstance(each, str) and LONE_SURROGATE.search(each)
        for level in _levels(value)
        for each in level
    )

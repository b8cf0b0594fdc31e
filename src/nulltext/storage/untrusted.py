"""Read text, JSON and file names from untrusted sources, with limits that are checked first.

Text is UTF-8, or UTF-16 with a byte-order mark; marks are removed. JSON is refused where a key
occurs twice (readers disagree on which one holds), where it is nested too deeply, and where a
string holds a lone surrogate, which no terminal and no file takes. A file name may not lead out of
its folder, by dots or by a symbolic link. What cannot be read is an OSError, and what is refused a
ValueError that says why.
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

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",  # Notepad's "Unicode", Excel's "Unicode Text", PowerShell's >
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the mark that a text begins with."""
SAVE_AS_UTF8 = 'save it as UTF-8 (in Excel as "CSV UTF-8")'
WORKBOOKS = (b"PK\3\4", b"\xd0\xcf\x11\xe0")
"""First bytes of spreadsheets' own files."""
DAMAGED = f"it is damaged UTF-16; {SAVE_AS_UTF8}"


def read_text(path: Path, most: int) -> str:
    """Read a text file of at most `most` bytes, with lines ended by newlines; see `decode_text`."""
    with _opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than the {most / MEGABYTE:g} MiB that are read")
    return decode_text(data).replace("\r\n", "\n").replace("\r", "\n")


def decode_text(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 with a byte-order mark, and remove the mark."""
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
            f"byte {error.start + 1} of it, 0x{data[error.start]:02X}, is not UTF-8: it may be in "
            f"Windows-1252 or Latin-1; {SAVE_AS_UTF8}"
        ) from None
    if "\0" in text:
        raise ValueError(
            "it has zero bytes, so it is UTF-16 without a byte-order mark or no text at all; "
            + SAVE_AS_UTF8
        )
    return text


def read_lines(path: Path, longest: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each line, as UTF-8 without a mark, one at a time.

    A longer line than `longest` bytes is cut after `longest` + 1 bytes.
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
    """Open a text file of any size; bytes that are not UTF-8 are read as surrogate escapes."""
    with _opened(path) as file:
        encoding = _encoding(file.peek(len(codecs.BOM_UTF8)))
        errors = "strict" if encoding == "utf-16" else "surrogateescape"
        with io.TextIOWrapper(file, encoding, errors, newline) as text:
            try:
                yield text
            except UnicodeDecodeError:
                raise ValueError(DAMAGED) from None


def has_byte_order_mark(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)).startswith(tuple(BYTE_ORDER_MARKS))


def _opened(path: Path) -> io.BufferedReader:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    return path.open("rb")


def _encoding(data: bytes) -> str:
    marks = BYTE_ORDER_MARKS.items()
    return next((name for mark, name in marks if data.startswith(mark)), "utf-8")


def parse_json(text: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEPTH} levels") from None
    surrogate = LONE_SURROGATE.search(text) is not None
    level, depth = [value], 0
    while level:
        if depth > DEPTH:
            raise ValueError(f"it is nested deeper than {DEPTH} levels")
        strings = (each for each in level if isinstance(each, str))
        surrogate = surrogate or ("\\u" in text and any(map(LONE_SURROGATE.search, strings)))
        level, depth = [entry for each in level for entry in _entries(each)], depth + 1
    if surrogate:
        raise ValueError("it holds half a character (a lone surrogate)")
    return value


def read_object(path: Path, most: int) -> dict[str, Any]:
    """Read a file of at most `most` bytes that holds a JSON object."""
    content = parse_json(read_text(path, most))
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _entries(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else []


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = repeated_key(pairs)
    if repeated is not None:
        raise ValueError(f"the key {repeated!r} occurs twice")
    return dict(pairs)


def repeated_key(pairs: Sequence[tuple[str, Any]]) -> str | None:
    """Return the first key that a JSON object repeats, cut to what a message can hold."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) == len(keys):
        return None
    return next(key[:40] for key in keys if keys.count(key) > 1)


def resolve_inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, or below it."""
    if "\0" in name or LONE_SURROGATE.search(name):
        raise ValueError("it is not a file name")
    path = folder / name
    if PurePath(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("it is outside the folder")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.stat()
    return path


def refuse_address(path: Path, kind: type[UserError]) -> None:
    """Raise an error of type `kind` if a path is an address such as https://…."""
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

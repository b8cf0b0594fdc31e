"""Hypothesis strategies for files that are nearly valid: where readers break.

JSON is changed as a tree, a safetensors file as its header and its body, a PNG chunk by chunk with
right checksums; anything may be damaged byte by byte besides.
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

LENGTHS = (0, 1, 7, 8, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
DEEP = "[" * 5000
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(2**31, 2**63, 10**30, 10**4000, "", " ", "\0", "\ud800", "../../etc/passwd", "/dev/zero"),
    *("a" * 300, "a" * 100_000, "../" * 2000, "a/b", "猫\u2028\x1b[31m", [], {}, [[]], [None]),
    *([1, 2, 3, 4], [10**9, 4, 64, 64], {"a": 1}, [0] * 5000, "auto_map", "owner/kernel"),
)
"""Values that a field hardly expects."""


def rarely(draw: DrawFn, one_in: int) -> bool:
    """Draw True about once in so many times."""
    return draw(st.integers(1, one_in)) == one_in


def damaged(data: bytes) -> SearchStrategy[bytes]:
    """Choose a strategy for damaging a file by its content."""
    if data.startswith(b"\x89PNG"):
        structured = damaged_png(data)
    elif data[8:9] == b"{":
        structured = damaged_safetensors(data)
    elif data[:1] in (b"{", b"["):
        structured = damaged_json_lines(data) if b"\n{" in data else damaged_json(data)
    else:
        return damaged_bytes(data)
    damaged_twice = structured.flatmap(damaged_bytes)
    chosen = [structured] * 4 + [damaged_twice, damaged_bytes(data)]
    return st.integers(0, len(chosen) - 1).flatmap(lambda index: chosen[index])


@st.composite
def damaged_bytes(draw: DrawFn, data: bytes) -> bytes:
    """Replace, cut, repeat or insert some bytes, more often near the beginning."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data), draw(st.sampled_from((16, 64, 512, len(data)))))))
        removed = draw(st.sampled_from((0, 1, 2, 4, 8, 40, len(data))))
        size, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(("big", "little")))
        number = st.sampled_from(LENGTHS).map(lambda n: (n % 256**size).to_bytes(size, order))  # noqa: B023
        repeated = st.sampled_from((1, 2, 50)).map(lambda times: data[at : at + 200] * times)  # noqa: B023
        data = data[:at] + draw(st.binary(max_size=40) | number | repeated) + data[at + removed :]
    return data


@st.composite
def damaged_json(draw: DrawFn, data: bytes) -> bytes:
    """Replace, remove or double values of a JSON document, then perhaps break its text."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return draw(damaged_bytes(data))
    for _ in range(draw(st.integers(1, 3))):
        *place, last = draw(st.sampled_from(list(_paths([value]))))
        root = parent = [value]
        for key in place:
            parent = parent[key]
        action = draw(st.sampled_from(("replace", "replace", "remove", "repeat", "rename")))
        if action == "remove" and parent is not root:
            del parent[last]
        elif action == "repeat" and isinstance(parent[last], list):
            parent[last] = parent[last] * draw(st.sampled_from((2, 100)))
        elif action == "rename" and isinstance(parent, dict):
            parent[str(draw(st.sampled_from(NASTY)))[:200]] = parent[last]
        else:
            parent[last] = copy.deepcopy(draw(st.sampled_from(NASTY)))
        (value,) = root
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    if text.startswith("{") and "," in text and rarely(draw, 10):  # the first member twice
        text = text[:-1] + ", " + text[1 : text.index(",")] + "}"
    if rarely(draw, 20):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + DEEP + text[at:]
    return text.encode("utf-8", "surrogatepass")


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    """List the keys that lead to each value of a tree."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        yield (key,)
        if isinstance(child, dict | list):
            yield from ((key, *rest) for rest in _paths(child))


@st.composite
def damaged_json_lines(draw: DrawFn, data: bytes) -> bytes:
    """Change one line of several, or their number, or their ends."""
    lines = data.split(b"\n")
    at = draw(st.integers(0, len(lines) - 1))
    if rarely(draw, 10):
        return b"\n".join(lines[:at] + lines[at:] * draw(st.sampled_from((0, 2, 100))))
    lines[at] = draw(damaged_json(lines[at]))
    return draw(st.sampled_from((b"\n", b"\n", b"\n", b"\r\n", b"\0"))).join(lines)


@st.composite
def damaged_safetensors(draw: DrawFn, data: bytes) -> bytes:
    """Change the header of a safetensors file, JSON inside it, its length, or the numbers."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    part = draw(st.sampled_from(("header", "metadata", "body")))
    metadata = json.loads(header).get("__metadata__")
    if part == "body":
        body = draw(damaged_bytes(body))
    elif part == "metadata" and metadata:
        fields, key = json.loads(header), draw(st.sampled_from(sorted(metadata)))
        text = draw(damaged_json(metadata[key].encode()))
        fields["__metadata__"][key] = text.decode("utf-8", "replace")
        header = json.dumps(fields).encode()
    else:
        header = draw(damaged_json(header))
    length = draw(st.sampled_from(LENGTHS)) if rarely(draw, 20) else len(header)
    return length.to_bytes(8, "little") + header + body


@st.composite
def damaged_png(draw: DrawFn, data: bytes) -> bytes:
    """Damage, move or inflate one chunk of a PNG and correct its checksum."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    chosen = draw(st.integers(0, len(chunks) - 1))
    kind, content = chunks[chosen]
    if rarely(draw, 7):
        chunks.insert(draw(st.integers(0, len(chunks) - 1)), chunks.pop(chosen))
    elif kind in (b"IDAT", b"iCCP", b"zTXt") and draw(st.booleans()):
        start = 0 if kind == b"IDAT" else content.find(b"\0") + 2
        bomb = zlib.compress(bytes(draw(st.sampled_from((10, 10**5, 10**7)))))
        chunks[chosen] = (kind, content[:start] + bomb)
    else:
        chunks[chosen] = (kind, draw(damaged_bytes(content)))
    return data[:8] + b"".join(
        len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4)
        for kind, content in chunks
    )

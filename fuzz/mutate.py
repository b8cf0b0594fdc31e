"""From a valid file to one that is nearly valid: where readers break.

JSON is changed as a tree, a safetensors file as its header and its body, a PNG chunk by chunk with
right checksums; anything may be damaged byte by byte besides.
"""

from __future__ import annotations

import copy
import json
import random
import zlib
from typing import Any

LENGTHS = (0, 1, 7, 8, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
DEEP = "[" * 5000
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(2**31, 2**63, 10**30, 10**4000, "", " ", "\0", "\ud800", "../../etc/passwd", "/dev/zero"),
    *("a" * 300, "a" * 100_000, "../" * 2000, "a/b", "猫\u2028\x1b[31m", [], {}, [[]], [None]),
    *([1, 2, 3, 4], [10**9, 4, 64, 64], {"a": 1}, [0] * 5000, "auto_map", "owner/kernel"),
)
"""What no field expects, and some do."""


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file that is nearly the given one, changed by what its content looks like."""
    if data.startswith(b"\x89PNG"):
        return png(data, rng)
    if data[8:9] == b"{":
        return tensors(data, rng)
    if data[:1] in (b"{", b"["):
        return (json_lines if data.count(b"\n{") else json_text)(data, rng)
    return any_bytes(data, rng)


def any_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change, cut, repeat or insert some bytes, more often near the beginning."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        if not content:
            return bytes(content)
        at = rng.randrange(min(len(content), rng.choice((16, 64, 512, len(content)))))
        size = rng.choice((1, 2, 4, 8))
        action = rng.randrange(7)
        if action == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            content[at] = rng.randrange(256)
        elif action == 2:
            number = rng.choice(LENGTHS) % 256**size
            content[at : at + size] = number.to_bytes(size, rng.choice(("big", "little")))
        elif action == 3:
            del content[rng.randrange(len(content)) :]
        elif action == 4:
            del content[at : at + rng.randrange(1, 40)]
        elif action == 5:
            content[at:at] = content[at : at + rng.randrange(1, 200)] * rng.choice((1, 2, 50))
        else:
            content[at:at] = rng.randbytes(rng.randrange(1, 40))
    return bytes(content)


def json_text(data: bytes, rng: random.Random) -> bytes:
    """Change a JSON document as a tree, then perhaps its text."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return any_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _changed(value, rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.1:
        text = _twice(text)
    if rng.random() < 0.05:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + DEEP + text[at:]
    result = text.encode("utf-8", "surrogatepass")
    return any_bytes(result, rng) if rng.random() < 0.15 else result


def json_lines(data: bytes, rng: random.Random) -> bytes:
    """Change one line of several, or their number."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.1:
        return b"\n".join(lines[:at] + lines[at:] * rng.choice((0, 2, 100)))
    lines[at] = json_text(lines[at], rng) if lines[at] else rng.randbytes(9)
    return rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\0")).join(lines)


def tensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file, the metadata in it, its length, or the numbers."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(8)
    if kind < 3:
        header = json_text(header, rng)
    elif kind < 6:
        header = _metadata_changed(header, rng)
    elif kind == 6:
        body = any_bytes(body, rng)
    else:
        return any_bytes(data, rng)
    length = rng.choice(LENGTHS) if rng.random() < 0.05 else len(header)
    return length.to_bytes(8, "little") + header + body


def png(data: bytes, rng: random.Random) -> bytes:
    """Change one chunk of a PNG and right its checksum."""
    chunks = _chunks(data)
    if not chunks or rng.random() < 0.3:
        return any_bytes(data, rng)
    at = rng.randrange(len(chunks))
    kind, content = chunks[at]
    if rng.random() < 0.15:
        chunks.insert(rng.randrange(len(chunks)), chunks.pop(at))
    elif kind in (b"IDAT", b"iCCP", b"zTXt") and rng.random() < 0.5:
        start = 0 if kind == b"IDAT" else content.find(b"\0") + 2
        bomb = zlib.compress(bytes(rng.choice((10, 10**5, 10**7))))
        chunks[at] = (kind, content[:start] + bomb)
    else:
        chunks[at] = (kind, any_bytes(content, rng))
    parts = [
        len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4)
        for kind, content in chunks
    ]
    return data[:8] + b"".join(parts)


def _nasty(rng: random.Random) -> Any:
    """One of `NASTY` of its own, which may be changed in turn."""
    return copy.deepcopy(rng.choice(NASTY))


def _metadata_changed(header: bytes, rng: random.Random) -> bytes:
    """A change in the JSON text that lies in the header's own JSON."""
    try:
        fields = json.loads(header)
        key = rng.choice(sorted(fields["__metadata__"]))
        text = json_text(fields["__metadata__"][key].encode(), rng)
        fields["__metadata__"][key] = text.decode("utf-8", "replace")
        return json.dumps(fields).encode()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return any_bytes(header, rng)


def _changed(value: Any, rng: random.Random) -> Any:
    """One node of a tree replaced, removed or doubled."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return _nasty(rng)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    if rng.random() < 0.6 or not isinstance(value[key], dict | list):
        action = rng.randrange(6)
        if action == 0:
            del value[key]
        elif action == 1 and isinstance(value, list):
            value *= rng.choice((2, 100))
        elif action == 2 and isinstance(value, dict):
            value[str(rng.choice(NASTY))[:200]] = value[key]
        else:
            value[key] = _nasty(rng)
    else:
        value[key] = _changed(value[key], rng)
    return value


def _twice(text: str) -> str:
    """A JSON object with its first member written a second time."""
    if not text.startswith("{") or "," not in text:
        return text
    return text[:-1] + ", " + text[1 : text.index(",")] + "}"


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG: kind and content."""
    at, found = 8, []
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found

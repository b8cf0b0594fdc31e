"""A place for things that can be made again: the least recently used go when it is full."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Shelf(Generic[Value]):
    """Values by key, within a number of bytes; may be used by several threads."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._kept: OrderedDict[str, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Value | None:
        """What was put there, unless it had to go."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: str, value: Value, size: int) -> None:
        """Keep a value of `size` bytes; one larger than the shelf is not kept at all."""
        with self._lock:
            self._drop(key)
            if size > self.most_bytes:
                return
            self._kept[key] = (value, size)
            self.bytes += size
            while self.bytes > self.most_bytes:
                self._drop(next(iter(self._kept)))

    def forget(self, key: str) -> None:
        """Let go of a value, if it is there."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: str) -> None:
        if key in self._kept:
            self.bytes -= self._kept.pop(key)[1]

    def __len__(self) -> int:
        return len(self._kept)

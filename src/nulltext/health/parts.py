"""Work in named parts: each with its seconds, its peak of memory, and the reason if it failed.

A part that needs another one is skipped where that one failed, so the first failure is the cause.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from nulltext.errors import NulltextError, reason_of

Outcome = Literal["ok", "failed", "skipped"]

RESET_PEAK = "5"
"""Written to Linux's clear_refs, it sets a process's peak of resident memory to its present size
(proc(5))."""


@dataclass
class Part:
    """One part, done."""

    name: str
    outcome: Outcome
    seconds: float = 0.0
    peak_bytes: int | None = None
    """CUDA: the most bytes that tensors held, weights included. CPU: by how much the process grew
    at its fullest. None where the system does not say."""
    reason: str | None = None
    """Why it failed, or which part it waited for."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What was measured."""


class Parts:
    """Runs parts in turn and keeps what came of them."""

    def __init__(
        self,
        device: torch.device,
        on_part: Callable[[str], None] | None = None,
    ) -> None:
        """Begin with nothing done.

        Args:
            on_part: called with a part's name before it runs.
        """
        self.device, self.on_part = device, on_part
        self.done: list[Part] = []

    def run(
        self, name: str, work: Callable[[], Mapping[str, Any]], needs: Sequence[str] = ()
    ) -> Part:
        """Run one part and record it.

        Whatever it raises becomes its reason, as finding out what fails is the purpose.

        Args:
            work: returns figures. needs: names of parts without which it makes no sense.
        """
        missing = [part.name for part in self.done if part.name in needs and part.outcome != "ok"]
        if missing:
            self.done.append(Part(name, "skipped", reason=f"needs: {', '.join(missing)}"))
            return self.done[-1]
        if self.on_part is not None:
            self.on_part(name)
        peak, started = Peak(self.device), time.perf_counter()
        part = Part(name, "ok")
        try:
            part.figures = dict(work())
        except Exception as error:  # a driver, a kernel or a library may raise anything
            part.outcome, part.reason = "failed", first_sentence(error)
        part.peak_bytes = peak.read()
        part.seconds = round(time.perf_counter() - started, 3)
        self.done.append(part)
        return part

    @property
    def failed(self) -> list[Part]:
        """The parts that raised."""
        return [part for part in self.done if part.outcome == "failed"]


def first_sentence(error: BaseException) -> str:
    """The first line of what an exception says; our own messages are one line anyway."""
    if isinstance(error, NulltextError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else reason_of(error)


class Peak:
    """The most memory that is held from here on."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.base = device, 0
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        elif device.type == "cpu":
            self.base = _reset_resident() or 0

    def read(self) -> int | None:
        """In bytes; see `Part.peak_bytes`. Waits for the device, so that seconds are true."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return int(torch.cuda.max_memory_allocated(self.device))
        if self.device.type != "cpu" or not self.base:
            return None
        now = _resident("VmHWM")
        return None if now is None else max(0, now - self.base)


def _reset_resident() -> int | None:
    """Set the peak back, and return the present size; None where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(key: str) -> int | None:
    if sys.platform == "win32":
        return None
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    said = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(said[key].split()[0]) * 1024 if key in said else None


def mapped(value: Any, clean: Callable[[str], str] = str) -> Any:
    """A value for JSON: every string through `clean`, and None for numbers that JSON has not."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {key: mapped(one, clean) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(one, clean) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def rounded(value: float, digits: int = 4) -> float:
    """To significant digits, for reports; what is not finite stays."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else value

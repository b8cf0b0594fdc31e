"""Jobs as units of work: what each is known by, and which ones share an inversion.

    id     = SHA-256 of the options and of the contents of the files that they name
    group  = SHA-256 of what the inversion follows from

Equal lines on equal files are one unit, wherever they stand; a photo that was changed makes its
jobs new ones. A unit is plain data: it is sent to other processes as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nulltext.errors import ImageError, UserError, reason_of
from nulltext.jobs.job_options import PATHS
from nulltext.jobs.jobs import Job, Refused
from nulltext.storage.untrusted import refuse_address

ID_LENGTH = 24
"""Hexadecimal digits of an id: 96 bits."""

INVERTING = (
    *("image", "source", "captioner", "crop", "size", "method", "steps", "budget"),
    *("inner_steps", "null_start", "guidance", "seed", "inversion"),
)
"""Options that an inversion follows from; under --full, the mask may place the crop as well."""


@dataclass(frozen=True)
class Unit:
    """One job, as it is handed out."""

    id: str
    group: str
    line: int
    place: str
    """What its line is called; see `Job`."""
    job: Job | None
    """None where the line cannot be understood."""
    reason: str = ""
    """Why it cannot be done, if so much is clear already."""

    @property
    def names(self) -> dict[str, Any]:
        """What its row begins with."""
        options = {} if self.job is None else self.job.options
        shown = {name: options[name] for name in ("image", "source", "target") if name in options}
        return {"job": self.id, "line": self.line, **shown}


def unit_of(found: Job | Refused, within: Path | None = None) -> Unit:
    """A line as a unit.

    Args:
        within: the folder that all files of jobs have to be in.
    """
    if isinstance(found, Refused):
        name = _digest(found.text.decode("utf-8", "replace"))
        return Unit(name, name, found.line, found.place, None, found.reason)
    contents: dict[str, str] = {}
    reason = ""
    for option in sorted(PATHS & found.options.keys()):
        try:
            contents[option] = _contents(found.base / found.options[option], within)
        except UserError as error:
            reason = reason or f"{found.place}: {error}"
            contents[option] = "none"
    options = dict(found.options)
    shared = {name: options.get(name) for name in INVERTING}
    if options.get("full"):
        shared["mask"] = options.get("mask")
    return Unit(
        id=_digest([options, contents]),
        group=_digest([shared, contents.get("image"), contents.get("inversion")]),
        line=found.line,
        place=found.place,
        job=found,
        reason=reason,
    )


def grouped(units: Iterable[Unit]) -> list[list[Unit]]:
    """Units that share an inversion together, groups and units in the order in which they came."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.group, []).append(unit)
    return list(groups.values())


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def _contents(path: Path, within: Path | None) -> str:
    """SHA-256 of a regular file.

    Raises:
        ImageError: it is none, it cannot be read, or it is elsewhere.
    """
    try:
        if within is not None and not path.resolve().is_relative_to(within.resolve()):
            raise ImageError(
                f"'{path}' is not in '{within}', where --within keeps the files of jobs."
            )
        if not path.is_file():
            refuse_address(path, ImageError)
            what = "is no regular file" if path.exists() else "does not exist"
            raise ImageError(f"'{path}' {what}: check the path.")
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links is a RuntimeError
        raise ImageError(f"'{path}' cannot be read ({reason_of(error)}).") from error

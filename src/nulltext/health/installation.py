"""What nulltext runs on: versions, devices, folders, extras, and what keeps it from working."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from packaging.requirements import Requirement

from nulltext.constants import __version__
from nulltext.health.parts import mapped
from nulltext.models.memory import free_memory

PACKAGE = "nulltext"
FOR_DEVELOPERS = ("dev", "test", "benchmark")
"""Extras that the doctor does not speak of."""


@dataclass
class Health:
    """The doctor's findings."""

    versions: dict[str, str] = field(default_factory=dict)
    """Of nulltext, Python and the libraries that it cannot do without."""
    devices: list[dict[str, Any]] = field(default_factory=list)
    """Name, kind, memory in bytes, and for the processor its threads."""
    model: dict[str, Any] = field(default_factory=dict)
    """Name, family, fingerprint, essential settings, and how far its figures are from the known
    ones."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Of an edit and, for a report, of the check-up: see `parts.Part`."""
    compared: list[dict[str, Any]] = field(default_factory=list)
    """Figures with the range that a healthy checkpoint's lie in, and its source."""
    extras: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By extra: what is missing, and the command that brings it."""
    folders: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Where things are put, and whether they can be."""
    problems: list[str] = field(default_factory=list)
    """What keeps it from working."""
    notes: list[str] = field(default_factory=list)
    """What is good to know."""

    @property
    def healthy(self) -> bool:
        """Whether nothing keeps it from working."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """All of it, for a program."""
        found: dict[str, Any] = mapped({"healthy": self.healthy, **asdict(self)})
        return found


def look_around(health: Health) -> None:
    """Everything but the model."""
    _look_at_versions(health)
    _look_at_devices(health)
    _look_at_folders(health)
    _look_at_extras(health)


def _look_at_versions(health: Health) -> None:
    health.versions = {
        "nulltext": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for requirement in _requirements(""):
        found = _installed(requirement)
        health.versions[requirement.name] = found or "missing"
        if not _fits(requirement):
            health.problems.append(
                f"{requirement} is needed and {found or 'nothing'} is installed; "
                f"pip install '{requirement}'."
            )


def _look_at_devices(health: Health) -> None:
    memory = {"memory_bytes": _total_memory(), "free_bytes": free_memory(torch.device("cpu"))}
    threads = {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    health.devices.append({"name": "cpu", "kind": platform.machine(), **memory, **threads})
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        try:
            torch.ones(1, device=device).sum().item()
            kind = torch.cuda.get_device_properties(device)
            sizes = {"memory_bytes": kind.total_memory, "free_bytes": free_memory(device)}
            health.devices.append({"name": str(device), "kind": kind.name, **sizes})
        except RuntimeError as error:
            said = str(error).strip().splitlines()
            health.problems.append(
                f"The device {device} does not compute ({said[0] if said else 'no reason given'}); "
                "pass --device cpu, or mend its driver."
            )
    if torch.backends.mps.is_available():
        health.devices.append({"name": "mps", "kind": "Apple GPU"})
    if len(health.devices) == 1:
        health.notes.append("There is no GPU that torch can use; everything runs on the processor.")


def _look_at_folders(health: Health) -> None:
    """A full or read-only place for temporary files breaks much; a hub cache only downloads."""
    temporary, cache = Path(tempfile.gettempdir()), Path(HF_HUB_CACHE)
    for name, path in (("temporary", temporary), ("hub_cache", cache)):
        health.folders[name] = {"path": str(path), "writable": _writable(path)}
    if not health.folders["temporary"]["writable"]:
        health.problems.append(f"'{temporary}' cannot be written; set TMPDIR to a folder that can.")
    if not health.folders["hub_cache"]["writable"]:
        health.notes.append(
            f"'{cache}' cannot be written, so models of the hub cannot be kept; set HF_HOME to a "
            "folder that can."
        )


def _look_at_extras(health: Health) -> None:
    try:
        names = importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        health.notes.append("nulltext runs from its source, so which extras it has is not known.")
        return
    for name in names:
        if name in FOR_DEVELOPERS:
            continue
        missing = [
            str(requirement.name) for requirement in _requirements(name) if not _fits(requirement)
        ]
        install = f"pip install '{PACKAGE}[{name}]'"
        health.extras[name] = {"present": not missing, "missing": missing, "install": install}


def _requirements(extra: str) -> list[Requirement]:
    """What the installed package asks for: by itself ("") or for an extra."""
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    return [r for r in found if _applies(r, extra) and r.name != PACKAGE]


def _applies(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return extra == ""
    own = requirement.marker.evaluate({"extra": extra})
    return own and (extra == "" or not requirement.marker.evaluate({"extra": ""}))


def _installed(requirement: Requirement) -> str | None:
    try:
        return importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(requirement: Requirement) -> bool:
    found = _installed(requirement)
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def _total_memory() -> int | None:
    if sys.platform == "win32":
        return None
    return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))


def _writable(folder: Path) -> bool:
    """Whether a file can be put there now; a folder that does not exist yet, whether it can be."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"nulltext")
        return True
    except OSError:
        return False

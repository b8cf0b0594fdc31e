"""Describe what nulltext runs on, and write a check-up as one file for a bug report.

The file is without private names: paths, home folders, names of users and hosts and access tokens
are taken out of every sentence, and a model is named by its last path component or its hub id.
`.json` gets JSON, any other name the same as Markdown with the JSON inside.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from packaging.requirements import Requirement

from nulltext.constants import __version__
from nulltext.models.hub import parse_hub_model
from nulltext.models.load import display_name
from nulltext.models.memory import free_memory
from nulltext.storage.files import replace_file

PACKAGE = "nulltext"
FOR_DEVELOPERS = ("dev", "test", "benchmark")


@dataclass
class Health:
    """What the doctor found."""

    versions: dict[str, str] = field(default_factory=dict)
    """Of nulltext, Python and the required libraries."""
    devices: list[dict[str, Any]] = field(default_factory=list)
    """Name, kind, memory in bytes, and for the processor its threads."""
    model: dict[str, Any] = field(default_factory=dict)
    """Name, family, fingerprint, settings, and how far its figures are from the known ones."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """`checkup.Part` of an edit and, for a report, of the measurements."""
    compared: list[dict[str, Any]] = field(default_factory=list)
    """Figures with the range of a healthy checkpoint's, and its source."""
    extras: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By extra: what is missing, and the command that installs it."""
    folders: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Where files are written, and whether that is possible."""
    problems: list[str] = field(default_factory=list)
    """What keeps nulltext or the model from working."""
    notes: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = json_safe({"healthy": self.healthy, **asdict(self)})
        return found


def json_safe(value: Any, clean: Callable[[str], str] = str) -> Any:
    """Convert a value for JSON: strings through `clean`, infinities and NaN to None."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {key: json_safe(one, clean) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(one, clean) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def describe_installation() -> Health:
    health = Health()
    _add_versions(health)
    _add_devices(health)
    _add_folders(health)
    _add_extras(health)
    return health


def _add_versions(health: Health) -> None:
    health.versions = {
        "nulltext": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for requirement in _requirements():
        version = _installed(requirement)
        health.versions[requirement.name] = version or "missing"
        if not _fits(requirement):
            health.problems.append(
                f"{requirement} is needed and {version or 'nothing'} is installed; "
                f"pip install '{requirement}'."
            )


def _add_devices(health: Health) -> None:
    memory = None
    if sys.platform != "win32":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    health.devices.append(
        {
            "name": "cpu",
            "kind": platform.machine(),
            "memory_bytes": memory,
            "free_bytes": free_memory(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
        }
    )
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        try:
            torch.ones(1, device=device).sum().item()
            kind = torch.cuda.get_device_properties(device)
            sizes = {"memory_bytes": kind.total_memory, "free_bytes": free_memory(device)}
            health.devices.append({"name": str(device), "kind": kind.name, **sizes})
        except RuntimeError as error:
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            health.problems.append(
                f"The device {device} does not compute ({reason}); pass --device cpu, or mend its "
                "driver."
            )
    if torch.backends.mps.is_available():
        health.devices.append({"name": "mps", "kind": "Apple GPU"})
    if len(health.devices) == 1:
        health.notes.append("There is no GPU that torch can use; everything runs on the processor.")


def _add_folders(health: Health) -> None:
    temporary, cache = Path(tempfile.gettempdir()), Path(HF_HUB_CACHE)
    for name, path in (("temporary", temporary), ("hub_cache", cache)):
        health.folders[name] = {"path": str(path), "writable": _is_writable(path)}
    if not health.folders["temporary"]["writable"]:
        health.problems.append(f"'{temporary}' cannot be written; set TMPDIR to a folder that can.")
    if not health.folders["hub_cache"]["writable"]:
        health.notes.append(
            f"'{cache}' cannot be written, so models of the hub cannot be kept; set HF_HOME to a "
            "folder that can."
        )


def _is_writable(folder: Path) -> bool:
    """Whether a file can be put there, or where it does not exist yet, whether it can be made."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"nulltext")
        return True
    except OSError:
        return False


def _add_extras(health: Health) -> None:
    try:
        names = importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        health.notes.append("nulltext runs from its source, so which extras it has is not known.")
        return
    for name in names:
        if name not in FOR_DEVELOPERS:
            missing = [each.name for each in _requirements(name) if not _fits(each)]
            install = f"pip install '{PACKAGE}[{name}]'"
            health.extras[name] = {"present": not missing, "missing": missing, "install": install}


def _requirements(extra: str = "") -> list[Requirement]:
    """Return what nulltext requires, or what an extra requires beside that."""
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    plain = [str(each) for each in found if _applies(each, "")] if extra else []
    return [
        each
        for each in found
        if _applies(each, extra) and str(each) not in plain and each.name != PACKAGE
    ]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _installed(requirement: Requirement) -> str | None:
    try:
        return importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(requirement: Requirement) -> bool:
    version = _installed(requirement)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


VERSION = 1
MEBIBYTE = 2**20

QUOTED = re.compile(r"'([^'\n]*[/\\][^'\n]*)'")
BARE_PATH = re.compile(r"(?<![\w/:.+])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\"():,;]+)+[/\\]?")
TOKEN = re.compile(r"\bhf_\w+")
QUERY = re.compile(r"(https?://[^\s?]+)\?\S+")


def report_of(health: Health, model: str) -> dict[str, Any]:
    name = display_name(model)

    def clean(text: str) -> str:
        return without_private(text.replace(f"'{model}'", f"'{name}'"))

    found = {
        "nulltext_report": VERSION,
        "healthy": health.healthy,
        "problems": health.problems,
        "notes": health.notes,
        "model": health.model | {"name": name},
        "versions": health.versions,
        "devices": health.devices,
        "extras": {extra: one["present"] for extra, one in health.extras.items()},
        "folders_writable": {key: one["writable"] for key, one in health.folders.items()},
        "parts": health.parts,
        "compared": health.compared,
    }
    cleaned: dict[str, Any] = json_safe(found, clean)
    cleaned["model"]["name"] = name
    return cleaned


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, whole or not at all.

    Raises:
        OutputError: it cannot be written there.
    """
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    if path.suffix.lower() != ".json":
        text = "\n".join([*markdown(report), "```json", text, "```"])
    replace_file(path, f"{text}\n".encode())


def without_private(text: str) -> str:
    text = TOKEN.sub("TOKEN", QUERY.sub(r"\1", text))
    text = QUOTED.sub(lambda match: f"'{_last(match[1])}'", text)
    text = BARE_PATH.sub(lambda match: _last(match[0]), text)
    for word, replacement in ((_user(), "USER"), (platform.node(), "HOST")):
        if word:
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", replacement, text)
    return text


def _last(path: str) -> str:
    """Return the last part of a path; a hub id stays whole."""
    named = parse_hub_model(path)
    if named is not None and named.file is None and not Path(path).exists():
        return path
    parts = [part for part in re.split(r"[/\\]", path) if part]
    return parts[-1] if parts else "/"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without an entry
        return ""


def markdown(report: Mapping[str, Any]) -> list[str]:
    model, versions = report["model"], report["versions"]
    lines = [
        f"# nulltext check-up of {model['name']}",
        "",
        "Healthy." if report["healthy"] else f"Problems: {len(report['problems'])}.",
        "",
        *(f"- Problem: {problem}" for problem in report["problems"]),
        *(f"- Note: {note}" for note in report["notes"]),
        "",
        f"{model.get('family', 'not loaded')}, {model['dtype']} on {model['device']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
        "| part | outcome | seconds | peak MiB | figures |",
        "|---|---|--:|--:|---|",
    ]
    for part in report["parts"]:
        peak = part["peak_bytes"]
        size = "" if peak is None else f"{peak / MEBIBYTE:.0f}"
        said = part["reason"] or _short(part["figures"])
        lines.append(
            f"| {part['name']} | {part['outcome']} | {part['seconds']:.2f} | {size} | {said} |"
        )
    lines += ["", "| figure | measured | expected | holds | source |", "|---|--:|---|---|---|"]
    for one in report["compared"]:
        ends = (one["least"], one["most"])
        least, most = ("" if end is None else f"{end:g}" for end in ends)
        holds = "yes" if one["holds"] else "NO"
        lines.append(
            f"| {one['figure']} | {one['value']} | {least} to {most} | {holds} | {one['source']} |"
        )
    return [*lines, ""]


def _short(figures: Mapping[str, Any]) -> str:
    single = {k: v for k, v in figures.items() if isinstance(v, int | float | str)}
    return ", ".join(f"{key} {value}" for key, value in single.items()).replace("|", "\\|")

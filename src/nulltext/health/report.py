"""Write a check-up as one file for a bug report, without private names.

Paths, home folders, names of users and hosts and access tokens are taken out of every sentence, and
a model is named by its last path component or its hub id. `.json` gets JSON, any other name the
same as Markdown with the JSON inside.
"""

from __future__ import annotations

import getpass
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nulltext.health.installation import Health, json_safe
from nulltext.models.hub import parse_hub_model
from nulltext.models.load import display_name
from nulltext.storage.files import replace_file

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

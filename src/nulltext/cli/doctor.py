"""`nulltext doctor`: what nulltext runs on, and whether it runs as it should."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from nulltext import defaults
from nulltext.cli.options import DeviceOption, JsonOption, ModelOption, QuietOption
from nulltext.cli.report import Reporter

if TYPE_CHECKING:
    from nulltext.health import Health

GIB = 1024**3
EXIT_UNHEALTHY = 1


def doctor(
    model: ModelOption = defaults.MODEL,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print versions, devices, memory and extras, and let the model reproduce a known figure.

    Example: [bold]nulltext doctor[/bold]

    The exit code is 0 if all is well, 1 if something keeps nulltext from working. When you report
    a fault, add what this prints.
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    with reporter.busy("Looking around …"):
        from nulltext.health import examine

        health = examine(model, device)
    reporter.result(health.as_json(), _lines(health))
    if not health.healthy:
        raise typer.Exit(EXIT_UNHEALTHY)


def _lines(health: Health) -> list[str]:
    lines = [f"{name:<16}{version}" for name, version in health.versions.items()]
    lines += [f"{one['name']:<16}{_device(one)}" for one in health.devices]
    for name, folder in health.folders.items():
        state = "writable" if folder["writable"] else "NOT writable"
        lines.append(f"{name.replace('_', ' '):<16}{folder['path']} ({state})")
    for name, extra in health.extras.items():
        state = "present" if extra["present"] else f"no {', '.join(extra['missing'])}: "
        lines.append(f"{f'[{name}]':<16}{state}{'' if extra['present'] else extra['install']}")
    lines.append(f"{'model':<16}{_model(health)}")
    lines += [f"Note: {note}" for note in health.notes]
    lines += [f"Problem: {problem}" for problem in health.problems]
    return [*lines, "All is well." if health.healthy else f"Problems: {len(health.problems)}."]


def _device(one: dict[str, object]) -> str:
    said = [str(one["kind"])]
    if "threads" in one:
        said.append(f"{one['threads']} threads on {one['cores']} cores")
    for name, label in (("memory_bytes", "of memory"), ("free_bytes", "free")):
        size = one.get(name)
        if isinstance(size, int):
            said.append(f"{size / GIB:.1f} GiB {label}")
    return ", ".join(said)


def _model(health: Health) -> str:
    found = health.model
    if "fingerprint" not in found:
        return f"{found['name']}, cannot be loaded"
    said = f"{found['name']} ({found['fingerprint'][:8]}) on {found['device']}, "
    outcomes = {
        None: "no known figure",
        True: "reproduces its known figure",
        False: "does NOT reproduce its known figure",
    }
    said += outcomes[found["reproduces"]]
    if found["deviations"]:
        said += f" (off by {max(found['deviations'].values()):.1g} of its size)"
    return said

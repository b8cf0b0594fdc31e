"""`nulltext doctor`: print what nulltext runs on, and check it and a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from nulltext.cli import EXIT_OURS
from nulltext.cli.options import takes_options
from nulltext.cli.report import Reporter
from nulltext.errors import OptionError
from nulltext.jobs.options import option_field
from nulltext.models.choice import ModelChoice

if TYPE_CHECKING:
    from nulltext.diffusion.loops import StepInfo
    from nulltext.health.report import Health

GIB = 1024**3
MIB = 1024**2

MOST_STEPS = 1000
"""Of the inversions of a check-up, at most; a model trained on fewer steps has fewer."""


@dataclass(frozen=True)
class DoctorOptions:
    """The options of `doctor`."""

    report: Path | None = option_field(
        None,
        "Also measure the model on the example photo, compare it with a healthy one, and write a "
        "file for a bug report (.json, else Markdown); it names no path and no person.",
        "FILE",
    )
    steps: int | None = option_field(
        None, "With --report: steps of its inversions; default 20.", "T"
    )


@takes_options
def doctor(chosen: ModelChoice, options: DoctorOptions, reporter: Reporter) -> None:
    """Print versions, devices, memory and extras, and try an edit in two steps, part by part.

    Example: [bold]nulltext doctor[/bold]

    A checkpoint of your own: [bold]nulltext doctor --model FOLDER --report report.md[/bold]

    The exit code is 0 if all is well, 1 if something keeps nulltext from working or the model is
    abnormal, 2 for bad options or a model that is not there. When you report a fault, add what this
    prints, or the file.
    """
    report = options.report
    _check(options)
    from nulltext.health.checkup import CHECKUP_PARTS, CHECKUP_STEPS, TRIAL_PARTS, examine
    from nulltext.health.report import report_of, write_report

    num_steps = None if report is None else options.steps or CHECKUP_STEPS
    names = TRIAL_PARTS if report is None else CHECKUP_PARTS
    with reporter.bars() as bars:
        task = bars.add_task("Check-up", total=len(names), remark="")

        def on_part(name: str) -> None:
            bars.update(task, completed=names.index(name), remark=name)

        def on_step(info: StepInfo) -> None:
            bars.update(task, remark=f"{info.stage} {info.index} of {info.total}")

        def on_bytes(done: int, total: int) -> None:
            bars.update(task, remark=f"fetched {done / MIB:.0f} of {total / MIB:.0f} MiB")

        health = examine(
            chosen, num_steps=num_steps, on_part=on_part, on_step=on_step, on_bytes=on_bytes
        )
        bars.update(task, completed=len(names), remark="")
    found = health.as_json()
    lines = _lines(health)
    if report is not None:
        found = report_of(health, chosen.model)
        write_report(report, found)
        lines.append(f"Saved {report}")
    reporter.result(found, lines)
    reporter.errors(health.problems)
    if not health.healthy:
        raise typer.Exit(EXIT_OURS)


def _check(options: DoctorOptions) -> None:
    from nulltext.storage.files import check_target

    if options.report is not None:
        check_target(options.report)
    if options.steps is None:
        return
    if options.report is None:
        raise OptionError("--steps is for --report FILE; leave it out, or ask for a report.")
    if not 1 <= options.steps <= MOST_STEPS:
        raise OptionError(
            f"The number of steps is {options.steps}; choose one from 1 to {MOST_STEPS} "
            "(20 is usual)."
        )


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
    lines += [f"  {part['name']:<20}{_part(part)}" for part in health.parts]
    lines += [f"Note: {note}" for note in health.notes]
    lines += [f"Problem: {problem}" for problem in health.problems]
    return [*lines, "All is well." if health.healthy else f"Problems: {len(health.problems)}."]


def _part(part: dict[str, object]) -> str:
    if part["outcome"] != "ok":
        return f"{part['outcome']}: {part['reason']}"
    peak, figures = part["peak_bytes"], part["figures"]
    said = [f"{part['seconds']:.2f} s"]
    if isinstance(peak, int):
        said.append(f"{peak / MIB:.0f} MiB")
    assert isinstance(figures, dict)
    said += [f"{key} {value}" for key, value in figures.items() if isinstance(value, int | float)]
    return ", ".join(said)


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
    said = f"{found['name']} ({found['fingerprint'][:8]}), {found['family']}, "
    said += f"{found['dtype']} on {found['device']}, "
    outcomes = {
        None: "no known figure",
        True: "reproduces its known figure",
        False: "does NOT reproduce its known figure",
    }
    said += outcomes[found["reproduces"]]
    if found["deviations"]:
        said += f" (off by {max(found['deviations'].values()):.1g} of its size)"
    return said

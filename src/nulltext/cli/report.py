"""Talking to the person (standard error) and to the next program (standard output)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from nulltext.execution.figures import decibels as decibels

if TYPE_CHECKING:
    from torch import Tensor

    from nulltext.models.latent_diffusion import LatentDiffusion
    from nulltext.record import StepInfo

PREVIEW_INTERVAL = 1.0
"""Least seconds between two previews that are decoded to show the PSNR so far."""

PREVIEW_SHARE = 0.05
"""Share of the time that previews may take, where decoding is slow."""

STAGES = {
    "pivot": "DDIM inversion",
    "optimise": "Optimisation",
    "correct": "Corrections",
    "replay": "Replay",
    "edit": "Editing",
}


class Reporter:
    """Where a verb says what it does and what came of it."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A remark that does not stop the work."""
        self.console.print(text, markup=False)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Show that something without steps is going on."""
        with self.console.status(what):
            yield

    def result(self, values: dict[str, Any] | list[dict[str, Any]], lines: Sequence[str]) -> None:
        """The outcome: one JSON object (or a list of them), or lines for a person."""
        if self.as_json:
            finite = _finite(values) if isinstance(values, dict) else [*map(_finite, values)]
            typer.echo(json.dumps(finite, allow_nan=False))
        elif not self.quiet:
            typer.echo("\n".join(lines))

    @contextmanager
    def progress(
        self, model: LatentDiffusion, photo: Tensor | None = None
    ) -> Iterator[Callable[[StepInfo], None]]:
        """Bars for a generator of steps, one per stage.

        Args:
            photo: [1, 3, H, W] in [-1, 1]; when given, the PSNR so far is shown.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            yield _StepBars(progress, model, None if self.quiet else photo).show


class _StepBars:
    """Draws `StepInfo`s, decoding a preview now and then."""

    def __init__(self, progress: Progress, model: LatentDiffusion, photo: Tensor | None) -> None:
        self.progress, self.model, self.photo = progress, model, photo
        self.tasks: dict[str, TaskID] = {}
        self.next_preview = time.monotonic() + PREVIEW_INTERVAL

    def show(self, info: StepInfo) -> None:
        """Move the bar of the step's stage."""
        if info.stage not in self.tasks:
            self.tasks[info.stage] = self.progress.add_task(
                f"{STAGES.get(info.stage, info.stage):<22}", total=info.total, remark=""
            )
        task = self.tasks[info.stage]
        self.progress.update(task, completed=info.index)
        started = time.monotonic()
        due = started > self.next_preview or info.index == info.total
        if self.photo is not None and info.clean_estimate is not None and due:
            from nulltext.images import psnr

            so_far = psnr(self.model.decode(info.clean_estimate).cpu(), self.photo)
            self.progress.update(task, remark=f"{decibels(so_far)} so far")
            now = time.monotonic()
            self.next_preview = now + max(PREVIEW_INTERVAL, (now - started) / PREVIEW_SHARE)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity (the PSNR of equal pictures): it becomes null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }

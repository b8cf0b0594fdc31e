"""`nulltext studio`: edit a photo by its words in the browser."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nulltext import constants
from nulltext.cli.options import takes_options
from nulltext.cli.report import Reporter
from nulltext.models.choice import ModelChoice
from nulltext.studio.server import (
    HOST,
    PORT,
    can_open_browser,
    check_port,
    check_root_path,
    private_folder,
    running,
)

if TYPE_CHECKING:
    from nulltext.studio.session import Studio


POLL = 0.5
"""Seconds between two looks whether to stop."""


@takes_options
def studio(
    *,
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Address to listen at; 0.0.0.0 lets everybody in your network in."
        ),
    ] = HOST,
    port: Annotated[int, typer.Option("--port", help="Port to listen at; 0: any free one.")] = PORT,
    open_browser: Annotated[
        bool,
        typer.Option("--open/--no-browser", help="Open the page, where this machine has a screen."),
    ] = True,
    root_path: Annotated[
        str,
        typer.Option(
            "--root-path",
            metavar="PATH",
            help="Where a proxy shows the studio, such as /editor or https://example.org/editor.",
        ),
    ] = "",
    captioner: Annotated[
        str | None,
        typer.Option(
            "--captioner",
            metavar="FOLDER",
            help="Who proposes the words; default: the bundled.",
        ),
    ] = None,
    chosen: ModelChoice,
    reporter: Reporter,
) -> None:
    """Edit a photo by its words in the browser, on this machine alone.

    Example: [bold]nulltext studio[/bold]

    Another model: [bold]nulltext studio --model path/to/stable-diffusion --device cuda[/bold]
    """
    from nulltext.errors import require

    logging.basicConfig(level=logging.WARNING)
    check_port(host, port)
    root_path = check_root_path(root_path)
    with private_folder() as folder, _stoppable() as stop:
        with reporter.busy("Starting …"):
            require("gradio", "studio", "The studio")
        made = _open_studio(reporter, folder, captioner, chosen)
        with running(made, host, port, root_path) as url:
            reporter.result({"url": url}, [f"The studio is at {url} (Ctrl-C stops it)."])
            sys.stdout.flush()
            if open_browser and can_open_browser():
                webbrowser.open(url)
            while not stop.wait(POLL):
                pass
    reporter.note("Stopped; the pictures that were not downloaded are gone.")


def _open_studio(
    reporter: Reporter,
    folder: Path,
    captioner: str | None,
    chosen: ModelChoice,
) -> Studio:
    """The model, and a captioner where there is one."""
    from nulltext.captioning.folder import bundled_captioners, load_captioner
    from nulltext.cli.work import open_model
    from nulltext.studio.resources import Resources
    from nulltext.studio.session import Studio

    writer = None
    suits = chosen.model == constants.MODEL and constants.CAPTIONER in bundled_captioners()
    if captioner is not None or suits:
        with reporter.busy("Loading the captioner …"):
            writer = load_captioner(captioner or constants.CAPTIONER, device=chosen.device)
    loaded = open_model(reporter, chosen)
    return Studio(Resources(loaded, folder, chosen, captioner=writer))


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, and whoever asks the process to end."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

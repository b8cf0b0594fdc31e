"""`nulltext studio`: edit a photo by its words in the browser."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nulltext import constants
from nulltext.cli.options import takes_options
from nulltext.cli.report import Reporter
from nulltext.jobs.options import option_field
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


@dataclass(frozen=True)
class StudioOptions:
    """The options of `studio`."""

    host: str = option_field(
        HOST, "Address to listen at; 0.0.0.0 lets everybody in your network in."
    )
    port: int = option_field(PORT, "Port to listen at; 0: any free one.")
    open_browser: bool = option_field(
        True, "Open the page, where this machine has a screen.", flags="--open/--no-browser"
    )
    root_path: str = option_field(
        "",
        "Where a proxy shows the studio, such as /editor or https://example.org/editor.",
        "PATH",
    )
    captioner: str | None = option_field(
        None, "Who proposes the words; default: the bundled.", "FOLDER"
    )


@takes_options
def studio(options: StudioOptions, chosen: ModelChoice, reporter: Reporter) -> None:
    """Edit a photo by its words in the browser, on this machine alone.

    Example: [bold]nulltext studio[/bold]

    Another model: [bold]nulltext studio --model path/to/stable-diffusion --device cuda[/bold]
    """
    from nulltext.errors import require

    logging.basicConfig(level=logging.WARNING)
    check_port(options.host, options.port)
    root_path = check_root_path(options.root_path)
    with private_folder() as folder, _stoppable() as stop:
        with reporter.busy("Starting …"):
            require("gradio", "studio", "The studio")
        made = _open_studio(reporter, folder, options.captioner, chosen)
        with running(made, options.host, options.port, root_path) as url:
            reporter.result({"url": url}, [f"The studio is at {url} (Ctrl-C stops it)."])
            sys.stdout.flush()
            if options.open_browser and can_open_browser():
                webbrowser.open(url)
            while not stop.wait(POLL):
                pass
    reporter.note("Stopped; the pictures that were not downloaded are gone.")


def _open_studio(
    reporter: Reporter, folder: Path, captioner: str | None, chosen: ModelChoice
) -> Studio:
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
    """Yield an event that Ctrl-C and SIGTERM set."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

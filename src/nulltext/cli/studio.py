"""`nulltext studio`: edit a photo by its words in the browser."""

from __future__ import annotations

import contextlib
import logging
import os
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
from nulltext.errors import OptionError, require
from nulltext.jobs.options import option_field
from nulltext.models.choice import ModelChoice
from nulltext.studio.addresses import HOST, PORT, check_password, check_port, check_root_path
from nulltext.studio.server import (
    can_open_browser,
    kept_folder,
    private_folder,
    running,
    state_folder,
)

if TYPE_CHECKING:
    from nulltext.studio.sessions import Studio

PASSWORD = "NULLTEXT_STUDIO_PASSWORD"
"""Variable of the environment with the password; other users can read a command's options."""

POLL = 0.5
"""Seconds between two looks whether to stop."""


@dataclass(frozen=True)
class StudioOptions:
    """The options of `studio`."""

    host: str = option_field(
        HOST, "Address to listen at; 0.0.0.0 lets your network in, for which --password is needed."
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
    password: str | None = option_field(
        None, f"Password that browsers are asked for; better in {PASSWORD}."
    )
    no_password: bool = option_field(
        False, "Let everybody in who reaches this machine.", flags="--no-password"
    )
    folder: Path | None = option_field(
        None, "Where photos and edits are kept from one time to the next.", "FOLDER"
    )
    forget: bool = option_field(
        False, "Keep photos and edits only until the studio stops.", flags="--forget"
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

    logging.basicConfig(level=logging.WARNING)
    check_port(options.host, options.port)
    root_path = check_root_path(options.root_path)
    given = options.password or os.environ.get(PASSWORD, "")
    password = check_password(options.host, given, is_open=options.no_password)
    if options.forget and options.folder:
        raise OptionError("--folder and --forget exclude each other; drop one of them.")
    with reporter.busy("Starting …"):
        for library in ("starlette", "uvicorn"):
            require(library, "studio", "The studio")
    opened = private_folder() if options.forget else kept_folder(options.folder or state_folder())
    with opened as folder, _stoppable() as stop:
        made = _open_studio(reporter, folder, options, chosen)
        with running(made, options.host, options.port, root_path, password) as url:
            reporter.result({"url": url}, [f"The studio is at {url} (Ctrl-C stops it)."])
            sys.stdout.flush()
            if options.open_browser and can_open_browser():
                webbrowser.open(url)
            while not stop.wait(POLL):
                pass
    if options.forget:
        reporter.note("Stopped; the pictures that were not downloaded are gone.")
    else:
        reporter.note(f"Stopped; photos and edits are kept in '{folder}'.")


def _open_studio(
    reporter: Reporter, folder: Path, options: StudioOptions, chosen: ModelChoice
) -> Studio:
    from nulltext.captioning.folder import bundled_captioners, load_captioner
    from nulltext.cli.work import open_model
    from nulltext.studio.resources import Resources
    from nulltext.studio.sessions import Studio

    captioner, writer = options.captioner, None
    suits = chosen.model == constants.MODEL and constants.CAPTIONER in bundled_captioners()
    if captioner is not None or suits:
        with reporter.busy("Loading the captioner …"):
            writer = load_captioner(captioner or constants.CAPTIONER, device=chosen.device)
    loaded = open_model(reporter, chosen)
    resources = Resources(loaded, folder, chosen, captioner=writer, is_kept=not options.forget)
    return Studio(resources)


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

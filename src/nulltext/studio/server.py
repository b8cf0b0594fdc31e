"""Serve a studio: its folder, and uvicorn in a thread."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nulltext.errors import OptionError, OutputError
from nulltext.storage.files import is_abandoned, lock_folder, output_error
from nulltext.studio.addresses import EVERYWHERE, Place, check_port

if TYPE_CHECKING:
    from nulltext.studio.sessions import Studio

TEMPORARY = "nulltext-studio-"
"""What the names of temporary folders begin with."""
STOP_SECONDS = 2
"""Time that requests have to end when the server stops."""
CONNECTIONS = 400
"""Most connections; beyond, requests are answered with 503."""
START_POLL = 0.01


def state_folder() -> Path:
    """Return the folder in which the studio keeps sessions, by the custom of the system."""
    home = Path.home()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_STATE_HOME") or home / ".local" / "state"
    return Path(base) / "nulltext" / "studio"


@contextlib.contextmanager
def kept_folder(folder: Path) -> Iterator[Path]:
    """Make a folder that only its owner can read, where it is missing, and lock it.

    Raises:
        OutputError: it cannot be written, or another studio uses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise output_error(folder, error) from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(folder))
        except OutputError as error:
            raise OutputError(
                f"Another studio keeps its photos in '{folder}': open that one, or start this one "
                "with --forget, or with a --folder of its own."
            ) from error
        yield folder


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that only its owner can read; it is removed afterwards, at exit at the latest.

    Those of processes that were killed are removed first.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        if is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=TEMPORARY, ignore_cleanup_errors=True) as name,
        lock_folder(name),
    ):
        yield Path(name)


@contextlib.contextmanager
def running(
    studio: Studio, host: str, port: int, root_path: str = "", password: str = ""
) -> Iterator[str]:
    """Serve a studio while the block runs; gives its address.

    Args:
        root_path: where a proxy shows it, "/editor" or "https://example.org/editor".
        password: to be given in each browser; "": none.

    Raises:
        OptionError: the port cannot be used.
    """
    free_port = check_port(host, port)
    import uvicorn

    from nulltext.studio.guard import Guard, Password
    from nulltext.studio.page import Page

    page = Page(studio)
    kept = Password.kept(password, studio.resources.folder) if password else None
    app = Guard(page.app(), Place(host, root_path), kept, cookie=f"nulltext-{free_port}")
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=free_port,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            lifespan="off",
            ws="none",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )
    thread = threading.Thread(target=server.run, name="nulltext-server", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise OptionError(f"Nothing can listen at {host}:{free_port}; choose another --port.")
        time.sleep(START_POLL)
    shown = "127.0.0.1" if host in EVERYWHERE else host
    try:
        yield f"http://{f'[{shown}]' if ':' in shown else shown}:{free_port}"
    finally:
        studio.close()  # ends what runs
        server.servers[0].get_loop().call_soon_threadsafe(page.close)
        server.should_exit = True
        thread.join()


def can_open_browser() -> bool:
    """Whether this machine has a screen that the browser would appear on."""
    if os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )

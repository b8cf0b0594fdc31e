"""Serve a studio: a private folder, a free port, and the Gradio page."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nulltext.errors import OptionError, reason_of

if TYPE_CHECKING:
    from nulltext.studio.session import Studio

HOST = "127.0.0.1"
PORT = 7860
EVERYWHERE = ("0.0.0.0", "::")
THREADS = 80
"""Requests at once; most of them wait for the worker."""


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that only its owner can read; it is removed afterwards, at exit at the latest.

    Gradio keeps uploads there, too.
    """
    with tempfile.TemporaryDirectory(prefix="nulltext-studio-", ignore_cleanup_errors=True) as name:
        uploads = Path(name) / "uploads"
        uploads.mkdir()
        wanted = {"GRADIO_TEMP_DIR": str(uploads), "GRADIO_ANALYTICS_ENABLED": "False"}
        before = {key: os.environ.get(key) for key in wanted}
        os.environ |= wanted
        try:
            yield Path(name)
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


def check_port(host: str, port: int) -> int:
    """Return the port if it is free; 0 becomes a free one.

    Raises:
        OptionError: it is taken, or the host is not an address of this machine.
    """
    if not 0 <= port <= 65535:
        raise OptionError(f"--port is {port}; choose one from 1024 to 65535, or 0 for any.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except socket.gaierror as error:
        raise OptionError(f"--host '{host}' is no address ({reason_of(error)}).") from error
    except OSError as error:
        raise OptionError(
            f"Nothing can listen at {host}:{port} ({reason_of(error)}); another program may be "
            f"there already, so choose another: --port {port + 1 if port else 0}."
        ) from error


def check_root_path(root_path: str) -> str:
    """Return the root path without a slash at its end.

    Raises:
        OptionError: it is neither a path nor a whole address.
    """
    parts = urlsplit(root_path)
    whole = parts.scheme in ("http", "https") and parts.netloc
    path = root_path.startswith("/") and not parts.netloc
    if root_path and (not (whole or path) or parts.query or parts.fragment or " " in root_path):
        raise OptionError(
            f"--root-path is '{root_path}'; give a path such as /editor, or a whole address such "
            "as https://example.org/editor."
        )
    return root_path.rstrip("/")


@contextlib.contextmanager
def running(studio: Studio, host: str, port: int, root_path: str = "") -> Iterator[str]:
    """Serve a studio while the block runs; gives its address.

    Args:
        root_path: where a proxy shows it, "/editor" or "https://example.org/editor".

    Raises:
        OptionError: the port cannot be used.
    """
    free_port = check_port(host, port)
    from nulltext.studio.page import FRONT, build, launch_style

    page = build(studio)
    with _quiet():
        page.launch(
            server_name=host,
            server_port=free_port,
            root_path=root_path,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            max_threads=THREADS,
            max_file_size=studio.resources.limits.upload_bytes,
            allowed_paths=[str(studio.resources.folder / "sessions"), str(FRONT / "dahlia.jpg")],
            **launch_style(),
        )
    shown = "127.0.0.1" if host in EVERYWHERE else host
    try:
        yield f"http://{f'[{shown}]' if ':' in shown else shown}:{free_port}"
    finally:
        with _quiet():
            page.close(verbose=False)
        studio.close()


def can_open_browser() -> bool:
    """Whether this machine has a screen that the browser would appear on."""
    if os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what Gradio prints to standard error; standard output has the results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield

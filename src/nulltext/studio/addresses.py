"""Where a studio listens and is served, and whether others reach it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from nulltext.errors import OptionError, reason_of

HOST = "127.0.0.1"
PORT = 7860
LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Place:
    """Where a studio is served."""

    host: str
    """The address that it listens at."""
    root_path: str = ""
    """Where a proxy shows it: a path, a whole address, or nothing."""

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)

    @property
    def path(self) -> str:
        return urlsplit(self.root_path).path or "/"

    def serves(self, name: str) -> bool:
        """Whether a name in `Host`, without the port, is one of its own."""
        if name in (*LOOPBACK, self.host, urlsplit(self.root_path).hostname):
            return True
        if self.is_private:
            return False
        own = (socket.gethostname(), f"{socket.gethostname()}.local", socket.getfqdn())
        return is_address(name) or name in [one.lower() for one in own]

    def is_origin(self, origin: str, headers: Mapping[str, str]) -> bool:
        """Whether a page at `origin` is the studio's own."""
        proxied = headers.get("x-forwarded-host") if self.root_path else None
        own = {headers.get("host"), proxied, urlsplit(self.root_path).netloc} - {None, ""}
        return urlsplit(origin).netloc in own


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


def check_password(host: str, password: str, *, is_open: bool) -> str:
    """Return the password.

    Args:
        is_open: whether it is said aloud that there shall be none.

    Raises:
        OptionError: a studio that others reach has none, or there is one and shall not be.
    """
    if password and is_open:
        raise OptionError("--password and --no-password exclude each other; drop one of them.")
    if not (password or is_open or is_loopback(host)):
        raise OptionError(
            f"--host {host} lets others in: give --password, or NULLTEXT_STUDIO_PASSWORD in the "
            "environment, or --no-password if everybody who reaches this machine may use it."
        )
    return password


def is_loopback(host: str) -> bool:
    return host in LOOPBACK or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(name: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

"""A model hub on 127.0.0.1: what the real client asks for, from folders, with faults on demand.

As the real hub does, it lists a commit's files, answers HEAD with commit, ETag and size, sends
large files through an address on another host (here "localhost"), says why it refuses in
X-Error-Code, and advises anonymous clients in X-HF-Warning.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".ckpt")
"""Endings of files that are kept in LFS."""
CHUNK = 4096


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    authorized: bool


@dataclass(frozen=True)
class Content:
    """A file of which content was sent, from a byte on."""

    file: str
    first: int


@dataclass
class Repository:
    """A repository: its commits' folders, its branches and tags, and what is wrong with it."""

    commits: dict[str, Path]
    names: dict[str, str]
    refusal: tuple[int, str] | None = None
    """Status and X-Error-Code: of the files alone where that is GatedRepo, else of the list too."""
    cut: dict[str, int] = field(default_factory=dict)
    """Files whose connection ends once, after so many bytes."""
    stuck: dict[str, int] = field(default_factory=dict)
    """Files that stop after so many bytes, with the connection open."""


@dataclass
class StandInHub:
    """The server's state and its logs."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    silent: bool = False
    """Whether it takes connections without ever answering."""
    closing: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, folder: Path, commit: str = "a" * 40) -> Repository:
        """Serve a folder as the only commit of a new repository, on its branch main."""
        self.repositories[name] = Repository({commit: folder}, {"main": commit})
        return self.repositories[name]

    def files(self) -> list[str]:
        """Files of which content was sent, by name, as often as that was."""
        return sorted(content.file for content in self.contents)

    def forget(self) -> None:
        """Begin the logs anew."""
        self.asked.clear()
        self.contents.clear()


@contextmanager
def standin_hub() -> Iterator[StandInHub]:
    """Run one; it ends with the block."""
    hub = StandInHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_: Any) -> None:
        """Keep standard error for the tests."""

    def answer(self) -> None:
        path = urlsplit(self.path).path
        parts = [unquote(part) for part in path.strip("/").split("/")]
        self.authorized = "Authorization" in self.headers
        if self.hub.silent:
            self.hub.closing.wait()
        elif parts[:2] == ["api", "models"]:
            self.note()
            self.answer_list("/".join(parts[2:4]), parts[5] if parts[4:5] == ["revision"] else "")
        elif parts[0] == "content":
            self.note()
            self.send_content(self.hub.repositories["/".join(parts[1:3])], parts[3], parts[4:])
        elif parts[2:3] == ["resolve"]:
            self.note()
            self.answer_file("/".join(parts[:2]), parts[3], parts[4:])
        else:
            self.note()
            self.refuse(404, "RepoNotFound")

    def note(self) -> None:
        self.hub.asked.append(Asked(self.command, self.path, self.authorized))

    def found(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """A repository and the commit of a revision; refuses where there is none."""
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.refuse(404 if self.authorized else 401, "RepoNotFound")
            return None
        commit = repository.names.get(revision or "main", revision)
        if commit not in repository.commits:
            self.refuse(404, "RevisionNotFound")
            return None
        return repository, commit

    def answer_list(self, name: str, revision: str) -> None:
        found = self.found(name, revision)
        if found is None:
            return
        refusal = found[0].refusal
        if refusal is not None and refusal[1] != "GatedRepo":
            self.refuse(*refusal)
            return
        folder, siblings = found[0].commits[found[1]], []
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            size = path.stat().st_size
            entry: dict[str, Any] = {"rfilename": path.relative_to(folder).as_posix()}
            entry |= {"size": size, "blobId": git_sha(path)}
            if path.suffix in LARGE:
                entry["lfs"] = {"size": size, "sha256": sha256(path), "pointerSize": 134}
            siblings.append(entry)
        body = json.dumps({"id": name, "sha": found[1], "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("X-HF-Warning", "login; You are asking anonymously. Please log in.")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_file(self, name: str, revision: str, parts: list[str]) -> None:
        found = self.found(name, revision)
        if found is None:
            return
        repository, commit = found
        path = repository.commits[commit].joinpath(*parts)
        if repository.refusal is not None:
            self.refuse(*repository.refusal)
        elif not path.is_file():
            self.refuse(404, "EntryNotFound")
        elif path.suffix in LARGE:
            self.send_response(302)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-Etag", f'"{sha256(path)}"')
            self.send_header("X-Linked-Size", str(path.stat().st_size))
            host = self.hub.address.replace("127.0.0.1", "localhost")
            self.send_header("Location", f"{host}/content/{name}/{commit}/{'/'.join(parts)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_content(repository, commit, parts)

    def send_content(self, repository: Repository, commit: str, parts: list[str]) -> None:
        path, file = repository.commits[commit].joinpath(*parts), "/".join(parts)
        asked = self.headers.get("Range", "")
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        content = path.read_bytes()
        if self.command == "GET":
            self.hub.contents.append(Content(file, first))
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{git_sha(path)}"')
        self.send_header("Content-Length", str(len(content) - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = min(repository.stuck.get(file, len(content)), repository.cut.pop(file, len(content)))
        for start in range(first, stop, CHUNK):
            self.wfile.write(content[start : min(start + CHUNK, stop)])
        self.wfile.flush()
        if file in repository.stuck:
            self.hub.closing.wait()
        self.close_connection = stop < len(content)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_sha(path: Path) -> str:
    """What git calls a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

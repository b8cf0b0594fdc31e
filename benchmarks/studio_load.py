"""Many people at one studio: do all finish, does anybody see another's picture, what is left?

    python benchmarks/studio_load.py --sessions 16 --steps 4

Starts `nulltext studio` as a process of its own, so that its memory is its own, and lets each
session (a `gradio_client`, through the same events as the page) upload a photo of its own colour,
invert and edit it, all at the same time. Each downloads its result and compares what the edit left
alone with its own photo. Memory is the server's resident set, before, at most, and after everybody
has left.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

MEGABYTE = 1 << 20
SIDE = 640
TARGETS = ("red", "yellow", "white", "purple")


@dataclass(frozen=True)
class Visit:
    """What one session came to."""

    number: int
    own: bool
    """Whether the picture is its own: the part left of the crop has the photo's very bytes."""
    seconds: float
    sessions: Path
    """Where the server keeps what it has of sessions."""


def photo_of(number: int, folder: Path) -> Path:
    """A wide photo that no other session has: the dahlia in one of many tints."""
    path = folder / f"photo-{number}.png"
    with Image.open(Path(__file__).parents[1] / "examples" / "dahlia.jpg") as dahlia:
        pixels = np.asarray(dahlia.convert("RGB").resize((SIDE, SIDE * 2 // 3))).astype(float)
    tint = np.random.default_rng(number).uniform(0.5, 1.0, 3)
    Image.fromarray((pixels * tint).round().astype(np.uint8)).save(path)
    return path


def visit(url: str, number: int, folder: Path, steps: int, together: threading.Barrier) -> Visit:
    """Upload, invert, edit, download, compare, leave."""
    path = photo_of(number, folder)
    client = Client(url, verbose=False)
    together.wait()
    started = time.perf_counter()

    def ask(verb: str, **asked: Any) -> dict[str, Any]:
        view = client.submit(asked, api_name=f"/{verb}").result()
        assert isinstance(view, dict)
        assert view["problem"] is None, view["problem"]
        return view

    ask("open", file=handle_file(path))
    ask("invert", source="a photo of an orange flower", steps=steps)
    target = f"a photo of a {TARGETS[number % len(TARGETS)]} flower"
    view = ask("edit", target=target)
    assert view["result"]["target"] == target
    assert len(view["history"]) == 1
    file = local(view["result"]["download"])
    outside = view["inversion"]["crop"][0]
    with Image.open(file) as made, Image.open(path) as photo:
        same = np.asarray(made)[:, :outside] == np.asarray(photo)[:, :outside]
    client.close()
    return Visit(number, bool(same.all()), time.perf_counter() - started, file.parents[2])


def local(url: str) -> Path:
    """The file behind an address of the page."""
    return Path(unquote(url.removeprefix("gradio_api/file=")))


def resident(pid: int) -> float:
    """Megabytes of a process that are in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / MEGABYTE
    raise RuntimeError("no VmRSS")


def main() -> None:
    """Run it and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2, help="memory must not grow with these")
    options = parser.parse_args()
    command = [sys.executable, "-m", "nulltext.cli.main", "studio", "--port", "0", "--no-browser"]
    server = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())["url"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(_measured(server.pid, url, Path(folder), options), indent=2))
    finally:
        server.terminate()
        server.wait()


def _measured(pid: int, url: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    warm = threading.Barrier(1)
    visit(url, 999, folder, options.steps, warm)  # what is only loaded at first use
    time.sleep(2)
    before, peak, after = resident(pid), 0.0, []
    visits: list[Visit] = []
    for round_number in range(options.rounds):
        together = threading.Barrier(options.sessions)
        first = round_number * options.sessions  # nothing is at hand already
        with ThreadPoolExecutor(options.sessions) as people:
            coming = [
                people.submit(visit, url, number, folder, options.steps, together)
                for number in range(first, first + options.sessions)
            ]
            while not all(one.done() for one in coming):
                peak = max(peak, resident(pid))
                time.sleep(0.1)
            visits += [one.result() for one in coming]
        time.sleep(2)
        after.append(round(resident(pid)))
    return {
        "sessions": options.sessions,
        "steps": options.steps,
        "finished": len(visits),
        "own_picture": sum(one.own for one in visits),
        "sessions_left_on_disk": len([*visits[0].sessions.iterdir()]),
        "seconds_longest": round(max(one.seconds for one in visits), 1),
        "megabytes_before": round(before),
        "megabytes_peak": round(peak),
        "megabytes_after_each_round": after,
    }


if __name__ == "__main__":
    main()

"""Many people at one studio: do all finish, does anybody see another's picture, what is left?

    python benchmarks/studio_load.py --sessions 16 --steps 4 --edits 2

Starts `nulltext studio` as a process of its own, so that its memory is its own, and lets each
session, by the same requests as the page, upload a photo of its own colour, invert it and edit it,
all at the same time. Each downloads its results and compares what the edits left alone with its own
photo. Memory is the server's resident set, before, at most, and after each round.
"""

from __future__ import annotations

import argparse
import io
import json
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

MEGABYTE = 1 << 20
SIDE = 640
TARGETS = ("red", "yellow", "white", "purple")


@dataclass(frozen=True)
class Visit:
    """What one session came to."""

    number: int
    own: bool
    """Whether its pictures are its own: the part left of the crop has the photo's very bytes."""
    seconds: float


@dataclass(frozen=True)
class How:
    """What each session asks for."""

    steps: int
    edits: int


def photo_of(number: int, folder: Path) -> Path:
    """A wide photo that no other session has: the dahlia in one of many tints."""
    path = folder / f"photo-{number}.png"
    with Image.open(Path(__file__).parents[1] / "examples" / "dahlia.jpg") as dahlia:
        pixels = np.asarray(dahlia.convert("RGB").resize((SIDE, SIDE * 2 // 3))).astype(float)
    tint = np.random.default_rng(number).uniform(0.5, 1.0, 3)
    Image.fromarray((pixels * tint).round().astype(np.uint8)).save(path)
    return path


def visit(url: str, number: int, folder: Path, how: How, together: threading.Barrier) -> Visit:
    """Upload, invert, edit, download, compare."""
    path, session = photo_of(number, folder), secrets.token_hex(16)
    together.wait()
    started = time.perf_counter()

    def post(place: str, data: bytes) -> dict[str, Any]:
        with urlopen(Request(f"{url}/{place}", data, {"Session": session})) as answer:
            made = json.load(answer)
        assert isinstance(made, dict)
        assert made.get("problem") is None, made["problem"]
        return made

    def ask(verb: str, **asked: Any) -> dict[str, Any]:
        return post(f"ask/{verb}?wait=1", json.dumps(asked).encode())

    ask("open", **post(f"files?name={path.name}", path.read_bytes()))
    view = ask("invert", source="a photo of an orange flower", steps=how.steps)
    outside = view["inversion"]["crop"][0]
    own = True
    for edit in range(how.edits):
        target = f"a photo of a {TARGETS[(number + edit) % len(TARGETS)]} flower"
        view = ask("edit", target=target)
        assert (view["result"]["target"], len(view["history"])) == (target, edit + 1)
        with urlopen(f"{url}/{view['result']['download']}") as answer:
            picture = io.BytesIO(answer.read())
        with Image.open(picture) as made, Image.open(path) as photo:
            same = np.asarray(made)[:, :outside] == np.asarray(photo)[:, :outside]
        own &= bool(same.all())
    return Visit(number, own, time.perf_counter() - started)


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
    parser.add_argument("--edits", type=int, default=1, help="of each session")
    parser.add_argument("--rounds", type=int, default=2, help="memory must not grow with these")
    options = parser.parse_args()
    command = [sys.executable, "-m", "nulltext.cli.entry", "studio", "--port", "0", "--no-browser"]
    server = subprocess.Popen([*command, "--json", "--forget"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())["url"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(_measured(server.pid, url, Path(folder), options), indent=2))
    finally:
        server.terminate()
        server.wait()


def _measured(pid: int, url: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    how, warm = How(options.steps, options.edits), threading.Barrier(1)
    visit(url, 999, folder, how, warm)  # what is only loaded at first use
    time.sleep(2)
    before, peak, after = resident(pid), 0.0, []
    visits: list[Visit] = []
    for round_number in range(options.rounds):
        together = threading.Barrier(options.sessions)
        first = round_number * options.sessions  # nothing is at hand already
        with ThreadPoolExecutor(options.sessions) as people:
            coming = [
                people.submit(visit, url, number, folder, how, together)
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
        "edits": options.edits,
        "finished": len(visits),
        "own_picture": sum(one.own for one in visits),
        "seconds_longest": round(max(one.seconds for one in visits), 1),
        "megabytes_before": round(before),
        "megabytes_peak": round(peak),
        "megabytes_after_each_round": after,
    }


if __name__ == "__main__":
    main()

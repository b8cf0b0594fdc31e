"""What is left after kill -9? Runs that are killed at random moments, and the same commands again.

    python benchmarks/crash.py invert --kills 50
    python benchmarks/crash.py batch  --kills 50 --jobs 12
    python benchmarks/crash.py ray    --jobs 200 --workers 2 --every 5
    python benchmarks/crash.py speed  --jobs 60

Every killed process is a real one, ended by SIGKILL at a moment drawn uniformly over the length of
an undisturbed run (on Ray: a busy worker every few seconds). It is forked from this one after the
libraries are imported, so that the kills fall into the work and not into the imports. What is left
is compared with an undisturbed run: pictures byte by byte, inversions (all tensors, and headers but
for measured seconds), rows (but for seconds), and every name in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import nulltext
from nulltext.cli import main as cli
from nulltext.inversion import partial as partials

PHOTO = Path(__file__).parents[1] / "examples" / "dahlia.jpg"
SOURCE = "a photo of an orange flower"
TARGETS = ("a photo of a red flower", "a photo of a white flower", "a photo of a yellow flower")
MEASURED = ("seconds_invert", "seconds_edit")
"""Figures of a row that differ from run to run."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("invert", "batch", "ray", "speed"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--photos", type=int, default=None, help="default: a job in five")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", default="flowers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/crash"))
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)  # a forked child has none of its parent's pool, and would wait for it
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    {"invert": inverts, "batch": batches, "ray": workers, "speed": speed}[options.what](options)


def inverts(options: argparse.Namespace) -> None:
    """Inversions that are killed once each, and ended by the same command."""
    folder = options.folder.absolute()
    line = ["invert", str(PHOTO), "--prompt", SOURCE, "--steps", str(options.steps)]
    line += ["--budget", "paper", "--inner-steps", "3"]
    line += ["--model", options.model, "--quiet", "-o"]
    whole, took = timed([*line, str(folder / "whole.safetensors")])
    assert whole == 0
    names = ("killed", "of these with a partial file", "ended before the kill", "wrong")
    counts = dict.fromkeys(names, 0)
    while counts["killed"] < options.kills:
        own = folder / str(sum(counts.values()))
        own.mkdir(exist_ok=True)
        target = own / "x.safetensors"
        moment = random.uniform(0, took)
        died = killed_after([*line, str(target)], moment)
        took = took if died else moment  # that is how long it took at most
        counts["killed" if died else "ended before the kill"] += 1
        counts["of these with a partial file"] += partials.partial_of(target).exists()
        if target.exists():  # under its final name it must be whole
            nulltext.Inversion.load(target)
        code, _ = timed([*line, str(target)])
        same = code == 0 and inversion_of(target) == inversion_of(folder / "whole.safetensors")
        clean = [path.name for path in own.iterdir()] == [target.name]
        counts["wrong"] += not (same and clean)
        print(counts, flush=True)
        shutil.rmtree(own)
    report("invert", options, counts, {"seconds of an undisturbed run": round(took, 2)})


def batches(options: argparse.Namespace) -> None:
    """One batch is killed again and again; then another one, until there were enough kills."""
    folder = options.folder.absolute()
    jobs = write_jobs(folder, options.jobs, options.photos or 4, options.steps)
    line = batch_line(jobs, options)
    code, took = timed([*line, str(folder / "whole")])
    assert code == 0
    expected = contents(folder / "whole")
    counts = dict.fromkeys(("killed", "batches", "wrong"), 0)
    while counts["killed"] < options.kills:
        own = folder / f"batch-{counts['batches']}"
        while killed_after([*line, str(own)], random.uniform(0, took)):
            counts["killed"] += 1
        code, _ = timed([*line, str(own)])
        counts["batches"] += 1
        counts["wrong"] += code != 0 or contents(own) != expected
        print(f"{counts}", flush=True)
        shutil.rmtree(own)
    report("batch", options, counts, {"seconds of an undisturbed run": round(took, 2)})


def workers(options: argparse.Namespace) -> None:
    """A batch on Ray, of whose workers one is killed every few seconds, against a local one."""
    folder = options.folder.absolute()
    photos = options.photos or max(1, options.jobs // 5)
    jobs = write_jobs(folder, options.jobs, photos, options.steps)
    line = batch_line(jobs, options)
    code, alone = timed([*line, str(folder / "local")])
    assert code == 0
    killer = Killer(options.every)
    killer.start()
    many = [*line, str(folder / "ray"), "--ray", "local", "--workers", str(options.workers)]
    code, together = timed(many)
    killer.ended.set()
    found, expected = contents(folder / "ray"), contents(folder / "local")
    lines = (folder / "ray" / "results.jsonl").read_text().splitlines()
    names = [json.loads(line)["job"] for line in lines]
    counts = {
        "exit code": code,
        "killed": killer.count,
        "rows": len(names),
        "lost": options.jobs - len(set(names)),
        "twice": len(names) - len(set(names)),
        "equal to the local run": found == expected,
    }
    seconds = {"seconds locally": round(alone, 1), "seconds on Ray": round(together, 1)}
    report("ray", options, counts, seconds)


def batch_line(jobs: Path, options: argparse.Namespace) -> list[str]:
    """A batch one photo at a time, whose bytes do not depend on what was killed; -o is last."""
    return ["batch", str(jobs), "--batch-size", "1", "--model", options.model, "--quiet", "-o"]


def speed(options: argparse.Namespace) -> None:
    """One worker, then two, undisturbed, in one run: jobs per minute, start of Ray included."""
    folder = options.folder.absolute()
    jobs = write_jobs(folder, options.jobs, max(1, options.jobs // 5), options.steps)
    counts: dict[str, Any] = {}
    for number in (1, options.workers):
        own = folder / f"workers-{number}"
        line = [*batch_line(jobs, options), str(own)]
        code, took = timed([*line, "--ray", "local", "--workers", str(number)])
        assert code == 0
        stamps = sorted(path.stat().st_mtime for path in (own / "pictures").rglob("*.png"))
        working = stamps[-1] - stamps[0]
        counts[f"{number} workers"] = {
            "seconds in all": round(took, 1),
            "jobs per minute between the first picture and the last": round(
                60 * (len(stamps) - 1) / working, 1
            ),
        }
    report("speed", options, counts, {})


class Killer(threading.Thread):
    """Kills one of this process's Ray workers every few seconds, while there are any."""

    def __init__(self, every: float) -> None:
        super().__init__(daemon=True)
        self.every, self.count, self.ended = every, 0, threading.Event()

    def run(self) -> None:
        """Until it is told to stop."""
        while not self.ended.wait(self.every):
            found = [pid for pid, name in descendants(os.getpid()) if name == b"ray::Actor.do"]
            if found:
                os.kill(random.choice(found), signal.SIGKILL)
                self.count += 1


def descendants(process: int) -> Iterator[tuple[int, bytes]]:
    """(process, its name) of all that this one started, and that these started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    waiting = [process]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            waiting.append(child)
            try:
                yield child, Path(f"/proc/{child}/cmdline").read_bytes().strip(b"\0")
            except OSError:
                continue


def write_jobs(folder: Path, count: int, photos: int, steps: int) -> Path:
    """`count` jobs on so many crops of the example photo, as photos of their own."""
    from PIL import Image

    with Image.open(PHOTO) as whole:
        side = min(whole.size) // 2
        spots = [(random.randrange(side), random.randrange(side)) for _ in range(photos)]
        for index, (x, y) in enumerate(spots):
            whole.crop((x, y, x + side, y + side)).save(folder / f"{index}.png")
    lines = []
    for index in range(count):
        job = {"image": f"{index % photos}.png", "source": SOURCE, "steps": steps}
        job |= {"target": TARGETS[index // photos % len(TARGETS)]}
        job |= {"budget": "paper", "inner_steps": 2}
        job |= {"strength": round(random.uniform(0.3, 0.9), 6)}
        lines.append(json.dumps(job) + "\n")
    path = folder / "jobs.jsonl"
    path.write_text("".join(lines))
    return path


def started(line: Sequence[str]) -> int:
    """A process of its own with a command line; its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.argv = ["nulltext", *line]
    try:
        cli.main()
    except SystemExit as stop:
        os._exit(stop.code if isinstance(stop.code, int) else 0)
    os._exit(99)


def timed(line: Sequence[str]) -> tuple[int, float]:
    """(exit code, seconds) of a command that is left alone."""
    begun = time.perf_counter()
    _, status = os.waitpid(started(line), 0)
    return os.waitstatus_to_exitcode(status), time.perf_counter() - begun


def killed_after(line: Sequence[str], seconds: float) -> bool:
    """Whether a command had to be killed after so long; it may have ended by itself."""
    child = started(line)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def inversion_of(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Everything in a saved inversion but the seconds that were measured."""
    found = nulltext.Inversion.load(path)
    tensors = {name: tensor.numpy().tobytes() for name, tensor in found.tensors().items()}
    return tensors, asdict(replace(found.header, seconds=0.0))


def contents(folder: Path) -> dict[str, Any]:
    """Everything in a batch's folder, by name, and its rows by job; what a kill left included."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "results.jsonl":
            name = path.relative_to(folder).as_posix()
            kept = path.suffix == ".safetensors"
            found[name] = inversion_of(path) if kept else path.read_bytes()
    for line in (folder / "results.jsonl").read_text().splitlines():
        row = {name: value for name, value in json.loads(line).items() if name not in MEASURED}
        assert row["job"] not in found, "a row twice"
        found[row["job"]] = row
    return found


def report(what: str, options: argparse.Namespace, counts: Any, seconds: Any) -> None:
    """One line of JSON."""
    told = {"steps": options.steps, "seed": options.seed, "model": options.model}
    print(json.dumps({"what": what, **told, **counts, **seconds}))


if __name__ == "__main__":
    main()

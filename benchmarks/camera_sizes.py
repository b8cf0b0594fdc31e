"""Photos of cameras: seconds, memory, and how long a cancel waits, at 12, 24 and 50 megapixels.

    python benchmarks/camera_sizes.py --photo examples/dahlia.jpg

Enlarges a photo to each size, inverts all of it in few steps, and edits it with the bundled model:
by `nulltext edit --full`, and through the studio's handlers, each in a process of its own. Memory
is the peak of the process (VmHWM) less that of the same work on a photo of 0.3 megapixels, which is
what the model takes. In the studio, the longest time between two steps is how long *Cancel* waits,
and "after the model" the seconds from the model's last step to the picture on disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SOURCE = "a photo of an orange flower with a dark background"
RED, GREEN = SOURCE.replace("orange", "red"), SOURCE.replace("dark", "green")
SMALL = 0.3
"""Megapixels of the photo that memory is compared with."""
OWN_STEPS = ("pivot", "optimise", "correct", "replay", "region", "edit")
"""Stages in which the model runs."""


@dataclass(frozen=True)
class Work:
    """What is asked for of each photo."""

    target: str
    verb: str = "edit"
    """Of the studio."""
    masked: bool = False


WORKS = {
    "recolour": Work(RED),
    "background": Work(GREEN),
    "mask": Work(RED, masked=True),
    "five strengths": Work(GREEN, verb="strip"),
}


@dataclass(frozen=True)
class Cost:
    """What one piece of work took."""

    peak: int
    """Bytes resident, at most."""
    seconds: float
    after_model: float = math.nan
    longest: float = math.nan
    """The longest time between two steps."""


def main() -> None:
    """Measure, each in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[12, 24, 50])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--one", nargs=4, metavar=("FRONT", "WORK", "PHOTO", "MASK"))
    options = parser.parse_args()
    if options.one:
        front, work, photo, mask = options.one
        cost = FRONTS[front](WORKS[work], Path(photo), Path(mask))
        print(json.dumps(asdict(cost)))
        return
    print(
        "| front | work | megapixels | bytes a pixel | MB | s | s after the model | longest step |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        files = {
            size: enlarged(options.photo, size, Path(folder))
            for size in (SMALL, *options.megapixels)
        }
        for front in FRONTS:
            for work in options.works:
                if front == "command" and WORKS[work].verb != "edit":
                    continue
                costs = {size: measured(front, work, *pair) for size, pair in files.items()}
                for size in options.megapixels:
                    cost = costs[size]
                    more = (cost.peak - costs[SMALL].peak) / 1e6
                    cells = [f"{more / size:.1f}", f"{more:.0f}", f"{cost.seconds:.1f}"]
                    cells += [f"{cost.after_model:.1f}", f"{cost.longest:.2f}"]
                    row = " | ".join([front, work, f"{size:g}", *cells])
                    print(f"| {row} |", flush=True)


def enlarged(path: Path, megapixels: float, folder: Path) -> tuple[Path, Path]:
    """Enlarge a photo, and paint a mask of an ellipse for it."""
    with Image.open(path) as image:
        photo = image.convert("RGB")
    scale = math.sqrt(megapixels * 1e6 / (photo.width * photo.height))
    size = (int(scale * photo.width), int(scale * photo.height))
    files = folder / f"{megapixels:g}.jpg", folder / f"{megapixels:g}-mask.png"
    photo.resize(size, Image.Resampling.BICUBIC).save(files[0], quality=92)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(
        (size[0] // 8, size[1] // 8, 7 * size[0] // 8, 7 * size[1] // 8), fill=255
    )
    mask.save(files[1])
    return files


def measured(front: str, work: str, photo: Path, mask: Path) -> Cost:
    """Do one piece of work in a process of its own."""
    command = (sys.executable, __file__, "--photo", photo, "--one", front, work, photo, mask)
    done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def by_command(work: Work, photo: Path, mask: Path) -> Cost:
    """Run `nulltext edit --full` in this process, so that the peak is its own."""
    from nulltext.cli.entry import main as command

    masked = ["--mask", str(mask)] if work.masked else []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["nulltext", "edit", str(photo), "--full", "--source", SOURCE, "--target"]
        sys.argv += [work.target, "--size", "photo", "--steps", "4", "--quiet", *masked]
        sys.argv += ["--method", "ddim", "-o", f"{folder}/edited.png"]
        try:
            command()
        except SystemExit as end:
            if end.code:
                raise
    return Cost(peak(), time.perf_counter() - started)


def in_studio(work: Work, photo: Path, mask: Path) -> Cost:
    """Open, invert and edit through the studio's handlers."""
    import base64
    import shutil

    import nulltext
    from nulltext.models.choice import ModelChoice
    from nulltext.studio import resources
    from nulltext.studio.handlers import handle
    from nulltext.studio.sessions import Studio

    moments: list[tuple[float, str]] = []
    update = resources.Meter.update

    def noted(meter: resources.Meter, info: Any) -> None:
        moments.append((time.perf_counter(), info.stage))
        update(meter, info)

    resources.Meter.update = noted  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder:
        shared = resources.Resources(nulltext.load("flowers"), Path(folder), ModelChoice("flowers"))
        studio = Studio(shared)
        session = studio.session(32 * "0")
        assert session is not None

        def ask(verb: str, **asked: Any) -> dict[str, Any]:
            *_, view = handle(session, verb, asked)
            assert view["problem"] is None, view["problem"]
            return view

        with studio.receiving(photo.stat().st_size) as place:
            assert place is not None
            shutil.copy(photo, place)
            number = session.add_upload(place, photo.name)
        view = ask("open", file=number)
        whole = [0, 0, view["photo"]["width"], view["photo"]["height"]]
        ask("invert", source=SOURCE, crop=whole, method="ddim", steps=4)
        moments.clear()
        painted = {}
        if work.masked:
            with Image.open(mask) as image:
                image.thumbnail((1800, 1800))
                image.save(mask)
            data = base64.b64encode(mask.read_bytes()).decode()
            painted = {"mask": f"data:image/png;base64,{data}"}
        started = time.perf_counter()
        ask(work.verb, target=work.target, **painted)
        ended = time.perf_counter()
        most = peak()
        studio.close()
    times = [started, *(moment for moment, _ in moments), ended]
    last = max(moment for moment, stage in moments if stage in OWN_STEPS)
    longest = max(after - before for before, after in itertools.pairwise(times))
    return Cost(most, ended - started, ended - last, longest)


FRONTS = {"command": by_command, "studio": in_studio}


def peak() -> int:
    """Return the largest resident set of this process so far, in bytes (Linux)."""
    (line,) = [
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()

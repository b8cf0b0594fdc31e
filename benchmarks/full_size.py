"""Seams, halos and ghosts at full size: 24 fixed edits of photos of 640 to 2,000 px, as a page.

    apt-get download mate-backgrounds && dpkg-deb -x mate-backgrounds_*.deb mate
    python benchmarks/full_size.py --data FLOWERS -o docs \\
        --photos mate/usr/share/backgrounds/mate/nature

Runs the command lines that stand on the page, with the bundled model, and writes full-size.md and
full-size/01.jpg to 24.jpg: of each edit photo and edit, small, and at 1:1 in the two windows where
the photo changed most along the edge of the edit's region. The verdicts are those
of a person who looked at the pictures; look again after a change.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nulltext.image.saving import save_image
from nulltext.storage.files import replace_file

ROOT = Path(__file__).parents[1]
WINDOW = 208
"""Side of a window in pixels."""
STRIDE = 16
"""Pixels between the places that are tried for a window."""
WHOLE = (422, 282)
"""Largest width and height of a whole picture on the page."""
GAP = 6
QUALITY = 82
MOST_BYTES = 2_500_000
"""Of all pictures of the page together."""


@dataclass(frozen=True)
class Original:
    """A photo, and what it shows."""

    file: str
    """In this repository, in --photos, or in --data: an enlarged one."""
    size: tuple[int, int]
    """To which it is reduced or enlarged (Lanczos) before anything else."""
    prompt: str
    about: str


DAISY = "a photo of a white daisy with a dark background"
DANDELION = "a photo of a yellow dandelion with a dark background"
DAHLIA = "a photo of an orange flower with a dark background"
GARDEN = "Garden, © 2008 Charles Barbin, GPL-2+, reduced"
ORIGINALS = {
    "dahlia": Original("examples/dahlia.jpg", (640, 427), DAHLIA, "examples/dahlia.jpg"),
    "yellow": Original(
        "YellowFlower.jpg",
        (2000, 1250),
        "a photo of a yellow flower with a dark background",
        "YellowFlower, © 2008 Charles Barbin, GPL-2+, reduced",
    ),
    "garden": Original(
        "Garden.jpg", (2000, 1250), "a photo of a red flower with a green background", GARDEN
    ),
    "fresh": Original(
        "FreshFlower.jpg",
        (1600, 1203),
        "a photo of an orange flower with a red background",
        "FreshFlower, © 2005 Jens Ansorg, GPL-2+",
    ),
}
ENLARGED = {
    "daisy": (
        "33814092924_b23d019011_n.jpg",
        1280,
        DAISY,
    ),
    "roses": ("295257304_de893fc94d.jpg", 960, "a photo of a pink rose with a dark background"),
    "dandelion": (
        "3476759348_a0d34a4b59_n.jpg",
        640,
        DANDELION,
    ),
    "star": (
        "9595857626_979c45e5bf_n.jpg",
        1280,
        DAISY,
    ),
    "rose": ("1645761726_2b1be95472.jpg", 960, "a photo of a white rose with a dark background"),
    "meadow": (
        "534547364_3f6b7279d2_n.jpg",
        1280,
        "a photo of a white daisy with a green background",
    ),
    "blue": (
        "8735646181_fa9787d4e0.jpg",
        960,
        "a photo of a yellow dandelion with a blue background",
    ),
}
"""Photos of 160 px of the validation split: name, side to which they are enlarged, prompt."""
ORIGINALS |= {
    name: Original(f"images/{file}", (side, side), prompt, "enlarged from 160 px")
    for name, (file, side, prompt) in ENLARGED.items()
}


@dataclass(frozen=True)
class Task:
    """One edit."""

    kind: str
    photo: str
    target: str
    options: tuple[str, ...] = ()
    ellipse: tuple[int, int, int, int] | None = None
    """Box of the white ellipse that is the mask, in the photo's pixels."""
    verdict: str = ""
    """good, usable or bad, and why."""


PHOTO = ("--size", "photo")
TASKS = (
    Task(
        "colour",
        "dahlia",
        "a photo of a red flower with a dark background",
        verdict="usable: the petals' edges are sharp and without a rim; the lower left petals "
        "stay pale, and the second dahlia stays orange",
    ),
    Task(
        "colour",
        "dahlia",
        "a photo of a yellow flower with a dark background",
        PHOTO,
        verdict="good: petals and edges are as sharp as the photo's; the outer petals have "
        "greenish shadows",
    ),
    Task(
        "colour",
        "dahlia",
        "a photo of a pink flower with a dark background",
        verdict="good: both flowers, each to its edge, with the photo's own detail",
    ),
    Task(
        "colour",
        "yellow",
        "a photo of a red flower with a dark background",
        PHOTO,
        verdict="usable: sharp edges, no rim; the model drew the petals at the top left too "
        "dark, and two at the top right stay orange",
    ),
    Task(
        "colour",
        "yellow",
        "a photo of a white flower with a dark background",
        verdict="bad: the crop ends in the flower, whose right half stays yellow (the note "
        "says so), and the model left petals brown",
    ),
    Task(
        "colour",
        "garden",
        "a photo of a yellow flower with a green background",
        PHOTO,
        verdict="bad: the edges hold, but the petals are olive, and two stay red-brown",
    ),
    Task(
        "colour",
        "daisy",
        "a photo of a pink daisy with a dark background",
        verdict="bad: no glow around the petals, but those at the left, which the model left "
        "out, are dim shapes with a thin outline",
    ),
    Task(
        "colour",
        "roses",
        "a photo of a yellow rose with a dark background",
        verdict="bad: the region ends within a petal of the left rose, so half of the rose "
        "stays pink",
    ),
    Task(
        "kind",
        "dahlia",
        "a photo of a white daisy with a dark background",
        verdict="usable: sharp, without a rim; bluish white with blown highlights, a pale haze "
        "above the second flower, and still a dahlia",
    ),
    Task(
        "kind",
        "dahlia",
        "a photo of a yellow sunflower with a dark background",
        PHOTO,
        verdict="usable: sharp, a dark heart; still a dahlia, with a slight greenish haze "
        "along the right edge",
    ),
    Task(
        "kind",
        "yellow",
        "a photo of a white daisy with a dark background",
        PHOTO,
        verdict="usable: the petals' soft and sharp edges are the photo's; some petals are "
        "green in the shadow",
    ),
    Task(
        "kind",
        "dandelion",
        "a photo of a white daisy with a dark background",
        verdict="bad: the model painted the bud behind the flower white and left a brown hole "
        "in the petals",
    ),
    Task(
        "kind",
        "star",
        "a photo of a yellow sunflower with a dark background",
        verdict="usable: petals to their tips, with a faint brown glow around the lowest ones",
    ),
    Task(
        "kind",
        "rose",
        "a photo of a white tulip with a dark background",
        verdict="bad: the white rose with a green tinge; the model made no tulip of it",
    ),
    Task(
        "background",
        "dahlia",
        "a photo of an orange flower with a green background",
        verdict="bad: the new background ends in two bands at the crop's borders (the note "
        "says so); the flower's edge is clean",
    ),
    Task(
        "background",
        "dahlia",
        "a photo of an orange flower with a green background",
        PHOTO,
        verdict="good: the same edit of the whole photo: no band, no fringe around the petals",
    ),
    Task(
        "background",
        "yellow",
        "a photo of a yellow flower with a green background",
        PHOTO,
        verdict="good: blurred and sharp petals pass into the green as they did into black",
    ),
    Task(
        "background",
        "garden",
        "a photo of a red flower with a dark background",
        PHOTO,
        verdict="bad: of the blurred flowers behind, one half turned pink and the other "
        "stayed, as the region took them for flowers",
    ),
    Task(
        "background",
        "meadow",
        "a photo of a white daisy with a dark background",
        verdict="usable: clean edges; the dark is a dark blue, and the sky turned blue with it",
    ),
    Task(
        "background",
        "blue",
        "a photo of a yellow dandelion with a green background",
        verdict="good: every bud keeps its edge; the stalk turned green with the background",
    ),
    Task(
        "mask",
        "dahlia",
        "a photo of a red flower with a dark background",
        ellipse=(160, 75, 455, 368),
        verdict="usable: no seam; the mask fades inside its border, close to the petals, so "
        "the outer ones keep some orange",
    ),
    Task(
        "mask",
        "garden",
        "a photo of a yellow flower with a green background",
        ellipse=(680, 200, 2000, 1250),
        verdict="bad: the mask cuts through petals, which end in red, and the background "
        "brightens within it; without a mask (6) it does not",
    ),
    Task(
        "stress",
        "fresh",
        "a photo of an orange flower with a red background",
        ("--weight", "orange=2"),
        verdict='usable: clean, but twice the weight of "orange" hardly shows',
    ),
    Task(
        "strength",
        "star",
        "a photo of a purple daisy with a dark background",
        ("--strength", "0.8"),
        verdict="bad: one petal is gone but for a faint outline, others are pale at the tip; "
        "at strength 0.8 the model leaves the shapes",
    ),
)
assert all(task.photo in ORIGINALS for task in TASKS)


def main() -> None:
    """Make the edits, their pictures and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="captioned flowers: images/*.jpg")
    parser.add_argument("--photos", type=Path, required=True, help="photos of mate-backgrounds")
    parser.add_argument("--scratch", type=Path, default=Path("build/full-size"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    (options.output / "full-size").mkdir(parents=True, exist_ok=True)
    words = [task.verdict.split(":")[0] for task in TASKS]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("good", "usable", "bad"))
    text, total = [INTRODUCTION.format(counts=counts)], 0
    for number, task in enumerate(TASKS, start=1):
        photo = prepared(task, options)
        command, notes = run(number, task, options.scratch)
        path = options.output / "full-size" / f"{number:02}.jpg"
        sheet(photo, options.scratch, number).save(path, quality=QUALITY, optimize=True)
        total += path.stat().st_size
        original = ORIGINALS[task.photo]
        size = f"{original.size[0]} x {original.size[1]} px"
        text += [
            f"## {number}. {task.kind.capitalize()}: {original.prompt} → {task.target}\n",
            f"![Photo and edit, small, and twice at 1:1](full-size/{path.name})\n",
            f"{task.verdict[0].upper()}{task.verdict[1:]}.\n",
            f"{original.about}, {size}.{notes}\n",
            f"```sh\n{command}\n```\n",
        ]
        print(number, path.stat().st_size, notes, flush=True)
    replace_file(options.output / "full-size.md", "\n".join(text).encode())
    print(f"{total} bytes of pictures")
    assert total <= MOST_BYTES, "lower QUALITY or WINDOW"


def prepared(task: Task, options: argparse.Namespace) -> Image.Image:
    """The photo of an edit, written to the scratch folder with its mask."""
    original = ORIGINALS[task.photo]
    path = options.scratch / f"{task.photo}.png"
    if not path.exists():
        folders = (ROOT, options.photos, options.data)
        found = next(
            folder / original.file for folder in folders if (folder / original.file).exists()
        )
        photo = Image.open(found).convert("RGB")
        if photo.size != original.size:
            photo = photo.resize(original.size, Image.Resampling.LANCZOS)
        save_image(photo, path)
    if task.ellipse:
        mask = Image.new("L", original.size)
        ImageDraw.Draw(mask).ellipse(task.ellipse, fill=255)
        save_image(mask, options.scratch / f"{task.photo}-mask.png")
    return Image.open(path)


def run(number: int, task: Task, scratch: Path) -> tuple[str, str]:
    """Run an edit; return its command line, and what the command remarked."""
    mask = ("--mask", f"{task.photo}-mask.png") if task.ellipse else ()
    arguments = (
        "edit",
        f"{task.photo}.png",
        "--full",
        "--source",
        ORIGINALS[task.photo].prompt,
        "--target",
        task.target,
        *task.options,
        *mask,
    )
    files = ("-o", f"{number:02}.png", "--region-out", f"{number:02}-region.png", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "nulltext.cli.entry", *arguments, *files],
        cwd=scratch,
        check=True,
        capture_output=True,
        text=True,
    )
    said = json.loads(done.stdout)["remarks"]
    return shlex.join(["nulltext", *arguments]), "".join(f" {note}" for note in said)


def sheet(photo: Image.Image, scratch: Path, number: int) -> Image.Image:
    """Photo and edit, reduced, with the windows drawn in; below, both at 1:1 in each window."""
    edit = Image.open(scratch / f"{number:02}.png").convert("RGB")
    region = Image.open(scratch / f"{number:02}-region.png")
    corners = windows(*(np.asarray(picture, np.float32) for picture in (photo, edit, region)))
    boxes = [(x, y, x + WINDOW, y + WINDOW) for x, y in corners]
    wholes = [photo.copy(), edit.copy()]
    for box in boxes:
        line = max(1, round(edit.width / WHOLE[0]))
        ImageDraw.Draw(wholes[1]).rectangle(box, outline="white", width=line)
    for whole in wholes:
        whole.thumbnail(WHOLE)
    crops = [picture.crop(box) for box in boxes for picture in (photo, edit)]
    size = (4 * (WINDOW + GAP) - GAP, wholes[0].height + GAP + WINDOW)
    result = Image.new("RGB", size, "white")
    for tiles, top in ((wholes, 0), (crops, size[1] - WINDOW)):
        for index, tile in enumerate(tiles):
            result.paste(tile, (index * (size[0] + GAP) // len(tiles), top))
    return result


def windows(photo: np.ndarray, edit: np.ndarray, region: np.ndarray) -> list[tuple[int, int]]:
    """Top left corners of two windows: where the change is largest along the region's edge."""
    edge = (region > 0) & (region < region.max())
    change = np.abs(edit - photo).mean(axis=-1) * edge
    sums = np.pad(change.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    totals = {}
    height, width = region.shape
    for y in range(0, height - WINDOW + 1, STRIDE):
        for x in range(0, width - WINDOW + 1, STRIDE):
            bottom, right = y + WINDOW, x + WINDOW
            totals[x, y] = sums[bottom, right] - sums[y, right] - sums[bottom, x] + sums[y, x]
    first = max(totals, key=totals.__getitem__)
    apart = {
        at: total
        for at, total in totals.items()
        if max(abs(at[0] - first[0]), abs(at[1] - first[1])) >= WINDOW * 3 // 4
    }
    return [first, max(apart, key=apart.__getitem__)]


INTRODUCTION = """# At full size

24 edits with `--full`, of photos of 640 to 2,000 px, by the bundled model, which works at 128 px:
{counts}.

```sh
apt-get download mate-backgrounds && dpkg-deb -x mate-backgrounds_*.deb mate
python benchmarks/full_size.py --data FLOWERS -o docs \\
    --photos mate/usr/share/backgrounds/mate/nature
```

makes this page with its pictures, by the commands that stand below, run in `build/full-size`, where
it puts the photos. In each picture, photo and edit are shown small; below, photo and edit at
1:1, in the two windows where most changed along the border of where the edit shows. The verdicts
are of a person who looked at each as a photographer would: at seams, halos and ghosts first, then
at whether it is the edit that was asked for.

The photos: `examples/dahlia.jpg`; three of Debian's package `mate-backgrounds` (GPL-2+; of them,
this repository has only these small pictures); and photos of 160 px of the flowers' validation
split (`FLOWERS`), enlarged (Lanczos), for want of larger ones: these are soft, and so are their
edits.
"""

if __name__ == "__main__":
    main()

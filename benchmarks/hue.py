"""Do edits reach the colour that was asked for, and no more? Hue of flowers against real ones.

    python benchmarks/hue.py --data DIR --guidance 1 3
    python benchmarks/hue.py --data DIR --placed
    python benchmarks/hue.py --data DIR --guidance 4.5 --start 0.2
    python benchmarks/hue.py --data DIR --guidance 1 3 --samples

Eight validation photos for each colour word, of flowers of the other colours in turn, by the
default inversion and Prompt-to-Prompt. A photo serves where its label and the colour of its outline
(`nulltext.training.views`) say the same.

hue         mean hue inside the photo's outline, circular, weighted by chroma (largest less smallest
            channel), against the median of real training photos of that colour word, in degrees
            from -180 to 180; for white the mean chroma itself, in hundredths
within      share of edits within 25 degrees (white: chroma within `WHITE_WITHIN` of the real ones')
clipped     percentage of the outline's pixels with a channel at 0 or 255, less the photo's own
texture     correlation of the luminance less its blur (sigma 2 pixels) inside the outline with that
            of the photo's own autoencoder round trip
success     the judge (see `judge.py`) calls the edit by the new colour
kept        PSNR outside the outline, against that round trip, as in `editing.py`

With --samples, the hues of pictures that the model draws by the same targets from noise alone,
inside their own outlines or, without one, a centred disc of half the area.

With --placed the edits are measured as people get them: put into the photo where they belong, with
the hue that the word names (`image.colours`); the photo is then in the place of its round trip.

Inversions and pictures are kept in --work; a rerun makes only missing ones. Contact sheets (pairs
of round trip and edit, a row for each colour) are written there, too.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import nulltext
from captions import caption
from editing import kept
from judge import ATTRIBUTES, Judge, Label, load_judge, read_labels
from nulltext.evaluation.metrics import outside_disc
from nulltext.image.images import from_uint8, to_pil
from nulltext.training.denoiser import sample_latents, starting_noise
from nulltext.training.views import hsv, outline, segment

COLOURS = ATTRIBUTES["colour"]
EDITS = 8
"""Of each colour."""
REAL = 120
"""Training photos of each colour, at most, that say what is real."""
WITHIN = 25.0
"""Degrees of a hue that count as the colour that was asked for."""
WHITE_WITHIN = 10.0
"""The same for white, in hundredths of chroma above the real ones' median."""
BLUR = 2.0
"""Sigma of the blur that is taken from the luminance, in pixels."""
LUMA = (0.299, 0.587, 0.114)
TILE = 64

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Swap:
    """A photo, and the colour that its flower shall have."""

    colour: str
    path: Path
    label: Label

    @property
    def target(self) -> str:
        return caption({**self.label, "colour": self.colour})


@dataclass(frozen=True)
class Variant:
    """Options of the edits, and their name."""

    name: str
    options: dict[str, Any]
    placed: bool = False
    """Whether they are put into the photo."""


def swaps(folder: Path) -> list[Swap]:
    """The edits: `EDITS` of each colour."""
    labels = [r for r in read_labels(folder, "validation") if all(r[a] for a in ATTRIBUTES)]
    of_colour = {
        colour: [r for r in labels if r["colour"] == colour and is_true(folder, r)]
        for colour in COLOURS
    }
    found = []
    for number, colour in enumerate(COLOURS):
        turned = [rows[number:] + rows[:number] for c, rows in of_colour.items() if c != colour]
        mixed = [row for row in itertools.chain(*itertools.zip_longest(*turned)) if row]
        found += [Swap(colour, folder / str(row["file"]), row) for row in mixed[:EDITS]]
    return found


def is_true(folder: Path, label: Label) -> bool:
    """Whether the flower's outline has the colour that the label says."""
    found = segment(np.asarray(Image.open(folder / str(label["file"])).convert("RGB")))
    return found.colour == label["colour"]


@dataclass(frozen=True)
class Look:
    """The colour of some pixels."""

    hue: float
    """Degrees."""
    chroma: float
    """Hundredths."""
    clipped: float
    """Percentage."""


def look(picture: Pixels, mask: NDArray[np.bool_]) -> Look:
    """Measure the pixels of a mask [H, W] in a picture [H, W, 3]."""
    hue, saturation, value = hsv(picture)[:, mask]
    chroma = saturation * value
    mean = (chroma * np.exp(1j * np.deg2rad(hue))).sum()
    inside = picture[mask]
    clipped = ((inside == 0) | (inside == 255)).any(axis=1).mean()
    return Look(float(np.rad2deg(np.angle(mean))), 100 * float(chroma.mean()), 100 * float(clipped))


def turn(hue: float, reference: float) -> float:
    """The way from one hue to another, -180 to 180 degrees."""
    return (hue - reference + 180.0) % 360.0 - 180.0


def real_looks(folder: Path) -> dict[str, Look]:
    """What flowers of each colour look like: the medians of training photos."""
    rows, result = read_labels(folder, "train"), {}
    for colour in track(COLOURS, "Real flowers", console=Console(stderr=True)):
        some = [row for row in rows if row["colour"] == colour]
        some = [some[i * len(some) // REAL] for i in range(REAL)] if len(some) > REAL else some
        looks = []
        for row in some:
            picture = np.asarray(Image.open(folder / str(row["file"])).convert("RGB"))
            found = segment(picture)
            if found.mask is not None and found.colour == colour:
                looks.append(look(picture, found.mask))
        first = looks[0].hue
        hue = first + statistics.median(turn(each.hue, first) for each in looks)
        chroma, clipped = (
            statistics.median(getattr(each, name) for each in looks)
            for name in ("chroma", "clipped")
        )
        result[colour] = Look(hue, chroma, clipped)
    return result


def texture(edited: Pixels, reference: Pixels, mask: NDArray[np.bool_]) -> float:
    """Correlate the fine luminance of two pictures [H, W, 3] inside a mask [H, W]."""
    fine = []
    for picture in (edited, reference):
        luma = (picture @ np.array(LUMA)).astype(np.float32)
        fine.append((luma - cv2.GaussianBlur(luma, (0, 0), BLUR))[mask])
    return float(np.corrcoef(*fine)[0, 1])


class Studio:
    """Makes the pictures, and keeps them."""

    def __init__(self, model: nulltext.LatentDiffusion, work: Path) -> None:
        self.model, self.work = model, work

    def inversion(self, swap: Swap) -> nulltext.Inversion:
        """The inversion of a photo, by the default method."""
        path = self.work / f"{self.model.fingerprint[:8]} {swap.path.stem}.safetensors"
        if not path.is_file():
            nulltext.invert(self.model, swap.path, caption(swap.label)).save(path)
        return nulltext.Inversion.load(path)

    def reference(self, swap: Swap, variant: Variant) -> Pixels:
        """The photo, or its round trip through the autoencoder: what an edit starts from."""
        if variant.placed:
            return np.asarray(to_pil(from_uint8(self.inversion(swap).photo)[0]))
        path = self.work / f"{self.model.fingerprint[:8]} {swap.path.stem}.png"
        if not path.is_file():
            latents = self.inversion(swap).trajectory[:1].to(self.model.device)
            to_pil(self.model.decode(latents).cpu()[0]).save(path)
        return np.asarray(Image.open(path))

    def edit(self, swap: Swap, variant: Variant) -> Pixels:
        """The edited picture."""
        folder = self.work / f"{self.model.fingerprint[:8]} {variant.name}"
        path = folder / f"{swap.colour} {swap.path.stem}.png"
        if not path.is_file():
            folder.mkdir(exist_ok=True)
            spec = nulltext.EditSpec(swap.target, **variant.options)
            if variant.placed:
                [placed] = nulltext.edit_photo(self.model, self.inversion(swap), spec)
                placed.image.save(path)
            else:
                edit = nulltext.edit(self.model, self.inversion(swap), spec)
                to_pil(edit.images[0]).save(path)
        return np.asarray(Image.open(path))


Figures = dict[str, float]


def figures_of(edited: Pixels, reference: Pixels, swap: Swap, real: Look, judge: Judge) -> Figures:
    """Measure one edit; see the module's text."""
    mask = outline_of(swap.path, reference.shape[0])
    now, before = look(edited, mask), look(reference, mask)
    white = swap.colour == "white"
    off = now.chroma - real.chroma if white else turn(now.hue, real.hue)
    return {
        "off": off,
        "within": float(off <= WHITE_WITHIN if white else abs(off) <= WITHIN),
        "chroma": now.chroma,
        "clipped": now.clipped - before.clipped,
        "texture": texture(edited, reference, mask),
        "success": float(judge.colour(_unit(edited)) == [swap.colour]),
        "kept": kept(_unit(edited), _unit(reference), ~torch.from_numpy(mask))["psnr_outside"],
    }


@functools.cache
def outline_of(path: Path, side: int) -> NDArray[np.bool_]:
    """The flower in a square photo that has a plausible outline, [side, side]."""
    found = outline(np.asarray(Image.open(path).convert("RGB")))
    assert found is not None
    size = (side, side)
    return cv2.resize(found.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)


def _unit(picture: Pixels) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255.0


def contact_sheet(pairs: Sequence[Sequence[Pixels]]) -> Image.Image:
    """Rows of pictures, small."""
    width = max(map(len, pairs))
    sheet = Image.new("RGB", (width * TILE, len(pairs) * TILE))
    for y, row in enumerate(pairs):
        for x, picture in enumerate(row):
            tile = Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (x * TILE, y * TILE))
    return sheet


COLUMNS = {
    "off": "hue off, median",
    "within": "within, %",
    "chroma": "chroma",
    "clipped": "clipped, %",
    "texture": "texture",
    "success": "success, %",
    "kept": "kept, dB",
}


def print_table(
    console: Console, title: str, rows: dict[str, list[Figures]], real: dict[str, Look]
) -> None:
    """One line per colour, and one over all of them."""
    table = Table(title=title)
    for name in ("colour", "edits", *COLUMNS.values(), "worst off", "real chroma", "real clipped"):
        table.add_column(name, justify="left" if name == "colour" else "right")
    whole = [figures for each in rows.values() for figures in each]
    for colour, figures in {**rows, "all": whole}.items():
        off = [f["off"] for f in figures]
        typical = statistics.median(map(abs, off) if colour == "all" else off)
        mean = {name: statistics.mean(f[name] for f in figures) for name in COLUMNS}
        known = real.get(colour)
        table.add_row(
            colour,
            str(len(figures)),
            f"{typical:.0f}" if colour == "all" else f"{typical:+.0f}",
            f"{100 * mean['within']:.0f}",
            f"{mean['chroma']:.0f}",
            f"{mean['clipped']:+.1f}",
            f"{mean['texture']:.3f}",
            f"{100 * mean['success']:.0f}",
            f"{mean['kept']:.2f}",
            f"{max(off, key=abs):+.0f}",
            f"{known.chroma:.0f}" if known else "",
            f"{known.clipped:.1f}" if known else "",
        )
    console.print(table)


def measure(
    studio: Studio, judge: Judge, tasks: Sequence[Swap], real: dict[str, Look], variant: Variant
) -> dict[str, list[Figures]]:
    """Figures of all edits by colour; writes the contact sheet."""
    figures: dict[str, list[Figures]] = {colour: [] for colour in COLOURS}
    tiles: dict[str, list[Pixels]] = {colour: [] for colour in COLOURS}
    for swap in track(tasks, variant.name, console=Console(stderr=True)):
        edited, reference = studio.edit(swap, variant), studio.reference(swap, variant)
        tiles[swap.colour] += [reference, edited]
        figures[swap.colour].append(figures_of(edited, reference, swap, real[swap.colour], judge))
    contact_sheet(list(tiles.values())).save(studio.work / f"{variant.name}.png")
    return figures


def print_samples(
    console: Console,
    model: nulltext.LatentDiffusion,
    tasks: Sequence[Swap],
    real: dict[str, Look],
    scale: float,
) -> None:
    """How far the model's own colours are from real ones; one line per colour."""
    noise = starting_noise(model, len(tasks), seed=0)
    latents = sample_latents(model, [s.target for s in tasks], noise, guidance_scale=scale)
    off: dict[str, list[float]] = {colour: [] for colour in COLOURS}
    for swap, row in zip(tasks, latents.split(1), strict=True):
        picture = np.asarray(to_pil(model.decode(row).cpu()[0]))
        found = outline(picture)
        mask = ~outside_disc(*picture.shape[:2]).numpy() if found is None else found
        now, wanted = look(picture, mask), real[swap.colour]
        white = swap.colour == "white"
        off[swap.colour].append(now.chroma - wanted.chroma if white else turn(now.hue, wanted.hue))
    for colour, figures in off.items():
        limit = WHITE_WITHIN if colour == "white" else WITHIN
        within = statistics.mean(abs(figure) <= limit for figure in figures)
        listed = ", ".join(f"{figure:+.0f}" for figure in sorted(figures))
        console.print(
            f"from noise, guidance {scale:g}, {colour}: off {statistics.median(figures):+.0f}, "
            f"within {100 * within:.0f} %: {listed}"
        )


def prepared(data: Path, work: Path) -> tuple[list[Swap], dict[str, Look]]:
    """The edits, and what is real; kept in a file of their own."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "real.json"
    if not path.is_file():
        looks = {colour: vars(seen) for colour, seen in real_looks(data).items()}
        files = [[s.colour, str(s.label["file"])] for s in swaps(data)]
        path.write_text(json.dumps({"looks": looks, "swaps": files}), encoding="utf-8")
    known = json.loads(path.read_text(encoding="utf-8"))
    labels = {str(row["file"]): row for row in read_labels(data, "validation")}
    tasks = [Swap(colour, data / file, labels[file]) for colour, file in known["swaps"]]
    return tasks, {colour: Look(**values) for colour, values in known["looks"].items()}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0])
    parser.add_argument("--model", default="flowers")
    parser.add_argument("--device", default=None)
    parser.add_argument("--work", type=Path, default=Path("build/hue"))
    parser.add_argument("--start", type=float, default=0.0, help="see --guidance-start of edits")
    parser.add_argument("--placed", action="store_true", help="measure what people get")
    parser.add_argument("--samples", action="store_true", help="draw from noise alone instead")
    options = parser.parse_args()
    tasks, real = prepared(options.data, options.work)
    judge = load_judge(options.data, options.work.parent / "judge.safetensors")
    console = Console(width=150)
    for colour, seen in real.items():
        console.print(f"real {colour}: hue {seen.hue % 360:.0f}, chroma {seen.chroma:.0f}")
    studio = Studio(nulltext.load(options.model, device=options.device), options.work)
    for scale in options.guidance:
        if options.samples:
            print_samples(console, studio.model, tasks, real, scale)
            continue
        name = f"guidance {scale:g}" + (f" from {options.start:g}" if options.start else "")
        name += " placed" if options.placed else ""
        settings = {"guidance_scale": scale, "guidance_start": options.start}
        variant = Variant(name, settings, options.placed)
        print_table(console, variant.name, measure(studio, judge, tasks, real, variant), real)


if __name__ == "__main__":
    main()

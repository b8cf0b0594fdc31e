"""The pictures of README's gallery and docs/editing.md, and its figures of the dahlia, made anew.

    python benchmarks/editing_pictures.py -o docs

Runs the very command lines that stand there, on examples/dahlia.jpg with the bundled model, in a
scratch folder. The comparison strip on top of README is `make demo`'s.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

import nulltext
from nulltext.evaluation.metrics import outside_disc

PHOTO = Path(__file__).parents[1] / "examples" / "dahlia.jpg"
SOURCE = "a photo of an orange flower with a dark background"
RED, YELLOW = (f"a photo of a {word} flower with a dark background" for word in ("red", "yellow"))
GREEN = "a photo of an orange flower with a green background"
DAISY = "a photo of a white daisy with a dark background"
SUNFLOWER = "a photo of a yellow sunflower with a dark background"
TULIP = "a photo of a purple tulip with a green background"
GALLERY = {
    "red": ("square", RED),
    "yellow": ("square", YELLOW),
    "daisy": ("square", DAISY),
    "sunflower": ("square", SUNFLOWER),
    "green": ("whole", GREEN),
    "tulip": ("square", TULIP, "--strength", "0.8"),
}
"""Inversion, target and options by picture."""
GALLERY_SIZE, GALLERY_QUALITY = (480, 320), 88
ELLIPSE = (160, 75, 455, 368)
"""The mask of the sweep: a white ellipse in this box of the photo, in pixels."""


def main() -> None:
    """Make the pictures, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("docs"))
    docs = parser.parse_args().output
    (docs / "gallery").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        invert = ("invert", str(PHOTO), "--prompt", SOURCE)
        run(scratch, *invert, "-o", "square.safetensors")
        run(scratch, *invert, "--size", "photo", "-o", "whole.safetensors")
        gallery(scratch, docs / "gallery")
        illustrations(scratch, docs)
        regions(scratch, docs / "regions.jpg")
        square = nulltext.Inversion.load(scratch / "square.safetensors")
    model = nulltext.load()
    print_chains(model, square)
    print_negatives(model, square)
    print_prompts(model, square)


def run(folder: Path, *arguments: str) -> None:
    """One command line, in a folder."""
    print("$ nulltext", *arguments, flush=True)
    command = [sys.executable, "-m", "nulltext.cli.main", *arguments, "--quiet"]
    subprocess.run(command, cwd=folder, check=True)


def gallery(scratch: Path, folder: Path) -> None:
    """README's six."""
    for name, (inversion, target, *options) in GALLERY.items():
        saved = ("--inversion", f"{inversion}.safetensors")
        run(
            scratch,
            "edit",
            str(PHOTO),
            "--full",
            *saved,
            "--target",
            target,
            *options,
            "-o",
            "x.png",
        )
        picture = Image.open(scratch / "x.png").convert("RGB").resize(GALLERY_SIZE)
        picture.save(folder / f"{name}.jpg", quality=GALLERY_QUALITY)


def illustrations(scratch: Path, docs: Path) -> None:
    """Those of docs/editing.md."""
    mask = Image.new("L", Image.open(PHOTO).size)
    ImageDraw.Draw(mask).ellipse(ELLIPSE, fill=255)
    mask.save(scratch / "mask.png")
    saved, out = ("--inversion", "square.safetensors"), ("-o", "out.png")
    full = ("--full", "--source", SOURCE, "--target", RED)
    run(scratch, "edit", str(PHOTO), *full, "-o", "dahlia-red-full.png")
    masa = ("--editor", "masactrl", "--target", DAISY, "--sweep", "masactrl.png")
    knobs = ("--over", "masa-layer=0,0.4,0.625", "--over", "masa-start=0,0.2")
    run(scratch, "edit", *saved, *masa, *knobs, *out)
    first = ("--target", RED, "--then", RED.replace("dark", "green"))
    last = ("--then", "a photo of a red daisy with a green background")
    run(scratch, "edit", *saved, *first, *last, "--strip", "chain.png", *out)
    local = (str(PHOTO), *saved, "--full", "--mask", "mask.png", "--target", RED, "--target", DAISY)
    run(scratch, "edit", *local, "--sweep", "sweep.png", *out)
    knobs = ("--over", "strength=0:1:5", "--over", "target-guidance=1.5,3,7.5")
    run(scratch, "edit", *saved, "--target", RED, "--sweep", "sweep-two-knobs.png", *knobs, *out)
    for name in ("dahlia-red-full", "masactrl", "chain", "sweep", "sweep-two-knobs"):
        shutil.copyfile(scratch / f"{name}.png", docs / f"{name}.png")


def regions(scratch: Path, path: Path) -> None:
    """Where three edits show: the region above, the edit below."""
    saved = ("--inversion", "whole.safetensors", "--full", "-o", "e.png", "--region-out", "r.png")
    targets = (RED, DAISY, GREEN)
    run(scratch, "edit", str(PHOTO), *saved, *(w for t in targets for w in ("--target", t)))
    width, height = GALLERY_SIZE
    sheet = Image.new("RGB", (len(targets) * width, 2 * height))
    for column in range(len(targets)):
        for row, name in enumerate("re"):
            picture = Image.open(scratch / f"{name}-{column + 1}.png").convert("RGB")
            sheet.paste(picture.resize(GALLERY_SIZE), (column * width, row * height))
    sheet.save(path, quality=GALLERY_QUALITY)


def print_chains(model: nulltext.LatentDiffusion, inversion: nulltext.Inversion) -> None:
    """How near the links of some chains are to each other, over a centred disc of half the area."""
    back = nulltext.chain(RED, RED.replace("dark", "green"), RED)
    pictures = nulltext.edit(model, inversion, back).images
    print(f"red, green background, dark again: {decibels(pictures[2], pictures[0]):.1f} dB")
    first = nulltext.EditSpec(DAISY).at_strength(0.8)
    last = DAISY.replace("dark", "green")
    for strength in (None, 0.5, 0.3):
        link = first.then(last) if strength is None else first.then(last).at_strength(strength)
        pictures = nulltext.edit(model, inversion, [first, link]).images
        print(f"daisy, then green at {strength}: {decibels(pictures[1], pictures[0]):.1f} dB")
    alone = nulltext.EditSpec(last)
    pictures = nulltext.edit(model, inversion, [first, alone]).images
    print(f"straight from the photo: {decibels(pictures[1], pictures[0]):.1f} dB")


def print_negatives(model: nulltext.LatentDiffusion, inversion: nulltext.Inversion) -> None:
    """What a red dahlia keeps around the flower under negative prompts, by where they act.

    After fixed-point inversion they move the source prompt's embedding; after direct inversion
    around the same pivot the empty prompt's, so that they stand alone.
    """
    plain = nulltext.invert(
        model,
        PHOTO,
        SOURCE,
        method=nulltext.inversion.Direct(pivot="fixed-point"),
        num_steps=inversion.num_steps,
    )
    for negative in (None, "orange", "a photo of a purple flower", "a photo of a green leaf"):
        kept = []
        for one in (inversion, plain):
            kept.append(around(model, one, nulltext.EditSpec(RED, negative=negative)))
        added, alone = kept
        print(f"negative {negative}: fixed-point {added:.1f} dB, direct {alone:.1f} dB")


def print_prompts(model: nulltext.LatentDiffusion, inversion: nulltext.Inversion) -> None:
    """What a red dahlia keeps around the flower, by how the prompt asks for it."""
    for word in ("red", "((red))", "(red:1.5)"):
        kept = around(model, inversion, nulltext.EditSpec(RED.replace("red", word)))
        print(f"{word}: {kept:.1f} dB")
    for weight in (1.21, 1.5):
        kept = around(model, inversion, nulltext.EditSpec(RED, weights={"red": weight}))
        print(f"--weight red={weight}: {kept:.1f} dB")
    print(f"make it red: {around(model, inversion, nulltext.EditSpec('make it red')):.1f} dB")


def around(
    model: nulltext.LatentDiffusion, inversion: nulltext.Inversion, spec: nulltext.EditSpec
) -> float:
    """PSNR of an edit against the reconstruction beside it, outside the disc."""
    made = nulltext.edit(model, inversion, spec)
    picture = made.images[0]
    return decibels(picture, made.reconstruction[0], outside_disc(*picture.shape[-2:]))


def decibels(one: Tensor, other: Tensor, where: Tensor | None = None) -> float:
    """PSNR between two pictures [3, H, W] in about [-1, 1] over a region, by default the disc."""
    if where is None:
        where = ~outside_disc(*one.shape[-2:])
    error = ((one - other).clamp(-2, 2) / 2).square()[:, where].mean()
    return -10 * math.log10(max(float(error), 1e-14))


if __name__ == "__main__":
    main()

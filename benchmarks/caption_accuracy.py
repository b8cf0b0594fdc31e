"""How often does a caption name the flower's kind and its colour?

    python benchmarks/caption_accuracy.py --data DIR

Over the validation photos of a folder with `labels.jsonl`. A word counts where it stands in the
caption; "both" is over the photos whose label has both. The labels are by machine and not always
right (a white daisy may be "yellow" for its middle), so nobody would reach 100 %.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import track

import nulltext
from judge import Label, read_labels
from nulltext.constants import CAPTIONER
from nulltext.image.photos import load_photo

NAMED = ("kind", "colour")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--captioner", default=CAPTIONER)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--limit", type=int, help="number of photos; default: all")
    options = parser.parse_args()
    captioner = nulltext.load_captioner(options.captioner)
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    rows = read_labels(options.data, options.split)[: options.limit]
    for row in track(rows, "Captioning", console=Console(stderr=True)):
        photo = load_photo(options.data / str(row["file"]))
        count(row, captioner.caption(photo, beams=options.beams), asked, right)
    print("| named rightly | photos | share |\n|---|--:|--:|")
    for name, number in asked.items():
        print(f"| {name} | {number} | {right[name] / number:.1%} |")


def count(row: Label, caption: str, asked: Counter[str], right: Counter[str]) -> None:
    """Add one photo to the tallies."""
    words = caption.split()
    found = {name: row[name] in words for name in NAMED if row[name] is not None}
    if len(found) == len(NAMED):
        found["both"] = all(found.values())
    asked.update(found.keys())
    right.update(name for name, is_right in found.items() if is_right)


if __name__ == "__main__":
    main()

"""How often does a caption name the flower's kind and its colour, and does it know when not?

    python benchmarks/caption_accuracy.py --data DIR [--others DIR]

Over the validation photos of a folder with `labels.jsonl`. A word counts where it stands in the
caption; "both" is over the photos whose label has both. The labels are by machine and not always
right (a white daisy may be "yellow" for its middle), so nobody would reach 100 %. Then: how often
kinds and colours are right where the captioner is sure of them, and where not; and how many photos
it does not know, of these and of a folder of photos that show something else, each whole and its
four quarters. `--learn` first learns which photos it knows, as `nulltext train` does after the
captioner's training, and writes that into its folder.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.progress import track

import nulltext
from judge import Label, read_labels
from nulltext.captioning.caption_files import PICTURES
from nulltext.captioning.captioner import Caption, Captioner
from nulltext.captioning.folder import BUNDLED_FOLDER, bundled_captioners
from nulltext.captioning.known_photos import KNOWN_PHOTOS
from nulltext.constants import CAPTIONER
from nulltext.image.images import CropBox
from nulltext.image.photos import load_photo
from nulltext.storage.files import replace_file
from nulltext.training.captioner import find_known_photos
from nulltext.training.dataset import TRAIN, read_dataset
from nulltext.training.loop import step_generator

NAMED = ("kind", "colour")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--others", type=Path, help="folder of photos of other things")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--captioner", default=CAPTIONER)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--limit", type=int, help="number of photos; default: all")
    parser.add_argument("--learn", action="store_true", help="write known_photos.safetensors")
    parser.add_argument("--seed", type=int, default=0, help="of the recipe, for --learn")
    options = parser.parse_args()
    captioner = nulltext.load_captioner(options.captioner)
    if options.learn:
        captioner = learn(captioner, options)
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    known: Counter[str] = Counter()
    rows = read_labels(options.data, options.split)[: options.limit]
    names = {name: {row[name] for row in rows} for name in NAMED}
    for row in track(rows, "Captioning", console=Console(stderr=True)):
        photo = load_photo(options.data / str(row["file"]))
        caption = captioner.describe(photo, beams=options.beams)
        count(row, caption, names, asked, right)
        known[str(caption.known)] += 1
    print("| named rightly | photos | share |\n|---|--:|--:|")
    for name, number in sorted(asked.items()):
        print(f"| {name} | {number} | {right[name] / number:.1%} |")
    print(f"\nKnown, of {len(rows)} photos of {options.data.name}: {dict(known)}")
    if options.others is not None:
        found = Counter(str(caption.known) for caption in others(captioner, options.others))
        print(f"Known, of {found.total()} pictures of {options.others.name}: {dict(found)}")


def learn(captioner: Captioner, options: argparse.Namespace) -> Captioner:
    """Learn which photos the captioner knows, and keep that in its folder."""
    examples = read_dataset(options.data)
    trained = [example for example in examples if example.split == TRAIN]
    held_out = [example for example in examples if example.split != TRAIN]
    known = find_known_photos(captioner, trained, held_out, step_generator(options.seed, 0))
    if known is None:
        raise SystemExit("too few photos are held out")
    bundled = options.captioner in bundled_captioners()
    folder = BUNDLED_FOLDER / options.captioner if bundled else Path(options.captioner)
    replace_file(folder / KNOWN_PHOTOS, known.to_bytes())
    return replace(captioner, known_photos=known)


def count(
    row: Label,
    caption: Caption,
    names: Mapping[str, Collection[str | None]],
    asked: Counter[str],
    right: Counter[str],
) -> None:
    """Add one photo to the tallies; `names` are the labels that there are, by their kind."""
    words = {word.text: word for word in caption.words}
    labelled = [name for name in NAMED if row[name] is not None]
    found = {name: row[name] in words for name in labelled}
    if len(found) == len(NAMED):
        found["both"] = all(found.values())
    for name in labelled:
        for text in [text for text in words if text in names[name]]:
            is_sure = "sure" if words[text].sure else "not sure"
            found[f"{name}, {is_sure}"] = text == row[name]
    asked.update(found.keys())
    right.update(name for name, is_right in found.items() if is_right)


def others(captioner: Captioner, folder: Path) -> Iterator[Caption]:
    """Caption each picture below a folder, whole and its four quarters."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    for path in track(paths, "Other photos", console=Console(stderr=True)):
        photo = load_photo(path)
        width, height = photo.size
        yield captioner.describe(photo)
        for x, y in product((0, width // 2), (0, height // 2)):
            yield captioner.describe(photo, CropBox(x, y, width // 2, height // 2))


if __name__ == "__main__":
    main()

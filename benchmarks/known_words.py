"""Write the words that a model was taught beside its weights, from the photos of its recipe.

    python benchmarks/known_words.py src/nulltext/models/bundled/flowers --data DIR

Run it whenever the weights of the bundled model are replaced by hand; `nulltext train` does it by
itself for a model that it exports. `--every N` looks at every Nth photo: finding a flower takes a
while, and a hundred photos or two have all the words that are common.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from nulltext.models.known_words import write_words
from nulltext.models.load import load
from nulltext.training.dataset import (
    TRAIN,
    Example,
    known_words,
    load_pixels,
    read_dataset,
)
from nulltext.training.export import RECIPE_FILE
from nulltext.training.loop import step_generator
from nulltext.training.recipe import Recipe, load_recipe
from nulltext.training.views import views_of


def examples_of(recipe: Recipe, data: Path, every: int) -> Iterator[Example]:
    """What each view of the photos was said to show: as the stage of views has it."""
    photos = [example for example in read_dataset(data) if example.split == TRAIN]
    for index in range(0, len(photos), every):
        example = photos[index]
        (pixels,) = load_pixels([example], recipe.photo_side)
        rng = step_generator(recipe.seed, index)
        for view in views_of(pixels.numpy(), example, recipe.views, rng):
            yield view.example


def main() -> None:
    """Look at the photos as training did, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a model in diffusers format, with its recipe")
    parser.add_argument("--data", type=Path, required=True, help="the photos that it was shown")
    parser.add_argument("--every", type=int, default=1, help="look at every Nth photo only")
    asked = parser.parse_args()
    recipe = load_recipe(str(asked.folder / RECIPE_FILE))
    examples = list(examples_of(recipe, asked.data, asked.every))
    known = known_words(examples, recipe.captions, step_generator(recipe.seed, 0))
    path = write_words(known, load(asked.folder, device="cpu").fingerprint, asked.folder)
    if path is None:
        parser.error("the captions are all empty: there are no words to keep")
    print(f"{path}: {', '.join(known.named)}; and {', '.join(known.others)}")


if __name__ == "__main__":
    main()

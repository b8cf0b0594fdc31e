"""A data set of dots, and a short training on it."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

LOOP = {"steps": 7, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 2}


COLOURS = {"red": (200, 30, 30), "blue": (30, 40, 200), "white": (240, 240, 240)}


@pytest.fixture(scope="module")
def dots(tmp_path_factory):
    """Fifty photos of dots, each with a caption beside it."""
    folder = tmp_path_factory.mktemp("dots")
    names = list(COLOURS)
    for number in range(50):
        image = Image.new("RGB", (48, 40), (20, 90 + number, 30))
        left = 4 + number % 12
        ImageDraw.Draw(image).ellipse((left, 8, left + 22, 30), COLOURS[names[number % 3]])
        image.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"a {names[number % 3]} dot on grass")
    return folder

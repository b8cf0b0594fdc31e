"""Shared fixtures of the studio."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A photo, wider than high, larger than the model sees."""
    y, x = np.mgrid[0:60, 0:90] / 90
    colours = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], axis=-1)
    path = tmp_path_factory.mktemp("photos") / "my cat.png"
    Image.fromarray((colours * 255).round().astype(np.uint8)).save(path)
    return path

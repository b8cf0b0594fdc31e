"""The comparison strip: equal heights, captions that fit."""

from __future__ import annotations

import numpy as np
from PIL import Image

from nulltext.strip import MARGIN, TILE, Tile, comparison_strip


def solid(width, height, colour):
    return Image.new("RGB", (width, height), colour)


def test_tiles_of_all_sizes_stand_side_by_side_at_one_height():
    tiles = [
        Tile(solid(128, 128, "red"), "small"),
        Tile(solid(640, 400, "blue"), "a much longer caption " * 10),
        Tile(solid(100, 400, "lime"), ""),
    ]
    strip = np.asarray(comparison_strip(tiles)).astype(int)
    for colour, (width, height) in {
        (255, 0, 0): (TILE, TILE),
        (0, 0, 255): (TILE * 640 // 400, TILE),
        (0, 255, 0): (TILE // 4, TILE),
    }.items():
        rows, columns = np.where((strip == colour).all(axis=-1))
        assert np.ptp(columns) + 1 in (width, width + 1)
        assert np.ptp(rows) + 1 == height
        assert rows.min() == MARGIN
    below = strip[2 * MARGIN + TILE :]
    assert (below < 128).any(), "no caption"
    assert (below[:, -MARGIN:] == 255).all(), "a caption runs out of the strip"


def test_large_tiles_keep_their_size():
    strip = comparison_strip(
        [Tile(solid(512, 512, "red"), "x"), Tile(solid(512, 512, "blue"), "y")]
    )
    assert strip.width == 3 * MARGIN + 2 * 512

"""The comparison strip: equal heights, captions that fit."""

from __future__ import annotations

import numpy as np
from PIL import Image

from nulltext.image.strip import LABEL, MARGIN, TILE, Block, Tile, comparison_strip, labelled_grid


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


def test_a_grid_has_each_picture_at_its_row_and_column_and_says_what_they_are():
    colours = [["red", "lime"], ["blue", "yellow"], ["cyan", "magenta"]]
    images = [[solid(300, 600, colour) for colour in row] for row in colours]
    rows = ["strength 0", "a label that is too long for its column", "strength 1"]
    grid = labelled_grid([Block("title", ["cross 0", "cross 1"], rows, images)])
    pixels = np.asarray(grid).astype(int)
    left = LABEL + 2 * MARGIN
    tops = []
    for number, row in enumerate(colours):
        for column, colour in enumerate(row):
            wanted = np.asarray(solid(1, 1, colour))[0, 0]
            y, x = np.where((pixels == wanted).all(axis=-1))
            assert (np.ptp(x) + 1, np.ptp(y) + 1) == (TILE // 2, TILE)
            assert x.min() == left + column * (TILE // 2 + MARGIN)
            tops.append(y.min())
        label = pixels[tops[-1] : tops[-1] + TILE, :left]
        assert (label < 128).any(), f"row {number} has no label"
        assert (label[:, -MARGIN:] == 255).all(), "a label runs into the pictures"
    assert tops == sorted(tops)
    assert tops[2] - tops[0] == TILE + MARGIN
    for column in range(2):
        x = left + column * (TILE // 2 + MARGIN)
        assert (pixels[: tops[0], x : x + TILE // 2] < 128).any(), "no heading"
    assert (pixels[:, -MARGIN:] == 255).all()


def test_blocks_stand_below_each_other():
    one = Block("", ["a"], ["b"], [[solid(10, 10, "red")]])
    two = Block("second", ["a", "c"], ["b"], [[solid(10, 10, "red"), solid(10, 10, "red")]])
    both, first, second = (labelled_grid(blocks) for blocks in ([one, two], [one], [two]))
    assert both.size == (second.width, first.height + second.height)

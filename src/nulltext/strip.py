"""The comparison strip: pictures side by side, each with its caption.

What a person looks at to judge an edit: the photo, what the autoencoder alone makes of it, the
reconstruction, and the edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

TILE = 256
"""Tiles are at least this many pixels high, so that a caption has room."""

MARGIN = 12
FONT_SIZE = 14
MAX_LINES = 5
PAPER = (255, 255, 255)
INK = (32, 32, 32)


@dataclass(frozen=True)
class Tile:
    """One picture of a strip."""

    image: Image.Image
    caption: str


def comparison_strip(tiles: Sequence[Tile]) -> Image.Image:
    """Lay tiles in a row, all as high as the lowest, captions below, as one RGB picture."""
    font = ImageFont.load_default(FONT_SIZE)
    row_height = max(TILE, min(tile.image.height for tile in tiles))
    pictures = [_scaled(tile.image.convert("RGB"), row_height) for tile in tiles]
    captions = [
        _wrapped(tile.caption, picture.width, font)
        for tile, picture in zip(tiles, pictures, strict=True)
    ]
    line = round(FONT_SIZE * 1.35)
    text_height = line * max(len(lines) for lines in captions)
    width = MARGIN + sum(p.width + MARGIN for p in pictures)
    height = max(p.height for p in pictures) + text_height + 3 * MARGIN
    strip = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(strip)
    x = MARGIN
    for picture, lines in zip(pictures, captions, strict=True):
        strip.paste(picture, (x, MARGIN))
        for row, text in enumerate(lines):
            draw.text((x, 2 * MARGIN + picture.height + row * line), text, fill=INK, font=font)
        x += picture.width + MARGIN
    return strip


def tile_grid(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Stack comparison strips, one per row, as one RGB picture; rows may differ in length."""
    strips = [comparison_strip(row) for row in rows]
    size = (max(strip.width for strip in strips), sum(strip.height for strip in strips))
    grid = Image.new("RGB", size, PAPER)
    top = 0
    for strip in strips:
        grid.paste(strip, (0, top))
        top += strip.height
    return grid


def _scaled(image: Image.Image, height: int) -> Image.Image:
    size = (max(1, round(image.width * height / image.height)), height)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _wrapped(
    text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[str]:
    lines: list[str] = []
    for paragraph in text.splitlines():
        current = ""
        for word in paragraph.split():
            longer = f"{current} {word}".strip()
            if current and font.getlength(longer) > width:
                lines.append(current)
                longer = word
            current = longer
        lines.append(current)
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], lines[MAX_LINES - 1] + " …"]
    return lines

"""Show pictures together: in comparison strips, in labelled grids, and in a notebook."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from nulltext.image.saving import encoded

TILE = 256
"""Tiles are at least this many pixels high, so that a caption has room."""

MARGIN = 12
FONT_SIZE = 14
LINE = round(FONT_SIZE * 1.35)
MAX_LINES = 5
LABEL = 130
"""Width of the column of labels in pixels."""
PAPER = (255, 255, 255)
INK = (32, 32, 32)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """A picture of a strip, and the text below it."""

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
    text_height = LINE * max(len(lines) for lines in captions)
    width = MARGIN + sum(p.width + MARGIN for p in pictures)
    height = max(p.height for p in pictures) + text_height + 3 * MARGIN
    strip = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(strip)
    x = MARGIN
    for picture, lines in zip(pictures, captions, strict=True):
        strip.paste(picture, (x, MARGIN))
        _write(draw, x, 2 * MARGIN + picture.height, lines, font)
        x += picture.width + MARGIN
    return strip


def tile_grid(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Stack comparison strips, one per row, as one RGB picture; rows may differ in length."""
    return _stacked([comparison_strip(row) for row in rows])


@dataclass(frozen=True)
class Block:
    """Pictures in rows and columns, with the labels of these."""

    title: str
    """Above the block; may be empty."""
    columns: Sequence[str]
    rows: Sequence[str]
    images: Sequence[Sequence[Image.Image]]
    """[row][column]."""


def labelled_grid(blocks: Sequence[Block]) -> Image.Image:
    """Draw blocks below each other, as one RGB picture: headings above, labels to the left.

    All pictures are drawn `TILE` pixels high, so that the labels can be read beside large photos.
    """
    return _stacked([_labelled_block(block) for block in blocks])


def figures_html(tiles: Sequence[Tile]) -> str:
    """Lay pictures in a row, each above its caption, as HTML that stands alone."""
    figures = []
    for tile in tiles:
        data, caption = (
            base64.b64encode(encoded(tile.image, "PNG")).decode(),
            html.escape(tile.caption),
        )
        figures.append(
            f'<figure style="margin:0;max-width:{max(tile.image.width, 128)}px">'
            f'<img src="data:image/png;base64,{data}" alt="{caption}" style="max-width:100%">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(figures)}</div>'


def _labelled_block(block: Block) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    pictures = [[_scaled(image.convert("RGB"), TILE) for image in row] for row in block.images]
    width = max(picture.width for row in pictures for picture in row)
    left = LABEL + 2 * MARGIN
    right = left + len(block.columns) * (width + MARGIN)
    headings = [_wrapped(text, width, font) for text in block.columns]
    title = _wrapped(block.title, right - 2 * MARGIN, font) if block.title else []
    headings_top = MARGIN + len(title) * LINE + (MARGIN if title else 0)
    top = headings_top + max(map(len, headings)) * LINE + MARGIN
    result = Image.new("RGB", (right, top + len(pictures) * (TILE + MARGIN)), PAPER)
    draw = ImageDraw.Draw(result)
    _write(draw, MARGIN, MARGIN, title, font)
    for column, lines in enumerate(headings):
        _write(draw, left + column * (width + MARGIN), headings_top, lines, font)
    for number, (label, row) in enumerate(zip(block.rows, pictures, strict=True)):
        y = top + number * (TILE + MARGIN)
        _write(draw, MARGIN, y, _wrapped(label, LABEL, font, TILE // LINE), font)
        for column, picture in enumerate(row):
            result.paste(picture, (left + column * (width + MARGIN), y))
    return result


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    size = (max(each.width for each in pictures), sum(each.height for each in pictures))
    result, top = Image.new("RGB", size, PAPER), 0
    for picture in pictures:
        result.paste(picture, (0, top))
        top += picture.height
    return result


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str], font: Font) -> None:
    for row, text in enumerate(lines):
        draw.text((x, y + row * LINE), text, fill=INK, font=font)


def _scaled(image: Image.Image, height: int) -> Image.Image:
    size = (max(1, round(image.width * height / image.height)), height)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _wrapped(text: str, width: int, font: Font, most: int = MAX_LINES) -> list[str]:
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
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + " …"]
    return lines

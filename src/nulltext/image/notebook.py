"""How results show themselves in a notebook: PNG bytes, or HTML with captions."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from nulltext.image.strip import Tile


def png_bytes(image: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def figures_html(tiles: Sequence[Tile]) -> str:
    """Lay pictures in a row, each above its caption, as HTML that stands alone."""
    figures = []
    for tile in tiles:
        data, caption = base64.b64encode(png_bytes(tile.image)).decode(), html.escape(tile.caption)
        figures.append(
            f'<figure style="margin:0;max-width:{max(tile.image.width, 128)}px">'
            f'<img src="data:image/png;base64,{data}" alt="{caption}" style="max-width:100%">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(figures)}</div>'

"""Small pieces of HTML: text that is escaped, tables, pictures as data URIs."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from nulltext.evaluation.bootstrap import Summary

THUMBNAIL = 288
"""Width in pixels of pictures in the report, at most."""
MOST_PANELS = 12
"""Pictures that stand below each other in one, at most."""
QUALITY = 88


def text(value: object) -> str:
    """Escaped."""
    return html.escape(str(value))


def page(title: str, body: str) -> str:
    """A whole page in the house's style, which fetches and runs nothing.

    Args: body: HTML.
    """
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{style}</style></head><body><main>"
        f"{body}</main></body></html>"
    )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A scrolling table; cells are HTML, the first of each row is its header."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{c}</td>" for c in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{text(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def gallery(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A scrolling grid of pictures; arguments as in `table`."""
    return (
        table("", head, rows)
        .replace("<table>", '<table class="gallery">')
        .replace("<caption></caption>", "")
    )


def number(summary: Summary | None, digits: int) -> str:
    """A mean with its interval below; what is undefined says so."""
    if summary is None:
        return "–"
    missing = sum(summary.undefined.values())
    if summary.mean is None:
        return f"undefined<small>{missing} rows</small>"
    shown = f"{summary.mean:,.{digits}f}"
    notes = []
    if summary.low is not None and summary.high is not None and summary.low < summary.high:
        notes.append(f"{summary.low:,.{digits}f} – {summary.high:,.{digits}f}")
    if missing:
        notes.append(f"n = {summary.n}, {missing} undefined")
    return shown + "".join(f"<small>{note}</small>" for note in notes)


def picture(path: Path, alt: str, note: str = "") -> str:
    """An image inside the page, made smaller where it is large."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            tall = small.height > small.width
            small.thumbnail((THUMBNAIL, THUMBNAIL * MOST_PANELS) if tall else (THUMBNAIL,) * 2)
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=QUALITY, subsampling=0)
    except OSError:
        return '<span class="soft">picture missing</span>'
    data = base64.b64encode(stream.getvalue()).decode()
    below = f"<small>{text(note)}</small>" if note else ""
    shape = 'class="tall" ' if tall else ""
    size = f'width="{small.width}" height="{small.height}"'
    source = f"data:image/jpeg;base64,{data}"
    return f'<img {shape}loading="lazy" alt="{text(alt)}" {size} src="{source}">{below}'

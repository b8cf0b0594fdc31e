"""The layout: one page of our own HTML in Gradio, which carries files, queue and sessions.

Each verb of `handlers` is one event of the page. What the page asks goes in as JSON, the view comes
back as the page's value, several times while something is being made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from nulltext.studio.handlers import VERBS, handle
from nulltext.studio.house import Studio
from nulltext.studio.view import View, rules_of, url

FRONT = Path(__file__).parent / "front"
SCRIPTS = ("dom", "stage", "crop", "brush", "spelling", "words", "panel", "page")
"""Files of the page's script, in the order in which they build on each other."""

STALE_SECONDS = 15 * 60
"""Age at which Gradio's own copies of uploads go; sessions have theirs."""


def build(studio: Studio) -> gr.Blocks:
    """The page of a studio, not launched yet."""
    with gr.Blocks(
        title="nulltext studio",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(STALE_SECONDS, STALE_SECONDS),
    ) as page:
        front = gr.HTML(
            None,
            html_template=_read("page.html"),
            js_on_load="\n".join(_read(f"{name}.js") for name in SCRIPTS),
            apply_default_css=False,
            elem_id="studio",
            rules={**rules_of(studio), "example": url(FRONT / "dahlia.jpg")},
        )
        asked = gr.JSON(visible=False)
        for verb in VERBS:
            asking = getattr(front, verb)(
                _listener(studio, verb),
                inputs=[asked],
                outputs=[front],
                js=f"() => [window.nulltextAsks['{verb}'].shift()]",
                api_name=verb,
                show_progress="hidden",
                concurrency_limit=None,  # the studio's own worker has the line
                trigger_mode="multiple",  # what is pressed is sent; the page knows what is pending
            )
            for ended in (asking.then, asking.failure):
                ended(None, js=f"() => window.nulltextEnded('{verb}')", api_visibility="private")

        def leave(request: gr.Request) -> None:
            studio.leave(str(request.session_hash))

        page.unload(leave)
    page.queue(max_size=None, status_update_rate=10)
    return page


def look_of_page() -> dict[str, Any]:
    """What `launch` has to know of looks: our style alone, and no font from elsewhere."""
    system = ("system-ui", "sans-serif")
    return {
        "theme": gr.themes.Base(font=system, font_mono=("ui-monospace", "monospace")),
        "head": f"<style>\n{_read('page.css')}\n</style>",
        "footer_links": [],
        "favicon_path": FRONT / "icon.svg",
    }


def _listener(studio: Studio, verb: str) -> Callable[[Any, gr.Request], Iterator[View]]:
    def listen(asked: Any, request: gr.Request) -> Iterator[View]:
        yield from handle(studio, str(request.session_hash), verb, asked)

    return listen


def _read(name: str) -> str:
    return (FRONT / name).read_text(encoding="utf-8")

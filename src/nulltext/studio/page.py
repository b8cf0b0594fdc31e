"""The Gradio page: one HTML component with an event for each verb of `handlers`.

Gradio carries uploads, queue and sessions. A request goes in as JSON; views come back as the
component's value, several times while a job runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from nulltext.studio.handlers import VERBS, View, handle, rules_of
from nulltext.studio.session import Studio

FRONT = Path(__file__).parent / "front"
SCRIPTS = (
    "dom",
    "stage",
    "compare",
    "zoom",
    "crop",
    "brush",
    "spelling",
    "words",
    "options",
    "result",
    "panel",
    "keys",
    "page",
)
"""Parts of the page's script; each uses those before it."""

STALE_SECONDS = 15 * 60
"""Age at which Gradio's own copies of uploads are removed; sessions keep other copies."""


def build(studio: Studio) -> gr.Blocks:
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
            rules=rules_of(studio.resources),
        )
        content = gr.JSON(visible=False)
        for verb in VERBS:
            event = getattr(front, verb)(
                _listener(studio, verb),
                inputs=[content],
                outputs=[front],
                js=f"() => [window.nulltextRequests['{verb}'].shift()]",
                api_name=verb,
                show_progress="hidden",
                concurrency_limit=None,  # the worker has a queue of its own
                trigger_mode="multiple",  # what is pressed is sent; the page knows what is pending
            )
            for on_end in (event.then, event.failure):
                on_end(None, js=f"() => window.nulltextEnded('{verb}')", api_visibility="private")

        def leave(request: gr.Request) -> None:
            studio.leave(str(request.session_hash))

        page.unload(leave)
    page.queue(max_size=None, status_update_rate=10)
    return page


def launch_style() -> dict[str, Any]:
    """Return the arguments of `launch` that set the style; no font comes from elsewhere."""
    system = ("system-ui", "sans-serif")
    return {
        "theme": gr.themes.Base(font=system, font_mono=("ui-monospace", "monospace")),
        "head": f"<style>\n{_read('page.css')}\n</style>",
        "footer_links": [],
        "favicon_path": FRONT / "icon.svg",
    }


def _listener(studio: Studio, verb: str) -> Callable[[Any, gr.Request], Iterator[View]]:
    def listen(content: Any, request: gr.Request) -> Iterator[View]:
        yield from handle(studio, str(request.session_hash), verb, content)

    return listen


def _read(name: str) -> str:
    return (FRONT / name).read_text(encoding="utf-8")

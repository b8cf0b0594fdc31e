"""The page and its requests, as a Starlette app.

    GET  /                   the page; its scripts are below /front
    POST /files?name=NAME    a file; answers {"file": number}, by which a request names it
    POST /ask/VERB           a request of `handlers`; answers with the view when it has begun, or,
                             with ?wait=1, when it is done
    GET  /events             lines of JSON: the view whenever it changes; an empty line is a sign of
                             life
    GET  /files/ID/N/NAME    a file of a session
    POST /recent             the photos of the sessions {"ids": […]}
    POST /forget             removes the session

The header `Session` names the session by 128 random bits that the page has chosen; knowing them is
the right to use it. A request carries the page's name and a number: one that comes again, since its
answer was lost, is not done again. Whatever is refused is {"problem": sentence}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from nulltext.studio.handlers import VERBS, View, handle, recent_of, rules_of, view_of
from nulltext.studio.resources import MEGABYTE
from nulltext.studio.session import Session
from nulltext.studio.sessions import Studio

FRONT = Path(__file__).parent / "front"
SCRIPTS = (
    "dom",
    "link",
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
"""Scripts of the page; each uses those before it."""

HEARTBEAT = 5.0
"""Most seconds between two lines of /events; the page takes 20 s without any for a lost link."""
REQUEST_BYTES = 12 * MEGABYTE
"""Largest request; nearly all of it is the painted mask."""
UPLOAD_SECONDS = 15 * 60
"""Time in which a file has to arrive."""
STREAMS = 20
"""Most pages that show a session at once."""
RUNNING = 8
"""Most requests of a session that are done at once."""
RECENT = 24
"""Most sessions that are asked for at once."""
SHOWN = {".png": "image/png", ".jpg": "image/jpeg"}
"""Files that a browser shows; all others are downloaded, whatever they hold."""
CACHED = {"Cache-Control": "private, max-age=31536000, immutable"}
"""No file of a session ever changes."""
NOT_STORED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Refusal(Exception):  # noqa: N818
    """An answer that says why a request is refused."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status


class Answer(NamedTuple):
    """What comes of a request."""

    begun: Future[View]
    done: Future[View]


class Page:
    """The endpoints."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._is_closing = False
        self._streams: set[asyncio.Event] = set()

    def app(self) -> Starlette:
        async def refuse(_: Request, error: Exception) -> Response:
            assert isinstance(error, Refusal)
            return JSONResponse({"problem": str(error)}, error.status)

        routes = [
            Route("/", self.html),
            Mount("/front", StaticFiles(directory=FRONT)),
            Route("/files", self.upload, methods=["POST"]),
            Route("/ask/{verb}", self.ask, methods=["POST"]),
            Route("/events", self.events),
            Route("/files/{id}/{number:int}/{name}", self.file),
            Route("/recent", self.recent, methods=["POST"]),
            Route("/forget", self.forget, methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={Refusal: refuse})

    def close(self) -> None:
        """End all streams."""
        self._is_closing = True
        for news in self._streams:
            news.set()

    async def html(self, _: Request) -> Response:
        rules = json.dumps(rules_of(self.studio.resources)).replace("<", "\\u003c")
        scripts = "\n".join(f'<script src="front/{name}.js" defer></script>' for name in SCRIPTS)
        text = (FRONT / "page.html").read_text(encoding="utf-8")
        filled = text.replace("{{scripts}}", scripts).replace("{{rules}}", rules)
        return HTMLResponse(filled, headers=NOT_STORED)

    async def upload(self, request: Request) -> Response:
        session = self._session(request)
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            raise Refusal(411, "The file does not say how long it is.")
        limit = self.studio.resources.limits.upload_bytes
        if int(length) > limit:
            raise Refusal(
                413,
                f"The file has more than {limit // MEGABYTE} MB, the most that is taken; "
                "shrink it first.",
            )
        with self.studio.receiving(int(length)) as path:
            if path is None:
                raise Refusal(507, "The studio has no space left for files; try again later.")
            try:
                async with asyncio.timeout(UPLOAD_SECONDS):
                    with path.open("wb") as file:
                        async for piece in request.stream():
                            file.write(piece)
            except (TimeoutError, ClientDisconnect):
                raise Refusal(408, "The file did not arrive; choose it once more.") from None
            number = session.add_upload(path, request.query_params.get("name", ""))
        return JSONResponse({"file": number})

    async def ask(self, request: Request) -> Response:
        verb = request.path_params["verb"]
        if verb not in VERBS:
            raise Refusal(404, f"There is no verb '{verb:.20}'.")
        session, fields = self._session(request), await _read_json(request)
        mark = _mark_of(fields)
        answer = session.answers.get(mark) if mark else None
        if answer is None:
            answer = self._start(session, verb, fields)
            if mark:
                session.answers.put(mark, answer)
        if not request.query_params.get("wait"):
            return JSONResponse(await _result(answer.begun), headers=NOT_STORED)
        with session.listening(lambda _: None):
            return JSONResponse(await _result(answer.done), headers=NOT_STORED)

    def _start(self, session: Session, verb: str, fields: Any) -> Answer:
        """Do what a request wants in a thread of its own."""
        if len(session.running) >= RUNNING and verb != "cancel":
            raise Refusal(429, "Too much at a time: wait until something is done.")
        answer = Answer(Future(), Future())

        def work() -> None:
            view: View = {}
            for view in handle(session, verb, fields):
                session.publish(view)
                if not answer.begun.done():
                    answer.begun.set_result(view)
            answer.done.set_result(view)

        threading.Thread(target=work, name=f"nulltext-{verb}", daemon=True).start()
        return answer

    async def events(self, request: Request) -> Response:
        session = self._session(request) if "session" in request.headers else None
        if session is not None and len(session.listeners) >= STREAMS:
            raise Refusal(429, "Too many pages show this photo; close some.")
        lines = self._lines(session)
        return StreamingResponse(lines, media_type="application/x-ndjson", headers=NOT_STORED)

    async def _lines(self, session: Session | None) -> AsyncIterator[bytes]:
        """Yield the newest view whenever there is one; a slow page misses those between."""
        loop, news, newest = asyncio.get_running_loop(), asyncio.Event(), b""

        def listen(view: View) -> None:
            nonlocal newest
            newest = json.dumps(view).encode()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(news.set)

        self._streams.add(news)
        try:
            with session.listening(listen) if session else contextlib.nullcontext():
                if session:
                    listen(view_of(session))
                while not self._is_closing:
                    line, newest = newest, b""
                    yield line + b"\n"
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(news.wait(), HEARTBEAT)
                    news.clear()
        finally:
            self._streams.discard(news)

    async def file(self, request: Request) -> Response:
        parts = request.path_params
        path = self.studio.file(parts["id"], parts["number"], parts["name"])
        if path is None:
            raise Refusal(404, "That file is not kept any more.")
        media_type = SHOWN.get(path.suffix.lower())
        if media_type:
            return FileResponse(path, media_type=media_type, headers=CACHED)
        name, media_type = path.name, "application/octet-stream"
        return FileResponse(path, filename=name, media_type=media_type, headers=CACHED)

    async def recent(self, request: Request) -> Response:
        fields = await _read_json(request)
        ids = fields.get("ids") if isinstance(fields, dict) else None
        ids = [one for one in ids or [] if isinstance(one, str)][:RECENT]
        sessions = [self.studio.find(one) for one in ids]
        photos = [recent_of(one) for one in sessions if one is not None and one.photo]
        return JSONResponse({"photos": photos}, headers=NOT_STORED)

    async def forget(self, request: Request) -> Response:
        self.studio.forget(self._session(request).id)
        return JSONResponse({})

    def _session(self, request: Request) -> Session:
        session = self.studio.session(request.headers.get("session", ""))
        if session is None:
            raise Refusal(400, "The request names no session; load the page again.")
        return session


async def _read_json(request: Request) -> Any:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > REQUEST_BYTES:
            raise Refusal(413, "The request is too large; clear the mask and paint less of it.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "The request cannot be read; load the page again.") from None


def _mark_of(fields: Any) -> str | None:
    """Return what tells a request from all others of a session; None if it does not say."""
    page, number = (
        (fields.get(name) for name in ("page", "ask")) if isinstance(fields, dict) else (None, None)
    )
    return f"{page} {number}" if isinstance(page, str) and type(number) is int else None


async def _result(future: Future[View]) -> View:
    return await asyncio.shield(asyncio.wrap_future(future))

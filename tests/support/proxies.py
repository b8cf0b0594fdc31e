"""A reverse proxy below a path, with a latency: what stands before a studio on a server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]
HOP_BY_HOP = {"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade"}
"""Headers of one connection (RFC 9110, sec. 7.6.1), and the length, which is made anew."""


class Proxy:
    """Hands `prefix`/x on to `target`/x; unless it is plain, it says in headers where it stands."""

    def __init__(self, target: str, prefix: str = "", *, plain: bool = False) -> None:
        self.prefix, self.plain, self.latency = prefix, plain, 0.0
        """Seconds by which every request is late."""
        self.address = ""
        self._client = httpx.AsyncClient(base_url=target, timeout=None)

    async def forward(self, request: Request) -> Response:
        """Answer as the target does, piece by piece."""
        await asyncio.sleep(self.latency)
        headers = {k: v for k, v in request.headers.items() if k not in HOP_BY_HOP | {"host"}}
        if not self.plain:
            headers |= {"x-forwarded-host": request.url.netloc, "x-forwarded-proto": "http"}
        path = request.url.path.removeprefix(self.prefix)
        try:
            body = await request.body()
        except ClientDisconnect:  # the page was closed while its request was late
            return Response()
        ask = self._client.build_request(
            request.method,
            httpx.URL(path=path, query=request.url.query.encode()),
            headers=headers,
            content=body,
        )
        answer = await self._client.send(ask, stream=True)
        kept = {k: v for k, v in answer.headers.items() if k not in HOP_BY_HOP}

        async def pieces() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(answer):  # also when the page is closed
                async for piece in answer.aiter_raw():
                    yield piece

        return StreamingResponse(pieces(), answer.status_code, kept)

    @contextlib.contextmanager
    def running(self, port: int = 0) -> Iterator[Proxy]:
        """Listen while the block runs."""

        @contextlib.asynccontextmanager
        async def life(app: Starlette) -> AsyncIterator[None]:
            yield
            await self._client.aclose()

        route = Route(f"{self.prefix}/{{path:path}}", self.forward, methods=METHODS)
        icon = Route("/favicon.ico", lambda request: Response())  # of the site around the studio
        settings = uvicorn.Config(
            Starlette(routes=[icon, route], lifespan=life),
            port=port,
            log_level="error",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}{self.prefix}"
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join()

"""Who may send requests: checks of host, origin and password, and headers that bind the browser.

A page of another site can make a browser send requests here. It is kept out by three checks:

- The name in `Host` is one that the studio is served under, so that a foreign name that is pointed
  at this machine (DNS rebinding) reaches nothing.
- `Sec-Fetch-Site`, which browsers send and no page can forge, is the page's own site, or nobody's;
  links from elsewhere may open the page itself. Where a browser does not send it (plain HTTP from
  another machine), `Origin` has to be the page's own.
- No answer allows another origin to read it (no CORS).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nulltext.storage.files import replace_file
from nulltext.studio.addresses import Place

OWN_SITES = ("same-origin", "none")
"""Values of Sec-Fetch-Site for requests of the page, and for what the user has typed."""
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
WRONG_PASSWORD_SECONDS = 1.0
"""Time that a wrong password costs; the next has to wait."""
LOGIN_BYTES = 4096
LOGIN_DAYS = 30


@dataclass(frozen=True)
class Password:
    """A password, and the secret that its cookies are made with."""

    text: str
    secret: bytes

    @classmethod
    def kept(cls, text: str, folder: Path) -> Password:
        """Take the folder's secret, so that a cookie outlives a restart."""
        path = folder / "secret"
        if not path.is_file():
            path.touch(mode=0o600)
            replace_file(path, secrets.token_bytes(32))
        return cls(text, path.read_bytes())

    @property
    def token(self) -> str:
        return hmac.new(self.secret, self.text.encode(), hashlib.sha256).hexdigest()

    def fits(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.text.encode())


class Guard:
    """Middleware that lets only the studio's own pages through."""

    def __init__(self, app: ASGIApp, place: Place, password: Password | None, cookie: str) -> None:
        self.app, self.place, self.password, self.cookie = app, place, password, cookie
        self._login = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_bound(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        answer = self._refusal(request) or await self._at_the_door(request)
        await (answer or self.app)(scope, receive, send_bound)

    def _refusal(self, request: Request) -> Response | None:
        """Return why a request is not the page's own; None if it is."""
        headers = request.headers
        name = (urlsplit(f"//{headers.get('host', '')}").hostname or "").rstrip(".")
        if not self.place.serves(name):
            return _refused(
                421,
                f"The studio is not served as '{name:.60}'; name a proxy's address by --root-path.",
            )
        site = headers.get("sec-fetch-site")
        if site in OWN_SITES or (site and _opens_page(request)):
            return None
        origin = headers.get("origin")
        if site or (origin and not self.place.is_origin(origin, headers)):
            return _refused(403, "Requests of other sites' pages are refused.")
        return None

    async def _at_the_door(self, request: Request) -> Response | None:
        """Return the login where the password is still to be given; None where all is well."""
        if self.password is None:
            return None
        path, token = request.url.path, request.cookies.get(self.cookie, "")
        if path == "/login" and request.method == "POST":
            return await self._log_in(request, self.password)
        if path == "/front/page.css" or hmac.compare_digest(token, self.password.token):
            return None
        if path in ("/", "/login"):
            return _login_page()
        return _refused(401, "The password is to be given first; load the page again.")

    async def _log_in(self, request: Request, password: Password) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > LOGIN_BYTES:
                return _login_page("That is no password of this studio.")
        given = parse_qs(body.decode("utf-8", "replace")).get("password", [""])[0]
        async with self._login:  # one at a time, so that guessing is slow
            if not password.fits(given):
                await asyncio.sleep(WRONG_PASSWORD_SECONDS)
                return _login_page("That is not the password.")
        answer = RedirectResponse("./", 303)
        answer.set_cookie(
            self.cookie,
            password.token,
            max_age=LOGIN_DAYS * 24 * 60 * 60,
            path=self.place.path,
            secure=request.headers.get("x-forwarded-proto") == "https",
            httponly=True,
            samesite="strict",
        )
        return answer


def _opens_page(request: Request) -> bool:
    """Whether a link from elsewhere opens the page."""
    headers = request.headers
    opens = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == (
        "navigate",
        "document",
    )
    return opens and request.method == "GET" and request.url.path == "/"


def _refused(status: int, problem: str) -> Response:
    return JSONResponse({"problem": problem}, status)


def _login_page(problem: str = "") -> Response:
    text = (Path(__file__).parent / "front" / "login.html").read_text(encoding="utf-8")
    status = 403 if problem else 200
    return HTMLResponse(text.replace("{{problem}}", problem), status, {"Cache-Control": "no-store"})

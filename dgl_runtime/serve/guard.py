"""Middleware that every request must pass: a known Host, the token, a body of some size that comes in time.

Pure ASGI, so that it stands before everything, and counts a body as it arrives.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from dgl_runtime.serve.address import host_name

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "dgl_session"
OPEN_PATHS = ("/", "/health", "/ready", "/api/session")
OPEN_FOLDERS = ("/assets/",)
VITAL_PATHS = ("/health", "/ready")  # answered however much there is to do
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        b"media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


@dataclass(frozen=True)
class GuardSettings:
    """What is let in.

    Attributes:
        hosts: Names that the Host header may have, as ``host_name`` writes them.
        token: What a request must bring; None: nothing.
        body_bytes: The most that a body may hold; ``upload_bytes`` where files come in.
        upload_bytes: See there.
        body_s: How long a body may take to arrive.
        uploads: Files that come in or are decoded at the same time.
        requests: Requests at work at the same time; those that wait for their client do not count.
    """

    hosts: frozenset[str]
    token: str | None = None
    body_bytes: int = 64 * 1024
    upload_bytes: int = 64 * 2**20
    body_s: float = 30.0
    uploads: int = 8
    requests: int = 1000


class Guard:
    """The ASGI application around ours."""

    def __init__(self, app: App, settings: GuardSettings) -> None:
        self._app, self._settings = app, settings
        self._uploading = 0
        self._at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_safely(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            with self._waiting_for_the_client():
                await send(message)

        try:
            self._require_host_and_token(scope)
            with self._counted(scope):
                await self._app(scope, self._limited(scope, receive), send_safely)
        except HTTPException as refusal:
            if has_begun:  # a refusal inside the application is answered there
                raise
            answer = JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
            await answer(scope, receive, send_safely)

    @contextmanager
    def _counted(self, scope: Scope) -> Iterator[None]:
        """Bound what is at work, and the uploads before they are written to the disk."""
        if self._at_work >= self._settings.requests and scope["path"] not in VITAL_PATHS:
            raise HTTPException(503, "too many requests at once", {"Retry-After": "1"})
        upload = _is_upload(scope)
        if upload and self._uploading >= self._settings.uploads:
            raise HTTPException(429, "too many uploads at once", {"Retry-After": "2"})
        self._uploading += upload
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1
            self._uploading -= upload

    @contextmanager
    def _waiting_for_the_client(self) -> Iterator[None]:
        """Nothing is at work meanwhile: clients that are slow must not keep the others out."""
        self._at_work -= 1
        try:
            yield
        finally:
            self._at_work += 1

    def _require_host_and_token(self, scope: Scope) -> None:
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(hosts) != 1 or host_name(hosts[0]) not in self._settings.hosts:
            raise HTTPException(421, "this Host is not served here; see dgl-serve --allow-host")
        path = scope["path"]
        if path.startswith("/api/") and _comes_from_elsewhere(dict(headers), hosts[0]):
            raise HTTPException(403, "pages of other origins are not answered")
        if self._settings.token is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return
        if not self._has_token(dict(headers)):
            raise HTTPException(401, "a token is needed: Authorization: Bearer TOKEN")

    def _has_token(self, headers: dict[bytes, bytes]) -> bool:
        token = self._settings.token or ""
        kind, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if kind.lower() == "bearer":
            return same(given.strip(), token)
        # Not by http.cookies, which stops at the first cookie of others that it does not like.
        cookies = headers.get(b"cookie", b"").decode("latin-1").split(";")
        return any(
            name.strip() == COOKIE and same(value.strip(), session_of(token))
            for name, _, value in (cookie.partition("=") for cookie in cookies)
        )

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Receive a body up to its limits."""
        most = self._settings.upload_bytes if _is_upload(scope) else self._settings.body_bytes
        lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
        if lengths and (not lengths[0].isdigit() or int(lengths[0][:20]) > most):
            raise HTTPException(413, f"the body is larger than {most} bytes")
        received, is_over = 0, False
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.body_s

        async def limited() -> Message:
            nonlocal received, is_over
            if is_over:  # waiting for the client to go has no limit
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    with self._waiting_for_the_client():
                        message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, "the body took too long to arrive") from error
            received += len(message.get("body", b""))
            is_over = not message.get("more_body", False)
            if received > most:
                raise HTTPException(413, f"the body is larger than {most} bytes")
            return message

        return limited


def session_of(token: str) -> str:
    """What a browser keeps instead of the token."""
    return hmac.new(token.encode(), b"dgl-serve session", hashlib.sha256).hexdigest()


def same(one: str, other: str) -> bool:
    """Compare in a time that tells nothing."""
    return hmac.compare_digest(one.encode(), other.encode())


def _is_upload(scope: Scope) -> bool:
    return bool(scope["path"].endswith("/like"))


def _comes_from_elsewhere(headers: dict[bytes, bytes], host: str) -> bool:
    """Whether a browser says that a page of another origin asks; other programs say nothing."""
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return True
    origin = headers.get(b"origin")
    return origin is not None and origin.decode("latin-1").partition("://")[2] != host

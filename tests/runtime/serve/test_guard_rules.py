"""Each rule of the guard by itself, around an application that is as slow or as long as a rule needs it."""

import asyncio
import hashlib
import hmac
import json

import pytest
from fastapi import HTTPException

from dgl_runtime.serve.guard import Guard, GuardSettings, same, session_of
from tests.helpers.described_client import HEADERS

TOKEN = "a-token-of-some-length"
HOST = (b"host", b"localhost")


class Asked:
    """One request to a guard, and what came of it."""

    def __init__(self, guard, path="/api/x", headers=(HOST,), pieces=(b"",), pause_s=0.0):
        self.sent, self._pieces, self._pause_s = [], list(pieces), pause_s
        self._scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
        self._guard = guard
        self.stuck: asyncio.Event | None = None  # a client that takes nothing until then

    async def _receive(self):
        if not self._pieces:
            await asyncio.sleep(5)
        await asyncio.sleep(self._pause_s)
        piece = self._pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}

    async def _send(self, message):
        self.sent.append(message)
        if self.stuck is not None:
            await self.stuck.wait()

    async def answer(self):
        await self._guard(self._scope, self._receive, self._send)
        return self

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return dict(self.sent[0]["headers"])

    @property
    def detail(self):
        return json.loads(self.sent[1]["body"])["detail"]


def reading(got):
    """An application that reads its body, then says how long it was."""

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        got.append(body)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"{}"})

    return app


def guarded(app=None, hosts=("localhost",), **settings):
    return Guard(app or reading([]), GuardSettings(frozenset(hosts), **settings))


def run(work):
    return asyncio.run(asyncio.wait_for(work, 10))


def ask(guard, *given, **named):
    return run(Asked(guard, *given, **named).answer())


def test_what_passes_arrives_as_it_was_sent():
    got = []
    answer = ask(guarded(reading(got)), pieces=[b"ab", b"", b"c"])
    assert (answer.status, got) == (200, [b"abc"])


def test_every_answer_says_what_a_browser_may_do_with_it():
    expected = {name.encode(): value.encode() for name, value in HEADERS.items()}
    answer = ask(guarded())
    assert answer.headers == expected
    assert "headers" not in answer.sent[1]
    refused = ask(guarded(), headers=()).headers
    assert {name: refused[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("hosts", "is_known"),
    [
        ((b"localhost",), True),
        ((b"[::1]:80",), True),
        ((), False),
        ((b"localhost", b"localhost"), False),
        ((b"evil.example", b"localhost"), False),
        ((b"localhost", b"evil.example"), False),
        ((b"\xe9",), False),
    ],
)
def test_there_is_one_host_header_and_it_is_known(hosts, is_known):
    headers = [(b"Host", host) for host in hosts]
    answer = ask(guarded(hosts=("localhost", "::1")), headers=headers)
    assert answer.status == (200 if is_known else 421)
    if not is_known:
        assert answer.detail == "this Host is not served here; see dgl-serve --allow-host"


@pytest.mark.parametrize(
    ("name", "value", "is_ours"),
    [
        (b"origin", b"http://localhost:8000", True),
        (b"Origin", b"https://localhost:8000", True),
        (b"origin", b"http://localhost", False),
        (b"origin", b"http://evil-localhost:8000", False),
        (b"origin", b"http://evil.localhost:8000", False),
        (b"origin", b"http://localhost:80000", False),
        (b"origin", b"http://localhost:8000/", False),
        (b"origin", b"localhost:8000", False),
        (b"origin", b"null", False),
        (b"origin", b"", False),
        (b"sec-fetch-site", b"same-origin", True),
        (b"sec-fetch-site", b"none", True),
        (b"sec-fetch-site", b"same-site", False),
        (b"Sec-Fetch-Site", b"cross-site", False),
        (b"sec-fetch-site", b"", False),
    ],
)
def test_pages_of_other_origins_are_known_by_what_browsers_say(name, value, is_ours):
    headers = [(b"host", b"localhost:8000"), (name, value)]
    answer = ask(guarded(), headers=headers)
    assert answer.status == (200 if is_ours else 403)
    if not is_ours:
        assert answer.detail == "pages of other origins are not answered"
    assert ask(guarded(), path="/health", headers=headers).status == 200


@pytest.mark.parametrize(
    ("path", "is_open"),
    [
        ("/", True),
        ("/health", True),
        ("/ready", True),
        ("/api/session", True),
        ("/assets/x", True),
        ("/assets", False),
        ("/metrics", False),
        ("/api/session/", False),
        ("/health/", False),
        ("/openapi.json", False),
    ],
)
def test_what_is_open_to_everybody(path, is_open):
    assert ask(guarded(token=TOKEN), path=path).status == (200 if is_open else 401)
    assert ask(guarded(), path=path).status == 200


@pytest.mark.parametrize(
    ("name", "value", "opens"),
    [
        (b"authorization", b"Bearer " + TOKEN.encode(), True),
        (b"Authorization", b"bearer  " + TOKEN.encode() + b" ", True),
        (b"authorization", TOKEN.encode(), False),
        (b"authorization", b"Basic " + TOKEN.encode(), False),
        (b"authorization", b"Bearer " + TOKEN.upper().encode(), False),
        (b"authorization", b"Bearer", False),
        (b"cookie", b"a=b; dgl_session=" + session_of(TOKEN).encode(), True),
        (b"cookie", b"dgl_session = " + session_of(TOKEN).encode(), True),
        (b"cookie", b"other=" + session_of(TOKEN).encode(), False),
        (b"cookie", b"dgl_session=" + session_of(TOKEN + "x").encode(), False),
        (b"cookie", b"dgl_session=" + TOKEN.encode(), False),
        (b"cookie", b"dgl_session", False),
    ],
)
def test_what_the_token_is_brought_by(name, value, opens):
    answer = ask(guarded(token=TOKEN), headers=[HOST, (name, value)])
    assert answer.status == (200 if opens else 401)
    if not opens:
        assert answer.detail == "a token is needed: Authorization: Bearer TOKEN"


def test_a_wrong_bearer_is_not_helped_by_a_cookie():
    cookie = b"dgl_session=" + session_of(TOKEN).encode()
    headers = [HOST, (b"authorization", b"Bearer x"), (b"cookie", cookie)]
    assert ask(guarded(token=TOKEN), headers=headers).status == 401


def test_a_session_stands_for_the_token_and_does_not_tell_it():
    digest = hmac.new(TOKEN.encode(), b"dgl-serve session", hashlib.sha256).hexdigest()
    assert session_of(TOKEN) == digest
    assert same("ü", "ü")
    assert not same("u", "ü")


@pytest.mark.parametrize("path", ["/api/x", "/api/galleries/a/like"])
def test_a_body_may_be_as_large_as_its_bound_and_no_larger(path):
    most = 20 if path.endswith("/like") else 10
    guard = guarded(body_bytes=10, upload_bytes=20)
    refusal = f"the body is larger than {most} bytes"
    assert ask(guard, path, pieces=[b"x" * (most - 1), b"x"]).status == 200
    answer = ask(guard, path, pieces=[b"x" * most, b"x"])
    assert (answer.status, answer.detail) == (413, refusal)
    for length, fits in (
        (str(most), True),
        ("0", True),
        (str(most + 1), False),
        ("1" + "0" * 5000, False),
        ("-1", False),
        ("1e1", False),
    ):
        answer = ask(guard, path, headers=[HOST, (b"Content-Length", length.encode())])
        assert answer.status == (200 if fits else 413)
        assert fits or answer.detail == refusal


def test_the_bounds_that_are_set_when_none_is_given():
    settings = GuardSettings(frozenset())
    assert (settings.body_bytes, settings.upload_bytes) == (65_536, 67_108_864)
    assert (settings.body_s, settings.uploads, settings.requests) == (30.0, 8, 1000)
    assert settings.token is None


def test_a_body_has_one_deadline_however_often_a_piece_comes():
    guard = guarded(body_s=0.3)
    answer = ask(guard, pieces=[b"x"] * 20, pause_s=0.1)
    assert (answer.status, answer.detail) == (408, "the body took too long to arrive")
    assert ask(guard, pieces=[b"x"] * 4, pause_s=0.01).status == 200


def test_one_whose_body_is_there_may_wait_for_its_answer():
    async def app(scope, receive, send):
        await receive()
        with pytest.raises(TimeoutError):  # for the client to go; by then the deadline is over
            await asyncio.wait_for(receive(), 0.2)
        await send({"type": "http.response.start", "status": 200})

    assert ask(guarded(app, body_s=0.05)).status == 200


class Slow:
    """An application that answers when it is told to."""

    def __init__(self):
        self.go_on, self.inside = asyncio.Event(), 0

    async def __call__(self, scope, receive, send):
        while (await receive())["more_body"]:
            pass
        self.inside += 1
        if scope["path"] not in ("/health", "/ready"):
            await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def until(self, count):
        while self.inside < count:
            await asyncio.sleep(0.001)


def test_more_at_work_than_there_is_room_for_is_refused_but_health_is_told():
    async def work():
        app = Slow()
        guard = guarded(app, requests=2)
        going = [asyncio.create_task(Asked(guard).answer()) for _ in range(2)]
        await app.until(2)
        for path in ("/api/x", "/", "/metrics"):
            refused = await Asked(guard, path).answer()
            assert (refused.status, refused.headers[b"retry-after"]) == (503, b"1")
            assert refused.detail == "too many requests at once"
        for path in ("/health", "/ready"):
            assert (await Asked(guard, path).answer()).status == 200
        assert (
            await Asked(guard, headers=()).answer()
        ).status == 421  # who may not ask learns nothing
        app.go_on.set()
        assert [one.status for one in await asyncio.gather(*going)] == [200, 200]
        for _ in range(3):  # all have gone
            assert (await Asked(guard).answer()).status == 200

    run(work())


def test_those_that_wait_for_their_client_are_not_at_work():
    async def work():
        app = Slow()
        app.go_on.set()
        guard = guarded(app, requests=1)
        sends_on = Asked(guard, pieces=[b"x", b"y"], pause_s=5)
        stuck = Asked(guard)
        stuck.stuck = asyncio.Event()
        waiting = [asyncio.create_task(one.answer()) for one in (sends_on, stuck, stuck)]
        await app.until(1)
        for _ in range(3):
            assert (await Asked(guard).answer()).status == 200
        stuck.stuck.set()
        assert (await waiting[1]).status == 200
        waiting[0].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        app.go_on.clear()  # what was cancelled is not counted any more, nor is it counted twice
        going = asyncio.create_task(Asked(guard).answer())
        await asyncio.sleep(0.01)
        assert (await Asked(guard).answer()).status == 503
        app.go_on.set()
        assert (await going).status == 200

    run(work())


def test_uploads_are_counted_from_their_first_byte_and_apart():
    async def work():
        app = Slow()
        guard = guarded(app, uploads=2)
        path = "/api/galleries/a/like"
        going = [asyncio.create_task(Asked(guard, path).answer()) for _ in range(2)]
        await app.until(2)
        refused = await Asked(guard, path).answer()
        assert (refused.status, refused.headers[b"retry-after"]) == (429, b"2")
        assert refused.detail == "too many uploads at once"
        going.append(asyncio.create_task(Asked(guard).answer()))  # no upload
        app.go_on.set()
        assert [one.status for one in await asyncio.gather(*going)] == [200] * 3
        assert (await Asked(guard, path).answer()).status == 200

    run(work())


def test_a_failure_gives_its_place_back():
    async def failing(scope, receive, send):
        raise ValueError("a bug")

    guard = guarded(failing, requests=1, uploads=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="a bug"):
            ask(guard, path="/api/galleries/a/like")


def test_a_refusal_after_the_answer_has_begun_is_not_answered_twice():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        raise HTTPException(413, "too late")

    asked = Asked(guarded(app))
    with pytest.raises(HTTPException, match="too late"):
        run(asked.answer())
    assert [one["type"] for one in asked.sent] == ["http.response.start"]


def test_what_is_no_request_passes():
    got = []

    async def app(scope, receive, send):
        got.append((scope, receive, send))

    scope = {"type": "lifespan"}
    run(guarded(app)(scope, 1, 2))
    assert got == [(scope, 1, 2)]

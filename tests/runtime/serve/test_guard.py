"""Who is let in, and how much they may send; nothing outside the gallery is served."""

import random
import socket
import threading
import time
from urllib.parse import quote

import pytest
import uvicorn
from fastapi import HTTPException
from fastapi.testclient import TestClient

from dgl_runtime import Encoder
from dgl_runtime.commands.serve import read_token
from dgl_runtime.errors import ConfigError
from dgl_runtime.serve.app import ServeSettings, create_app
from dgl_runtime.serve.galleries import ServedGallery
from dgl_runtime.serve.guard import GuardSettings
from tests.helpers.described_client import HEADERS, HOSTS, serve

AT = "/api/galleries/holiday"
TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize(
    ("host", "is_known"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:80", True),
        ("localhost.", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("localhost:80@evil.example", False),
        ("", False),
        (":80", False),
        ("127.0.0.1.nip.io", False),
    ],
)
def test_only_known_hosts_are_answered(client, host, is_known):
    for path in ("/", "/health", "/api/galleries"):
        answer = client.get(path, headers={"host": host})
        assert (answer.status_code == 421) != is_known


@pytest.mark.parametrize(
    ("status", "path", "settings"),
    [
        (200, "/", {}),
        (200, "/assets/app.js", {}),
        (200, "/health", {}),
        (200, "/api/galleries", {}),
        (200, f"{AT}/clips/0/thumbnail", {}),
        (200, f"{AT}/clips/0/preview?start_s=0&end_s=1", {}),
        (206, f"{AT}/videos/1", {"headers": {"range": "bytes=0-9"}}),
        (403, "/api/galleries", {"headers": {"sec-fetch-site": "cross-site"}}),
        (404, "/nothing", {}),
        (404, f"{AT}/videos/99", {}),
        (405, "/health", {"method": "DELETE"}),
        (413, f"{AT}/search", {"method": "POST", "content": bytes(70_000)}),
        (416, f"{AT}/videos/1", {"headers": {"range": "bytes=99999999-"}}),
        (421, "/health", {"headers": {"host": "evil.example"}}),
        (422, f"{AT}/search", {"method": "POST", "content": b"{"}),
    ],
)
def test_every_answer_has_the_headers_that_keep_others_out(client, status, path, settings):
    """The client of these tests looks for them, in the answers of all other tests as well."""
    settings = {"method": "GET", **settings}
    assert client.request(url=path, **settings).status_code == status


def test_a_bug_is_answered_with_the_headers_that_keep_others_out(bundle, library, monkeypatch):
    def fail(*_):
        raise ValueError("a bug")

    monkeypatch.setattr("dgl_runtime.serve.media.MediaMaker.picture", fail)
    served = ServedGallery("holiday", library / "gallery", Encoder(bundle, threads=1))
    app = create_app([served], ServeSettings(GuardSettings(HOSTS)))
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        answer = client.get(f"{AT}/clips/0/thumbnail")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert answer.headers.items() >= HEADERS.items()


def test_no_other_origin_may_ask(client):
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = client.options(f"{AT}/search", headers=asked)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "is_ours"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"origin": "http://localhost"}, True),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "http://localhost:9999"}, False),
        ({"origin": "null"}, False),
    ],
)
def test_pages_of_other_origins_get_no_work_done(client, headers, is_ours):
    """Forms and pictures need no permission of the browser's to be sent to us."""
    asked = [
        client.post(f"{AT}/like", files={"file": ("x", b"no video")}, headers=headers),
        client.post(f"{AT}/search", json={"query": "a dog"}, headers=headers),
        client.get(f"{AT}/clips/0/thumbnail", headers=headers),
    ]
    assert [answer.status_code for answer in asked] == ([422, 200, 200] if is_ours else [403] * 3)


def test_more_uploads_than_fit_are_refused_at_once(bundle, library, monkeypatch):
    going, go_on = threading.Event(), threading.Event()

    def slow(*_):
        going.set()
        assert go_on.wait(20)
        raise HTTPException(422, "enough")

    monkeypatch.setattr("dgl_runtime.serve.app._embed_upload", slow)
    upload = {"files": {"file": ("x", b"x")}}
    with serve(bundle, library / "gallery", guard=GuardSettings(HOSTS, uploads=1)) as client:
        first = threading.Thread(target=client.post, args=(f"{AT}/like",), kwargs=upload)
        first.start()
        assert going.wait(20)
        answer = client.post(f"{AT}/like", **upload)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
        assert client.post(f"{AT}/search", json={"query": "a dog"}).status_code == 200
        go_on.set()
        first.join()


@pytest.fixture
def guarded(bundle, library):
    with serve(bundle, library / "gallery", guard=GuardSettings(HOSTS, TOKEN)) as client:
        yield client


CLOSED = [
    ("GET", "/api/galleries"),
    ("POST", f"{AT}/search"),
    ("POST", f"{AT}/like"),
    ("GET", f"{AT}/clips/0/thumbnail"),
    ("GET", f"{AT}/clips/0/preview?start_s=0&end_s=1"),
    ("GET", f"{AT}/videos/1"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
]


@pytest.mark.parametrize("given", [None, "wrong", TOKEN[:-1], TOKEN + "x", "", "ü"])
def test_without_the_token_nothing_is_told(guarded, given):
    headers = {} if given is None else {"authorization": f"Bearer {given}".encode()}
    for method, path in CLOSED:
        assert guarded.request(method, path, headers=headers).status_code == 401, path
    for path in ("/", "/health", "/ready", "/assets/app.js"):
        assert guarded.get(path).status_code == 200


def test_the_token_opens_and_a_browser_keeps_a_cookie_instead(guarded):
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert guarded.get("/api/galleries", headers=bearer).status_code == 200
    assert guarded.post("/api/session", json={"token": "wrong"}).status_code == 401
    answer = guarded.post("/api/session", json={"token": TOKEN})
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"]
    assert cookie.split("; ")[1:] == ["HttpOnly", "Path=/", "SameSite=strict"]
    assert TOKEN not in cookie
    assert guarded.get("/api/galleries").status_code == 200  # with the cookie
    cookie = cookie.partition(";")[0]
    for beside in ("{}", 'prefs={{"a":1}}; {}', "{}; other=x", "a=b;{}"):  # cookies of others
        guarded.cookies.clear()
        answer = guarded.get("/api/galleries", headers={"cookie": beside.format(cookie)})
        assert answer.status_code == 200, beside


@pytest.mark.parametrize("cookie", [TOKEN, "0" * 64, "", '"', "\x01"])
def test_another_cookie_does_not_open(guarded, cookie):
    headers = {"cookie": f"dgl_session={cookie}"}
    assert guarded.get("/api/galleries", headers=headers).status_code == 401


def traversals():
    """A thousand ways to write a path that leads out of a folder."""
    targets = ("etc/passwd", "proc/self/environ", "gallery/gallery.sqlite", "app.py", "guard.py")
    dots = (
        "..",
        "%2e%2e",
        "..%00",
        "%252e%252e",
        "..;",
        "....",
        "%c0%ae%c0%ae",
        "..\\",
        ".%2e",
        "%uff0e%uff0e",
    )
    slashes = ("/", "%2f", "%5c", "//", "%252f", "%c0%af", "/./")
    roots = ("/assets/", f"{AT}/videos/", f"{AT}/clips/", "/", "/api/galleries/")
    every = [
        root + slash.join([dot] * depth) + slash + target
        for root in roots
        for dot in dots
        for slash in slashes
        for depth in (1, 3, 8)
        for target in targets
    ]
    return random.Random(0).sample(every, 1000)


def test_a_thousand_paths_that_lead_outside_give_nothing(client):
    for path in traversals():
        answer = client.get(path)
        assert answer.status_code in (307, 400, 404, 405, 422), (path, answer.status_code)
        for secret in ("root:", "PATH=", "SQLite format", "def create_app", "class Guard"):
            assert secret not in answer.text


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "x\0y", "a" * 5000, "%2e%2e/x"]
)
def test_names_from_a_request_never_reach_the_file_system(client, name):
    assert (
        client.post(
            f"/api/galleries/{quote(name, safe='')}/search", json={"query": "x"}
        ).status_code
        == 404
    )


def test_bodies_that_are_too_large_are_refused(client, bundle, library):
    large = b'{"query": "' + b"x" * 70_000 + b'"}'
    assert client.post(f"{AT}/search", content=large).status_code == 413

    def in_parts():
        for _ in range(100):
            yield b"x" * 10_000

    assert client.post(f"{AT}/search", content=in_parts()).status_code == 413
    assert client.post(f"{AT}/search", headers={"content-length": "x"}).status_code in (400, 413)
    guard = GuardSettings(HOSTS, upload_bytes=10_000)
    with serve(bundle, library / "gallery", guard=guard) as small:
        answer = small.post(f"{AT}/like", files={"file": ("x.mp4", b"x" * 20_000)})
        assert answer.status_code == 413


@pytest.fixture
def running(bundle, library):
    """A service on a real socket, with little patience; its port."""
    guard = GuardSettings(HOSTS, body_s=1.0)
    served = ServedGallery("holiday", library / "gallery", Encoder(bundle, threads=1))
    config = uvicorn.Config(create_app([served], ServeSettings(guard)), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def test_paths_that_no_client_would_send_are_not_followed(running):
    """As they stand: clients and test clients take ``..`` out of a path before they send it."""
    for root in ("/assets/", f"{AT}/videos/", "/"):
        for up in ("../", "..\\", "%2e%2e/", "..%2f", "....//", "%252e%252e/"):
            for target in ("app.py", "etc/passwd", "serve/guard.py"):
                path = root + 8 * up + target
                said = talk(running, f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
                assert b" 4" in said[:10], (path, said[:80])
                assert b"class Guard" not in said
                assert b"root:" not in said


def talk(port, *parts, pause_s=0.0):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause_s)
        return connection.recv(65_536)


def test_a_body_that_comes_too_slowly_is_given_up(running):
    head = f"POST {AT}/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += "Content-Length: 20\r\n\r\n"
    assert b" 408 " in talk(running, head.encode(), b'{"que')
    for raw in (b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n"):
        assert b" 4" in talk(running, raw)[:14]
    assert b" 400 " in talk(running, b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n")[:20]
    assert b" 200 " in talk(running, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")


# ---- the token of the command -------------------------------------------------------------------


def test_tokens_come_from_a_file_or_the_environment_and_have_some_length(tmp_path, monkeypatch):
    monkeypatch.delenv("DGL_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("DGL_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    (tmp_path / "token").write_text(f"{TOKEN}2\n")
    assert read_token(tmp_path / "token") == f"{TOKEN}2"
    (tmp_path / "token").write_text("short")
    with pytest.raises(ConfigError, match="has 5 characters, at least 16 are needed"):
        read_token(tmp_path / "token")

"""The service as a whole: its start and end, what it counts, how answers may be kept, and its bounds."""

import asyncio
import json
import time
import urllib.request
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from dgl_runtime import Encoder
from dgl_runtime.errors import GalleryError, MediaError
from dgl_runtime.serve import app
from dgl_runtime.serve.app import ServeSettings, Service, create_app
from dgl_runtime.serve.galleries import ServedGallery
from dgl_runtime.serve.guard import GuardSettings
from tests.helpers.described_client import HOSTS, serve
from tests.helpers.served import serving

AT = "/api/galleries/holiday"
TOKEN = "a-token-of-some-length"


def test_the_bounds_that_are_promised():
    assert (app.MOST_PICTURES, app.MOST_PREVIEWS) == (64, 8)
    assert (app._UPLOAD_LIMITS.most_bytes, app._UPLOAD_LIMITS.silent_s) == (2 * 2**30, 20.0)
    settings = ServeSettings(GuardSettings(HOSTS))
    assert (settings.answer_s, settings.upload_s, settings.media_jobs) == (10.0, 30.0, 2)
    service = Service([], ServeSettings(GuardSettings(HOSTS, uploads=5), media_jobs=3))
    lanes = (service._pictures, service._previews, service._uploads)
    assert [(one._threads._max_workers, one._most) for one in lanes] == [(3, 64), (1, 8), (3, 5)]
    assert service._media._pictures_by._count == 3
    service._media.close()


@pytest.fixture
def served(bundle, own_library):
    return ServedGallery("holiday", own_library, Encoder(bundle, threads=1))


def test_it_opens_at_the_start_and_lets_go_at_the_end(served):
    service = Service([served], ServeSettings(GuardSettings(HOSTS)))
    warmed = []
    embed = served.encoder.embed_texts
    served.encoder.embed_texts = lambda texts: warmed.append(texts) or embed(texts)

    async def work():
        assert (await service.ready()).status_code == 503
        async with service.lifespan(None):
            ready = await service.ready()
            assert (ready.status_code, ready.body) == (200, b'{"ready":true}')
            with served.look() as snapshot:
                clips = len(snapshot.gallery)
            told = service.metrics.text().decode()
            assert f'dgl_gallery_clips{{gallery="holiday"}} {float(clips)}' in told
        ended = await service.ready()
        assert (ended.status_code, ended.body) == (503, b'{"ready":false}')

    asyncio.run(work())
    assert warmed == [["warm up"]]
    with pytest.raises(GalleryError, match="is closed"), served.look():
        pass
    assert not service._batcher._thread.is_alive()
    assert not Path(service._media._folder.name).exists()


def test_galleries_are_followed_at_their_pace_whatever_becomes_of_one(served, monkeypatch):
    monkeypatch.setattr(app, "REFRESH_S", 0.1)
    service = Service([served], ServeSettings(GuardSettings(HOSTS)))
    asked = []

    def refresh():
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise GalleryError("damaged for a moment")
        return False

    async def work():
        async with service.lifespan(None):
            monkeypatch.setattr(served, "refresh", refresh)
            await asyncio.sleep(0.65)
            assert 2 <= len(asked) <= 6
        count = len(asked)
        await asyncio.sleep(0.25)
        assert len(asked) == count

    asyncio.run(work())


def test_what_waits_and_what_was_answered_together_is_told(bundle, library, monkeypatch):
    with serve(bundle, library / "gallery") as client:
        client.post(f"{AT}/search", json={"query": "a dog"})
        told = client.get("/metrics")
        assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "dgl_searches_waiting 0.0" in told.text
        assert "dgl_batch_size_sum 1.0" in told.text
        monkeypatch.setattr("dgl_runtime.serve.batching.Batcher.depth", 7)
        assert "dgl_searches_waiting 7.0" in client.get("/metrics").text


def test_how_long_answers_may_be_kept(client):
    for path in ("clips/0/thumbnail", "clips/0/preview?start_s=0&end_s=1", "videos/1"):
        assert client.get(f"{AT}/{path}").headers["cache-control"] == "private, no-cache"
    assert client.get("/").headers["cache-control"] == "no-cache"


def test_pages_that_load_scripts_from_elsewhere_are_not_there(client):
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("scheme", "page", "is_secure"),
    [
        ("http", None, False),
        ("http", "http://localhost", False),
        ("https", None, True),
        ("http", "https://localhost", True),  # behind a proxy that says nothing
    ],
)
def test_a_cookie_that_was_given_over_https_stays_there(bundle, library, scheme, page, is_secure):
    served = ServedGallery("holiday", library / "gallery", Encoder(bundle, threads=1))
    made = create_app([served], ServeSettings(GuardSettings(HOSTS, TOKEN)))
    headers = {} if page is None else {"origin": page}
    with TestClient(made, f"{scheme}://localhost", headers=headers) as client:
        answer = client.post("/api/session", json={"token": TOKEN})
        assert answer.status_code == 204
        said = answer.headers["set-cookie"].split("; ")
        assert said[1:] == ["HttpOnly", "Path=/", "SameSite=strict", *["Secure"] * is_secure]
        refused = client.post("/api/session", json={"token": "x"})
        assert refused.json()["detail"] == "this is not the token of this service"
        assert "set-cookie" not in refused.headers


def test_a_proxy_may_say_that_it_was_asked_over_https(library, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    body, kind = json.dumps({"token": TOKEN}).encode(), {"content-type": "application/json"}
    with serving(library / "gallery", "--token-file", tmp_path / "token") as (_, port):
        for scheme in ("http", "https"):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/api/session",
                body,
                {**kind, "x-forwarded-proto": scheme},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert ("Secure" in answer.headers["set-cookie"]) == (scheme == "https")


def test_without_a_token_there_is_no_session(client):
    answer = client.post("/api/session", json={"token": ""})
    assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)


def test_an_example_is_filtered_and_grouped_as_a_text_is(client, library):
    video = (library / "videos" / "1.mp4").read_bytes()

    def like(**filters):
        answer = client.post(f"{AT}/like", files={"file": ("x", video)}, data=filters)
        assert answer.status_code == 200, answer.text
        return answer.json()["moments"]

    titles = [one["title"] for one in like(group="video")]
    assert len(set(titles)) == len(titles) == 4
    every = like(group="none")
    assert len(every) > 4
    assert len(like(top=3, group="none")) == 3
    assert {one["title"] for one in like(where="camera = 'north'", group="none")} == {"0.mp4"}
    apart = like()
    assert apart == like(group="apart")
    assert len(apart) < len(every)


def test_what_a_bank_ranks_down_is_a_text_alone_and_only_if_it_is_wished(bundle, library):
    bank = [f"query number {n}" for n in range(20)]
    gallery = ServedGallery("holiday", library / "gallery", Encoder(bundle, threads=1), bank)
    with TestClient(
        create_app([gallery], ServeSettings(GuardSettings(HOSTS))), "http://localhost"
    ) as one:
        assert one.get("/api/galleries").json()[0]["has_querybank"]

        def similarities(**filters):
            body = {"query": "a dog", "group": "none", **filters}
            found = one.post(f"{AT}/search", json=body).json()["moments"]
            return [hit["similarity"] for hit in found]

        plain = similarities(hubs=False)
        assert plain == sorted(plain, reverse=True)
        assert similarities() == similarities(hubs=True) != plain


def test_a_span_that_is_none_and_a_video_that_gives_none(client, monkeypatch):
    answer = client.get(f"{AT}/clips/0/preview?start_s=1&end_s=1")
    assert answer.json()["detail"] == "start_s is 1.0, expected less than end_s 1.0"
    assert client.get(f"{AT}/clips/999/preview?start_s=0&end_s=1").json()["detail"] == "no clip 999"
    detail = client.get(f"{AT}/videos/999").json()["detail"]
    assert detail == "no video 999 in gallery holiday"
    detail = client.get("/api/galleries/x/videos/1").json()["detail"]
    assert detail == "no gallery 'x'; there are: holiday"

    def broken(*_):
        raise MediaError("it is broken")

    monkeypatch.setattr("dgl_runtime.serve.media.MediaMaker.preview", broken)
    answer = client.get(f"{AT}/clips/0/preview?start_s=0&end_s=1")
    assert (answer.status_code, answer.json()["detail"]) == (422, "it is broken")


def test_the_sides_a_picture_may_have(client):
    for side, fits in ((31, False), (32, True), (1280, True), (1281, False)):
        answer = client.get(f"{AT}/clips/0/thumbnail?side={side}")
        assert answer.status_code == (200 if fits else 422)
    whole = client.get(f"{AT}/clips/0/thumbnail").content
    assert whole == client.get(f"{AT}/clips/0/thumbnail?side=480").content

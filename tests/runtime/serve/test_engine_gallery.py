"""A service of a gallery in PostgreSQL: it answers as one of a folder does, and outlives its server's rest."""

import time

import pytest

from dgl_runtime import Encoder, Retriever
from dgl_runtime.gallery.address import open_gallery, read_place
from dgl_runtime.serve import galleries
from dgl_runtime.serve.galleries import ServedGallery, names_of
from tests.helpers.described_client import serve
from tests.helpers.odd_videos import write_video

SEARCH = "/api/galleries/holiday/search"
ASKED = {"query": "a dog", "top": 3}


@pytest.fixture
def address(bundle, library, own_postgres):
    address = own_postgres.address()
    with Retriever(bundle, address, threads=1) as retriever:
        retriever.add_videos([library / "videos"], window_s=1.0, stride_s=0.5)
    with open_gallery(read_place(address), writable=True) as gallery:
        gallery.upsert_metadata(library / "videos" / "list.csv", print)
    return address


def until(ask, expected):
    """The answer, when it has this status."""
    deadline = time.monotonic() + 30
    while (answer := ask()).status_code != expected:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    return answer


def shown(answer):
    """What both kinds of galleries say alike: not their numbers of clips, and not the last digits."""
    moments = answer.json()["moments"]
    for moment in moments:
        del moment["clip"], moment["video"]
        moment["similarity"] = round(moment["similarity"], 4)
        moment["frame_weights"] = [round(weight, 4) for weight in moment["frame_weights"]]
    return moments


def test_it_answers_as_one_of_a_folder(bundle, library, address, client):
    with serve(bundle, read_place(address)) as theirs:
        for asked in (ASKED, {**ASKED, "where": "camera = 'north'"}, {**ASKED, "group": "video"}):
            answer = theirs.post(SEARCH, json=asked)
            assert shown(answer) == shown(client.post(SEARCH, json=asked))
            assert len(shown(answer)) > 0
        (moment, *_) = answer.json()["moments"]
        thumbnail = theirs.get(f"/api/galleries/holiday/clips/{moment['clip']}/thumbnail")
        assert thumbnail.headers["content-type"] == "image/jpeg"
        assert theirs.get(f"/api/galleries/holiday/videos/{moment['video']}").status_code == 200
        assert theirs.get("/api/galleries/holiday/clips/999999/thumbnail").status_code == 404
        assert theirs.post(SEARCH, json={**ASKED, "where": "pg_sleep(9)"}).status_code == 422
        ours, other = client.get("/api/galleries").json(), theirs.get("/api/galleries").json()
        assert other == ours


def test_while_the_server_is_away_it_says_503_and_then_goes_on(
    bundle, library, address, own_postgres, monkeypatch
):
    monkeypatch.setattr("dgl_runtime.serve.app.REFRESH_S", 0.05)
    with serve(bundle, read_place(address)) as client:
        assert client.get("/ready").status_code == 200
        before = shown(client.post(SEARCH, json=ASKED))
        own_postgres.kill()
        for ask in (
            lambda: client.post(SEARCH, json=ASKED),
            lambda: client.get("/api/galleries"),
            lambda: client.get("/api/galleries/holiday/clips/0/thumbnail"),
            lambda: client.get("/api/galleries/holiday/videos/1"),
        ):
            answer = until(ask, 503)
            assert answer.json() == {
                "detail": "the gallery's server cannot be reached now; try again soon"
            }
            assert answer.headers["retry-after"] == "2"
        assert until(lambda: client.get("/ready"), 503).json() == {"ready": False}
        assert client.get("/health").status_code == 200
        own_postgres.start()
        assert shown(until(lambda: client.post(SEARCH, json=ASKED), 200)) == before
        until(lambda: client.get("/ready"), 200)


def test_what_another_machine_adds_or_forgets_is_seen_at_once(bundle, library, address, tmp_path):
    served = ServedGallery("holiday", read_place(address), Encoder(bundle, threads=1), ["a", "b"])
    assert served.refresh()
    with served.look() as snapshot:
        before = len(snapshot.gallery)
        with Retriever(bundle, address, threads=1) as writer:
            writer.add_videos([write_video(tmp_path / "new.mp4", 31)])
        assert not served.refresh()
        assert len(snapshot.gallery) == before + 1
    served.close()
    assert galleries.REFRESH_S == 2.0


def test_it_is_named_by_the_gallery_of_its_address():
    places = [
        "postgresql://me@host/db?gallery=films",
        "films",
        "postgresql://host/db?gallery=films",
    ]
    assert names_of([read_place(one) for one in places]) == ["films", "films-2", "films-3"]

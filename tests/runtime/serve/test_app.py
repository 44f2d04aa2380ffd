"""What each address of dgl-serve answers."""

import io
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from PIL import Image

from dgl_runtime import Retriever
from dgl_runtime.errors import MediaError
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.media.windows import Span, frame_times
from dgl_runtime.serve import app
from dgl_runtime.serve.media import MediaMaker
from tests.helpers.described_client import serve
from tests.helpers.odd_videos import write_video

AT = "/api/galleries/holiday"


def search(client, query="a red circle", **filters):
    answer = client.post(f"{AT}/search", json={"query": query, **filters})
    assert answer.status_code == 200, answer.text
    return answer.json()["moments"]


def test_a_search_gives_what_the_retriever_finds(client, bundle, library):
    with Retriever(bundle, library / "gallery", threads=1) as retriever:
        for grouping in ("apart", "merge", "video", "none"):
            expected = retriever.search("a red circle", 24, grouping=grouping)
            found = search(client, group=grouping)
            assert [(one["start_s"], one["end_s"], one["clip"]) for one in found] == [
                (hit.start_s, hit.end_s, hit.row) for hit in expected
            ]
            np.testing.assert_allclose(
                [one["similarity"] for one in found],
                [hit.similarity for hit in expected],
                atol=1e-6,
            )


def test_filters_and_metadata(client):
    found = search(client, where="camera = 'north'")
    assert {one["title"] for one in found} == {"0.mp4"}
    assert found[0]["metadata"] == {"camera": "north"}
    assert len(search(client, top=2)) == 2
    answer = client.post(f"{AT}/search", json={"query": "x", "where": "colour = 1"})
    assert answer.status_code == 422
    assert "no such column: colour" in answer.json()["detail"]
    assert "video, start_s, end_s, duration_s, modified, camera" in answer.json()["detail"]


def test_a_query_that_is_cut_is_told(client, bundle):
    most = Retriever(bundle).tokenizer.spec.most_pieces
    for count, cut in ((most, None), (most + 1, f"first {most} of {most + 1} words")):
        answer = client.post(f"{AT}/search", json={"query": " ".join(["dog"] * count)}).json()
        assert answer["moments"]
        if cut is None:
            assert answer["cut"] is None
        else:
            assert f"is too long for this model, which reads its {cut}" in answer["cut"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"query": ""}, 422),
        ({"query": "  "}, 422),
        ({"query": "x" * 1001}, 422),
        ({"query": "x", "top": 0}, 422),
        ({"query": "x", "top": 1001}, 422),
        ({"query": "x", "group": "all"}, 422),
        ({"query": "x", "path": "/etc/passwd"}, 422),
        ({}, 422),
        ([], 422),
    ],
)
def test_a_search_that_does_not_fit_is_refused(client, body, status):
    assert client.post(f"{AT}/search", json=body).status_code == status


@pytest.mark.parametrize(
    "body",
    [
        '{"query": "a dog", "top": NaN}',
        '{"query": "a dog", "top": 1e999}',
        '{"query": "\\ud800"}',
        '{"query": "a dog", "top": "\\ud800"}',
        "[" * 5000,
        "nul",
    ],
)
def test_json_that_cannot_be_repeated_is_refused_all_the_same(client, body):
    answer = client.post(f"{AT}/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"]


def test_merged_moments_stay_moments_in_a_small_gallery(client):
    """Of all clips of a video together one moment would be left, the whole video."""
    every = search(client, group="none", top=3)
    merged = search(client, group="merge", top=3)
    length_s = sum(one["end_s"] - one["start_s"] for one in merged)
    assert length_s <= sum(one["end_s"] - one["start_s"] for one in every) + 1e-6


def test_what_is_served_is_told(client, library):
    (facts,) = client.get("/api/galleries").json()
    with Gallery.open(library / "gallery") as gallery:
        assert facts["clips"] == len(gallery)
    assert (facts["name"], facts["videos"], facts["has_querybank"]) == ("holiday", 4, False)
    assert facts["columns"][-1] == "camera"
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"ready": True}
    assert client.get("/openapi.json").json()["info"]["title"] == "dgl-retrieval"


def test_an_unknown_gallery_clip_or_video_is_not_found(client):
    assert client.post("/api/galleries/x/search", json={"query": "a"}).status_code == 404
    for path in ("clips/999/thumbnail", "videos/999", f"videos/{2**63 - 1}"):
        assert client.get(f"{AT}/{path}").status_code == 404
    for path in ("clips/x/thumbnail", "clips/-1/thumbnail", "videos/0.mp4", f"videos/{2**63}"):
        assert client.get(f"{AT}/{path}").status_code == 422


def test_a_thumbnail_shows_the_frame_that_counted_most(client, library):
    maker = MediaMaker(1)
    for one in search(client, group="none", where="video LIKE '%0.mp4'"):
        weights = one["frame_weights"]
        times = frame_times(Span(one["clip_start_s"], one["clip_end_s"]), len(weights))
        pictures = [maker.picture(library / "videos" / "0.mp4", "", t, 64) for t in times]
        assert len(set(pictures)) == len(pictures)
        answer = client.get(f"{AT}/clips/{one['clip']}/thumbnail?side=64")
        assert answer.content == pictures[weights.index(max(weights))]
    maker.close()
    one = search(client)[0]
    answer = client.get(f"{AT}/clips/{one['clip']}/thumbnail?side=64")
    assert answer.headers["content-type"] == "image/jpeg"
    assert "private" in answer.headers["cache-control"]
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (64, 48)
    for side in ("0", "5000", "x"):
        assert client.get(f"{AT}/clips/{one['clip']}/thumbnail?side={side}").status_code == 422


def test_a_video_comes_whole_or_in_ranges(client, library):
    one = next(one for one in search(client, group="none") if one["title"] == "0.mp4")
    whole = client.get(f"{AT}/videos/{one['video']}")
    data = (library / "videos" / "0.mp4").read_bytes()
    assert (whole.content, whole.headers["content-type"]) == (data, "video/mp4")
    assert whole.headers["accept-ranges"] == "bytes"
    part = client.get(f"{AT}/videos/{one['video']}", headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, data[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(data)}"
    tail = client.get(f"{AT}/videos/{one['video']}", headers={"range": "bytes=-5"})
    assert (tail.status_code, tail.content) == (206, data[-5:])
    beyond = client.get(f"{AT}/videos/{one['video']}", headers={"range": f"bytes={len(data)}-"})
    assert beyond.status_code == 416


def test_a_preview_is_mp4_of_the_moment(client, tmp_path):
    one = next(one for one in search(client, group="none") if one["title"] == "größe.avi")
    answer = client.get(f"{AT}/clips/{one['clip']}/preview?start_s=1&end_s=2")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    with av.open(io.BytesIO(answer.content)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert len(list(container.decode(video=0))) == 11
    for span in ("start_s=2&end_s=1", "start_s=-1&end_s=1", "start_s=nan&end_s=1", "start_s=0"):
        assert client.get(f"{AT}/clips/{one['clip']}/preview?{span}").status_code == 422


def test_an_example_finds_what_looks_like_it(client, bundle, library):
    with Retriever(bundle, library / "gallery", threads=1) as retriever:
        expected = retriever.search_embeddings(
            retriever.embed_example(library / "videos" / "1.mp4", at_s=2.0), 1
        )[0][0]
    with (library / "videos" / "1.mp4").open("rb") as file:
        answer = client.post(f"{AT}/like", files={"file": file}, data={"at_s": "2", "top": "1"})
    (one,) = answer.json()["moments"]
    assert one["clip"] == expected.row
    assert one["similarity"] == pytest.approx(1.0, abs=1e-5)
    picture = io.BytesIO()
    Image.new("RGB", (90, 60), "red").save(picture, "PNG")
    answer = client.post(f"{AT}/like", files={"file": ("x.png", picture.getvalue())})
    assert len(answer.json()["moments"]) > 0


@pytest.mark.parametrize("data", [b"", b"no video", b"\0" * 5000])
def test_an_upload_that_is_no_video_is_refused_without_a_path(client, data):
    answer = client.post(f"{AT}/like", files={"file": ("../../etc/passwd", data)})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("the upload ")
    assert "/tmp" not in answer.text


def test_a_video_that_was_changed_or_went_is_not_shown(bundle, tmp_path):
    video = write_video(tmp_path / "a.mp4", 30)
    with Retriever(bundle, tmp_path / "gallery", threads=1) as retriever:
        retriever.add_videos([video])
    with serve(bundle, tmp_path / "gallery") as client:
        (one,) = search(client)
        assert client.get(f"{AT}/videos/{one['video']}").status_code == 200
        (tmp_path / "secret").write_text("secret")
        video.unlink()
        assert client.get(f"{AT}/videos/{one['video']}").status_code == 410
        assert client.get(f"{AT}/clips/{one['clip']}/thumbnail").status_code == 410
        video.symlink_to(tmp_path / "secret")
        answer = client.get(f"{AT}/videos/{one['video']}")
        assert (answer.status_code, "secret" in answer.text) == (410, False)


def test_a_link_that_stands_in_for_the_very_same_file_is_not_followed(bundle, tmp_path):
    """Its size and time are those that were indexed: links may be made to point elsewhere later."""
    (tmp_path / "videos").mkdir()
    video = write_video(tmp_path / "videos" / "a.mp4", 30)
    with Retriever(bundle, tmp_path / "gallery", threads=1) as retriever:
        retriever.add_videos([video])
    with serve(bundle, tmp_path / "gallery") as client:
        video.rename(tmp_path / "b.mp4")
        video.symlink_to(tmp_path / "b.mp4")
        assert client.get(f"{AT}/videos/1").status_code == 410
        video.unlink()
        (tmp_path / "b.mp4").rename(video)
        assert client.get(f"{AT}/videos/1").status_code == 200
        (tmp_path / "videos").rename(tmp_path / "elsewhere")
        (tmp_path / "videos").symlink_to(tmp_path / "elsewhere")
        answer = client.get(f"{AT}/videos/1")
        assert answer.status_code == 410
        told = "the video is not there any more, or was changed; index it again"
        assert answer.json()["detail"] == told


def test_of_two_files_with_one_content_the_one_that_is_there_is_shown(bundle, tmp_path):
    first = write_video(tmp_path / "a.mp4", 30)
    shutil.copy(first, tmp_path / "b.mp4")
    with Retriever(bundle, tmp_path / "gallery", threads=1) as retriever:
        retriever.add_videos([first, tmp_path / "b.mp4"])
    with serve(bundle, tmp_path / "gallery") as client:
        first.unlink()
        assert client.get(f"{AT}/videos/1").status_code == 200


def test_no_more_pictures_or_previews_are_waited_for_than_are_allowed(bundle, library, monkeypatch):
    going, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_):
        going.release()
        assert go_on.wait(20)
        raise MediaError("enough")

    monkeypatch.setattr(app, "MOST_PICTURES", 2)
    monkeypatch.setattr(app, "MOST_PREVIEWS", 1)
    monkeypatch.setattr("dgl_runtime.serve.media.MediaMaker.picture", slow)
    monkeypatch.setattr("dgl_runtime.serve.media.MediaMaker.preview", slow)
    picture = f"{AT}/clips/0/thumbnail"
    preview = f"{AT}/clips/0/preview?start_s=0&end_s=1"
    with serve(bundle, library / "gallery") as client, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(client.get, path) for path in (picture, picture, preview)]
        for _ in range(3):
            assert going.acquire(timeout=20)
        for path, what in ((picture, "pictures"), (preview, "previews")):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            assert answer.json()["detail"] == f"too many {what} are waited for"
        go_on.set()
        answers = [one.result(20) for one in asked]
        assert [(one.status_code, one.json()["detail"]) for one in answers] == [(422, "enough")] * 3


def test_a_gallery_that_grows_is_followed(bundle, own_library, tmp_path, monkeypatch):
    monkeypatch.setattr("dgl_runtime.serve.app.REFRESH_S", 0.05)
    with serve(bundle, own_library) as client:
        (before,) = client.get("/api/galleries").json()
        video = write_video(tmp_path / "new.mp4", 50)
        with Retriever(bundle, own_library, threads=1) as retriever:
            retriever.add_videos([video])
        for _ in range(200):
            (after,) = client.get("/api/galleries").json()
            if after["clips"] == before["clips"] + 1:
                break
        assert after["videos"] == before["videos"] + 1
        assert "new.mp4" in {one["title"] for one in search(client, group="none")}
        assert (
            f'dgl_gallery_clips{{gallery="holiday"}} {after["clips"]}.0'
            in client.get("/metrics").text
        )


def test_metrics_count_what_was_answered(client):
    search(client)
    text = client.get("/metrics").text
    assert 'dgl_requests_total{route="/api/galleries/{name}/search",status="200"}' in text
    assert "dgl_batch_size_bucket" in text


def test_the_page_asks_nobody_else(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "http" not in page.text.replace("http-equiv", "")
    for asset in ("app.js", "style.css", "icon.svg"):
        answer = client.get(f"/assets/{asset}")
        assert answer.status_code == 200
        assert "//" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")

"""Pictures and previews: asked for by many at once, failing to start, and failing to be made."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from dgl_runtime.decoding.decode_process import DecodeProcess, LostWorkerError
from dgl_runtime.errors import MediaError
from dgl_runtime.serve import media
from dgl_runtime.serve.media import MediaMaker, video_type
from tests.helpers.odd_videos import write_video


@pytest.fixture
def maker():
    made = MediaMaker(2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("media") / "a.mp4", 30)


def test_what_many_ask_for_at_once_is_counted_once(maker, video, monkeypatch):
    size = len(maker.picture(video, "a", 0.0, 64))
    monkeypatch.setattr(media, "_PICTURE_BYTES", 3 * size)
    for second in (0.5, 1.0, 1.5, 2.0, 2.5):
        with ThreadPoolExecutor(4) as pool:
            pictures = list(pool.map(lambda at: maker.picture(video, "a", at, 64), [second] * 4))
        assert len(set(pictures)) == 1
    assert sum(map(len, maker._pictures.values())) == maker._bytes <= 3 * size
    with ThreadPoolExecutor(3) as pool:
        previews = list(pool.map(lambda _: maker.preview(video, "a", 0.0, 1.0), range(3)))
    assert len(set(previews)) == 1
    assert list(previews[0].parent.iterdir()) == [previews[0]]


def test_a_process_that_does_not_start_costs_one_request(maker, video, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            DecodeProcess, "start", lambda limits: (_ for _ in ()).throw(OSError("no room"))
        )
        for _ in range(3):
            with pytest.raises(OSError, match="no room"):
                maker.picture(video, "a", 0.0, 64)
    assert maker.picture(video, "a", 0.0, 64)


def test_a_process_killed_while_nobody_asks_is_replaced(video, started_decoders):
    maker = MediaMaker(1)
    assert maker.picture(video, "a", 0.0, 64)
    (first,) = started_decoders
    first.process.kill()
    first.process.wait()
    assert maker.picture(video, "a", 1.0, 64)
    assert len(started_decoders) == 2
    assert first.line.closed
    maker.close()


def test_what_could_not_be_made_is_not_tried_again_at_once(maker, tmp_path, monkeypatch):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"no video")
    with pytest.raises(MediaError, match="is not a video"):
        maker.picture(video, "a", 0.0, 64)
    write_video(video, 30)
    with pytest.raises(MediaError, match="is not a video"):
        maker.picture(video, "a", 0.0, 64)
    monkeypatch.setattr(media, "_FORGIVE_S", 0.0)
    assert maker.picture(video, "a", 0.0, 64)


def test_a_picture_is_of_its_content_its_second_and_its_size(maker, video, tmp_path):
    other = write_video(tmp_path / "b.mp4", 30, size=(48, 64))
    asked = [
        (video, "a", 0.0, 64),
        (video, "a", 1.0, 64),
        (video, "a", 1.0, 48),
        (other, "b", 1.0, 48),
    ]
    first = [maker.picture(*one) for one in asked]
    assert len(set(first)) == 4
    assert [maker.picture(*one) for one in asked] == first
    assert [max(Image.open(io.BytesIO(one)).size) for one in first] == [64, 64, 48, 48]


def test_pictures_and_previews_are_kept(maker, video, started_decoders):
    picture, preview = maker.picture(video, "a", 0.0, 64), maker.preview(video, "a", 0.0, 1.0)
    for process in started_decoders:
        process.process.kill()
    assert maker.picture(video, "a", 0.0, 64) == picture
    assert maker.preview(video, "a", 0.0, 1.0) == preview
    assert len(started_decoders) == 2


def test_the_pictures_asked_for_last_are_those_kept(maker, video, monkeypatch):
    sizes = [len(maker.picture(video, "a", second, 64)) for second in (0.0, 0.5)]
    monkeypatch.setattr(media, "_PICTURE_BYTES", sum(sizes) + 50)
    maker.picture(video, "a", 0.0, 64)  # now the other one is the oldest
    maker.picture(video, "a", 1.0, 64)
    assert [key[1] for key in maker._pictures] == [0.0, 1.0]
    assert maker._bytes == sum(map(len, maker._pictures.values()))


def test_pictures_that_just_fit_are_all_kept(maker, video, monkeypatch):
    sizes = [len(maker.picture(video, "a", second, 64)) for second in (0.0, 0.5)]
    monkeypatch.setattr(media, "_PICTURE_BYTES", sum(sizes))
    for second in (0.0, 0.5):  # of a copy
        maker.picture(video, "b", second, 64)
    assert [key[0] for key in maker._pictures] == ["b", "b"]


def test_a_preview_is_of_its_content_and_its_span(maker, video, tmp_path, monkeypatch):
    monkeypatch.setattr(media, "_PREVIEWS_KEPT", 3)
    other = write_video(tmp_path / "b.mp4", 30)
    spans = [(video, "a", 0.0, 1.0), (video, "a", 0.0, 2.0), (video, "a", 0.5, 2.0)]
    made = [maker.preview(*one) for one in spans]
    assert len(set(made)) == 3
    assert maker.preview(*spans[0]) == made[0]  # asked for last
    made.append(maker.preview(other, "b", 0.5, 2.0))
    assert [one.exists() for one in made] == [True, False, True, True]
    assert all(one.suffix == ".mp4" for one in made)
    made[0].unlink()
    again = maker.preview(*spans[0])
    assert again.exists()
    assert again != made[0]


def test_a_preview_that_somebody_removed_is_dropped_like_any(maker, video, monkeypatch):
    monkeypatch.setattr(media, "_PREVIEWS_KEPT", 1)
    maker.preview(video, "a", 0.0, 1.0).unlink()
    assert maker.preview(video, "a", 0.0, 2.0).exists()
    assert len(maker._previews) == 1


def test_what_is_kept_when_nothing_else_is_said():
    assert (media._PICTURE_BYTES, media._PREVIEWS_KEPT) == (64 * 2**20, 64)
    assert (media._FORGIVE_S, media._FAILURES_KEPT) == (60.0, 1000)


def test_a_preview_that_cannot_be_made_leaves_nothing(tmp_path):
    maker = MediaMaker(1)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for _ in range(2):
        with pytest.raises(MediaError, match="is not a video"):
            maker.preview(tmp_path / "a.mp4", "a", 0.0, 1.0)
    folder = Path(maker._folder.name)
    assert list(folder.iterdir()) == []
    maker.close()
    assert not folder.exists()


def test_failures_are_forgiven_after_a_while_and_few_are_kept(maker, tmp_path, monkeypatch):
    now_s = 1000.0
    monkeypatch.setattr(media.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(media, "_FAILURES_KEPT", 2)
    asked = []

    def make(job):
        asked.append(job["picture"]["second"])
        raise MediaError("no")

    monkeypatch.setattr(maker._pictures_by, "make", make)

    def ask(second):
        with pytest.raises(MediaError, match="no"):
            maker.picture(tmp_path / "a.mp4", "a", second, 64)

    ask(1.0)
    now_s += 59.9
    ask(1.0)
    assert asked == [1.0]
    now_s += 0.1
    ask(1.0)
    assert asked == [1.0, 1.0]
    for second in (2.0, 3.0, 2.0, 3.0, 1.0):
        ask(second)
    assert asked == [1.0, 1.0, 2.0, 3.0, 1.0]
    monkeypatch.setattr(maker._pictures_by, "make", lambda job: None)
    with pytest.raises(MediaError, match=r"a\.mp4 gave no picture"):
        maker.picture(tmp_path / "a.mp4", "a", 9.0, 64)


def test_a_lost_process_is_said_and_replaced(video, started_decoders):
    maker = MediaMaker(1)
    maker.picture(video, "a", 0.0, 64)
    real, lost = started_decoders[0], LostWorkerError("took more than 30 s without any progress")
    real.make = lambda job: (_ for _ in ()).throw(lost)
    with pytest.raises(MediaError, match="the video took more than 30 s without any progress"):
        maker.picture(video, "a", 1.0, 64)
    assert real.process.poll() is not None
    assert maker.picture(video, "a", 2.0, 64)
    assert len(started_decoders) == 2
    maker.close()


def test_as_many_processes_as_jobs_and_one_for_previews(video, started_decoders):
    maker = MediaMaker(2)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: maker.picture(video, "a", n / 10, 64), range(12)))
        list(pool.map(lambda n: maker.preview(video, "a", 0.0, 1 + n / 10), range(3)))
    assert len(started_decoders) <= 3
    limits = [(one.limits.most_bytes, one.limits.silent_s) for one in started_decoders]
    assert set(limits) == {(4 * 2**30, 30.0)}
    maker.close()
    assert all(one.process.poll() is not None for one in started_decoders)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mp4", "video/mp4"),
        ("a.M4V", "video/mp4"),
        ("a.mov", "video/mp4"),
        ("a.webm", "video/webm"),
        ("a.mkv", "video/x-matroska"),
        ("a.ogv", "video/ogg"),
        ("a.avi", "video/x-msvideo"),
        ("a.mpg", "video/mpeg"),
        ("a.mpeg", "video/mpeg"),
        ("a.html", "application/octet-stream"),
        ("a", "application/octet-stream"),
    ],
)
def test_only_videos_are_told_to_be_more_than_bytes(name, kind):
    assert video_type(Path(name)) == kind

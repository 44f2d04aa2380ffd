"""Pictures and previews: asked for by many at once, failing to start, and failing to be made."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from dgl_runtime.decode_process import DecodeProcess
from dgl_runtime.errors import MediaError
from dgl_runtime.serve import media
from dgl_runtime.serve.media import MediaMaker
from tests.runtime.odd_videos import write_video


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


def test_a_process_killed_while_nobody_asks_is_replaced(maker, video, started_decoders):
    assert maker.picture(video, "a", 0.0, 64)
    (first,) = started_decoders
    first.process.kill()
    first.process.wait()
    assert maker.picture(video, "a", 1.0, 64)
    assert len(started_decoders) == 2


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

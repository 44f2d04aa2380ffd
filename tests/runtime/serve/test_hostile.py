"""Uploads that are made to do harm: the service answers, refuses, and serves the next one as before."""

import io
import os
import signal
import struct
import threading
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from dgl_runtime.decoding.decode_process import Limits
from tests.helpers.described_client import serve
from tests.helpers.odd_videos import write_video

pytestmark = pytest.mark.slow

AT = "/api/galleries/holiday"


def upload(client, data, name="x"):
    return client.post(f"{AT}/like", files={"file": (name, data)})


def a_picture():
    made = io.BytesIO()
    Image.new("RGB", (90, 60), "red").save(made, "PNG")
    return made.getvalue()


def assert_it_goes_on(client):
    assert client.get("/health").status_code == 200
    assert client.post(f"{AT}/search", json={"query": "a dog"}).json()["moments"]
    assert upload(client, a_picture()).json()["moments"]


def png_bomb(side):
    """A black picture of ``side`` x ``side`` pixels, a thousandth of its size when packed."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_a_picture_that_unpacks_to_more_than_is_allowed_is_refused(client, monkeypatch):
    """16,000 x 16,000 pixels are 770 MB as RGB; here that is too much."""
    monkeypatch.setattr("dgl_runtime.serve.app._UPLOAD_LIMITS", Limits(700 * 2**20, 20.0))
    bomb = png_bomb(16_000)
    assert len(bomb) < 2 * 2**20
    answer = upload(client, bomb, "bomb.png")
    assert answer.status_code == 422
    assert "memory" in answer.json()["detail"].lower()
    assert upload(client, png_bomb(1000), "picture.png").status_code == 200
    assert_it_goes_on(client)


def test_a_video_of_huge_pictures_is_refused(client, tmp_path, monkeypatch):
    """8,000 x 8,000 pixels are 192 MB as RGB and more on the way; here that is too much."""
    monkeypatch.setattr("dgl_runtime.serve.app._UPLOAD_LIMITS", Limits(700 * 2**20, 20.0))
    video = write_video(tmp_path / "huge.mp4", 2, size=(8000, 8000))
    assert video.stat().st_size < 4 * 2**20
    answer = upload(client, video.read_bytes())
    assert answer.status_code == 422
    assert_it_goes_on(client)


@pytest.fixture
def decoders(started_decoders, monkeypatch):
    """The processes that decode, as they are started; uploads have little time."""
    monkeypatch.setattr("dgl_runtime.serve.app._UPLOAD_LIMITS", Limits(2**31, 2.0))
    return started_decoders


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (signal.SIGSTOP, "took more than 2 s without any progress"),
        (signal.SIGSEGV, "crashed the decoder (SIGSEGV)"),
    ],
)
def test_a_video_that_hangs_or_crashes_the_decoder_costs_nothing_else(client, decoders, how, said):
    def strike():
        while not decoders:
            time.sleep(0.005)
        os.kill(decoders[0].process.pid, how)

    striking = threading.Thread(target=strike)
    striking.start()
    answer = upload(client, a_picture())
    striking.join()
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert decoders[0].process.poll() is not None
    assert_it_goes_on(client)


def test_a_picture_that_hangs_is_given_up_and_the_next_is_made(
    bundle, library, started_decoders, monkeypatch
):
    monkeypatch.setattr("dgl_runtime.serve.media._LIMITS", Limits(2**32, 2.0))
    picture = f"{AT}/clips/0/thumbnail"
    with serve(bundle, library / "gallery", media_jobs=1) as client:
        assert client.get(f"{picture}?side=32").status_code == 200
        os.kill(started_decoders[0].process.pid, signal.SIGSTOP)
        answer = client.get(picture)
        assert answer.status_code == 422
        assert "took more than 2 s without any progress" in answer.json()["detail"]
        assert started_decoders[0].process.poll() is not None
        assert client.get(f"{picture}?side=64").status_code == 200


def playlists(video):
    return {
        "concat": f"ffconcat version 1.0\nfile {video.name}\n",
        "concat, absolute": f"ffconcat version 1.0\nfile '{video}'\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{video}\n#EXT-X-ENDLIST\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{video}"/></svg>',
    }


@pytest.mark.parametrize("kind", playlists(Path("x")))
@pytest.mark.parametrize("name", ["x.mp4", "x.m3u8", "x.ffconcat", "x.sdp"])
def test_a_playlist_opens_no_other_file(client, library, kind, name):
    data = playlists(library / "videos" / "0.mp4")[kind].encode()
    answer = upload(client, data, name)
    assert answer.status_code == 422
    assert "is not a video or is damaged" in answer.json()["detail"]

"""What a container and its packets are asked, and how a fault of theirs is told."""

import shutil
import subprocess

import numpy as np
import pytest

from dgl_runtime.media.container import one_line
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.packet_pass import first_decoded, read_others
from tests.helpers.odd_videos import blank_first_packet, replace_bytes, write_video


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (OSError(13, "Permission denied", "film.mp4"), "Permission denied"),
        (ValueError("first\n  second"), "first second"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_fault_is_told_on_one_line(fault, text):
    assert one_line(fault) == text


def test_a_film_alone_has_nothing_beside_it(tmp_path):
    heard_s, ends_s = read_others(write_video(tmp_path / "film.mkv", 3))
    assert (heard_s.tolist(), ends_s) == ([], 0.0)


def test_sound_is_heard_from_packet_to_packet(tmp_path):
    path = write_video(tmp_path / "film.mp4", 20, audio_packets=[b"junk" * 9] * 5)
    heard_s, ends_s = read_others(path)
    np.testing.assert_allclose(heard_s, np.arange(5) * 0.064)
    assert ends_s == pytest.approx(0.32)
    heard_s, ends_s = read_others(replace_bytes(path, b"mp4a", b"zzzz"))  # in an unknown codec
    assert ends_s == pytest.approx(0.32)


def test_text_ends_where_it_goes_and_is_not_heard(tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    words = tmp_path / "words.srt"
    words.write_text("1\n00:00:40,000 --> 00:00:49,000\nyes\n")
    path = tmp_path / "film.mkv"
    film = write_video(tmp_path / "film.mp4", 20)
    made = ["-i", film, "-i", words, "-c:v", "copy", "-c:s", "srt", path]
    subprocess.run(["ffmpeg", "-v", "error", *made], check=True)
    heard_s, ends_s = read_others(path)
    assert (heard_s.tolist(), ends_s) == ([], 49.0)


def test_the_first_picture_that_decodes_is_found(tmp_path):
    path = write_video(tmp_path / "film.mp4", 20, codec="libx264", gop=1)
    assert first_decoded(path, 0) == 0
    assert first_decoded(blank_first_packet(path), 0) == read_index(path).times[1]

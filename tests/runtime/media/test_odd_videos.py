"""Odd and broken video files: what must be read, and what must be refused in one line."""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from dgl_runtime.errors import MediaError
from dgl_runtime.media.video import (
    Span,
    cut_windows,
    probe,
    read_clips,
)
from tests.helpers.odd_videos import (
    damage,
    numbers_of,
    replace_bytes,
    truncate,
    write_audio,
    write_video,
)
from tests.helpers.specs import frame_spec

SIZE = 32
# name of the file, how it is written; together: B-frames, no B-frames, seek by pts, by dts, none.


def read_numbers(path: Path, *spans: Span, num_frames: int = 10) -> list[list[int]]:
    return [numbers_of(clip) for clip in read_clips(path, spans, frame_spec(num_frames, SIZE))]


def whole(path: Path) -> Span:
    return Span(0.0, probe(path).duration_s)


def test_metadata_need_not_be_utf_8(tmp_path):
    path = write_video(tmp_path / "latin.avi", metadata={"title": "XXXXXXXX"})
    replace_bytes(path, b"XXXXXXXX", bytes(range(0xF8, 0x100)))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert read_numbers(path, Span(0, 2), num_frames=2) == [[5, 15]]


@pytest.mark.parametrize("audio_first", [True, False])
@pytest.mark.parametrize("name", [b"mp4a", b"zzzz"])
def test_a_broken_or_unknown_other_stream_is_never_decoded(tmp_path, audio_first, name):
    path = write_video(
        tmp_path / "two.mp4", audio_packets=[b"junk" * 9] * 5, audio_first=audio_first
    )
    replace_bytes(path, b"mp4a", name)
    assert read_numbers(path, Span(0, 2), num_frames=2) == [[5, 15]]


def test_packets_of_no_bytes_do_not_end_the_stream(tmp_path):
    # The avi writer fills a gap of time with empty chunks, which a decoder takes for the end.
    path = write_video(tmp_path / "gap.avi", 10, pts=[0, 1, 2, 3, 4, 15, 16, 17, 18, 19])
    assert read_numbers(path, Span(0, 2), num_frames=4) == [[2, 4, 4, 7]]


def test_names_that_look_like_protocols_or_patterns(tmp_path):
    path = write_video(tmp_path / "a:b %03d ü?.mp4")
    assert probe(path).num_frames == 20


def test_a_truncated_file_is_as_long_as_what_is_left(tmp_path):
    path = write_video(tmp_path / "cut.mkv", 100)
    full_s = probe(path).duration_s
    truncate(path, 0.6)
    left_s = probe(path).duration_s
    assert 0.3 * full_s < left_s < 0.8 * full_s
    (numbers,) = read_numbers(path, Span(0, left_s))
    assert numbers == sorted(numbers)
    assert numbers[-1] > 10 * left_s - 10


def test_a_short_loss_harms_only_the_frames_around_it(tmp_path):
    path = write_video(tmp_path / "loss.mp4", 100, codec="libx264", gop=5)
    damage(path, 0.5, 0.52)
    (numbers,) = read_numbers(path, whole(path), num_frames=50)
    assert len(numbers) == 50
    assert numbers[:18] + numbers[-18:] == [*range(1, 36, 2), *range(65, 100, 2)]


def message_for(path: Path) -> str:
    messages = set()
    for read in (probe, lambda path: list(read_clips(path, [Span(0, 1e9)], frame_spec(20, SIZE)))):
        with pytest.raises(MediaError) as fault:
            read(path)
        messages.add(str(fault.value).replace(str(path), "FILE"))
    (message,) = messages
    assert "\n" not in message
    return message


def test_a_missing_file(tmp_path):
    assert message_for(tmp_path / "no.mp4") == "FILE does not exist. Check the path."


def test_a_folder(tmp_path):
    expected = "FILE is a folder, expected a video file. Name a file inside it."
    assert message_for(tmp_path) == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "is a device or a pipe, expected a video file" in message_for(tmp_path / "pipe.mp4")


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.mp4").touch()
    assert "is empty (0 bytes), expected a video" in message_for(tmp_path / "empty.mp4")


def test_a_name_no_file_can_have(tmp_path):
    assert "cannot be read (File name too long)" in message_for(tmp_path / ("x" * 500))


def test_a_file_without_permission(tmp_path, monkeypatch):
    path = write_video(tmp_path / "closed.mp4")

    def refuse(self, *args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    expected = "FILE may not be read (Permission denied). Change its permissions."
    assert message_for(path) == expected


@pytest.mark.parametrize(
    "content", [b"This is text.\n" * 500, np.random.default_rng(0).bytes(5000), b"\0" * 5000, b"x"]
)
def test_something_else_named_mp4(tmp_path, content):
    (tmp_path / "other.mp4").write_bytes(content)
    assert "FILE is not a video or is damaged (" in message_for(tmp_path / "other.mp4")


def test_an_mp4_truncated_before_its_table(tmp_path):
    path = truncate(write_video(tmp_path / "cut.mp4", 100, gop=1), 0.5)
    assert "FILE is not a video or is damaged (" in message_for(path)


def test_pictures_in_an_unknown_codec(tmp_path):
    path = write_video(tmp_path / "odd.mp4", codec="libx264")
    replace_bytes(path, b"avc1", b"zzzz")
    assert "has pictures in a codec that PyAV cannot decode" in message_for(path)


@pytest.mark.parametrize(
    ("name", "codec", "cover", "found"),
    [
        ("sound.mp3", "libmp3lame", False, "audio"),
        ("sound.m4a", "aac", False, "audio"),
        ("album.mp3", "libmp3lame", True, "audio, cover picture"),
    ],
)
def test_sound_without_pictures(tmp_path, name, codec, cover, found):
    path = write_audio(tmp_path / name, codec, cover=cover)
    assert f"has no picture stream, only: {found}. " in message_for(path)


def test_frames_that_all_fail_to_decode(tmp_path):
    path = damage(write_video(tmp_path / "noise.mkv", 40, codec="libx264"), 0.2, 0.9)
    assert "cannot be decoded at second 0.00 (" in message_for(path)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_loss_in_the_middle_names_the_second(tmp_path, threads):
    path = write_video(tmp_path / "hole.mp4", 100, codec="libx264", gop=10)
    damage(path, 0.3, 0.6)
    clips = read_clips(path, cut_windows(10.0, 1.0, 1.0), frame_spec(5, SIZE), threads=threads)
    assert numbers_of(next(clips)) == [1, 3, 5, 7, 9]
    with pytest.raises(MediaError, match=r"cannot be decoded at second [2-6]\.\d\d \(Invalid data"):
        list(clips)


def test_frames_before_a_loss_come_before_its_error_however_many_threads(tmp_path):
    path = write_video(tmp_path / "tail.mp4", 100, codec="libx264", gop=400)
    damage(path, 0.3, 0.6)
    outcomes = []
    for threads in (1, 2):
        clips = read_clips(path, cut_windows(10.0, 0.5, 0.5), frame_spec(5, SIZE), threads=threads)
        read = []
        with pytest.raises(MediaError) as fault:
            read.extend(numbers_of(clip) for clip in clips)
        outcomes.append((read, str(fault.value)))
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][0]) > 2


def test_a_file_that_changes_is_read_again(tmp_path):
    path = write_video(tmp_path / "a.mp4", 20)
    assert probe(path).num_frames == 20
    write_video(path, 30)
    assert probe(path).num_frames == 30

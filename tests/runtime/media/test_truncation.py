"""One rule for files that end early, and for what lies where no reader comes."""

import struct
from dataclasses import replace
from fractions import Fraction

import av
import pytest

from dgl_runtime.media import truncation
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.packet_pass import read_pass
from tests.helpers.odd_videos import ffmpeg, truncate, write_video
from tests.helpers.random_media import Recipe, make

STARTS = "ends after"


@pytest.mark.parametrize(("container", "codec"), [("mkv", "libx264"), ("webm", "libvpx")])
def test_sound_may_outlast_the_pictures(tmp_path, container, codec):
    recipe = Recipe(container, codec, Fraction(10), 20, sound_s=9.0)
    path = make(tmp_path / f"sound.{container}", recipe)
    index = read_index(path)
    assert index.duration_s == pytest.approx(2.0, abs=0.01)
    assert index.missing is None
    assert read_index(truncate(path, 0.8)).missing.startswith(STARTS)


def test_what_a_container_states_of_all_streams_is_not_said_of_the_pictures(tmp_path):
    sound = [b"junk" * 9] * 140
    path = write_video(
        tmp_path / "film.wmv", 20, codec="wmv2", container="asf", audio_packets=sound
    )
    assert read_index(path).missing is None


def test_what_a_container_states_of_the_pictures_alone_is(tmp_path):
    path = make(tmp_path / "film.avi", Recipe("avi", "mpeg4", Fraction(10), 20, sound_s=9.0))
    assert read_index(path).missing is None
    content = bytearray(path.read_bytes())
    place = content.index(b"strh") + 8 + 32  # how many pictures there are
    assert content[place : place + 4] == struct.pack("<I", 20)
    content[place : place + 4] = struct.pack("<I", 60)
    path.write_bytes(content)
    assert read_index(path).missing.startswith("ends after 2.0 s of the 6.0 s it states")


def test_subtitles_may_outlast_the_pictures(tmp_path):
    film = write_video(tmp_path / "film.mp4", 20, codec="libx264")
    words = tmp_path / "words.srt"
    words.write_text(
        "1\n00:00:01,000 --> 00:00:02,000\nyes\n\n2\n00:00:40,000 --> 00:00:41,000\nno\n"
    )
    path = tmp_path / "film.mkv"
    ffmpeg("-i", film, "-i", words, "-map", "0:v", "-map", "1", "-c:v", "copy", "-c:s", "srt", path)
    assert read_index(path).missing is None


@pytest.mark.parametrize("name", ["cut.mkv", "cut.avi", "cut.webm", "cut.flv"])
def test_a_file_that_is_cut_off_says_how_much_is_missing(tmp_path, name):
    codec = {"cut.webm": "libvpx", "cut.flv": "flv1"}.get(name, "mpeg4")
    path = write_video(tmp_path / name, 100, codec=codec)
    assert read_index(path).missing is None
    missing = read_index(truncate(path, 0.6)).missing
    assert missing.startswith(STARTS)
    stated = (
        "6.0" if name.endswith("avi") else "10.0"
    )  # an avi without its index is as long as its bytes
    assert missing.endswith(
        f"of the {stated} s it states: the rest is missing, or its header is wrong. "
        "Copy or download it again."
    )


@pytest.mark.parametrize(
    ("every", "lost_s", "is_missing"),
    [(1, 0.4, False), (1, 0.6, True), (30, 1.1, False), (30, 1.3, True)],
)
def test_half_a_second_or_a_fiftieth_may_be_missing_because_headers_round(
    tmp_path, every, lost_s, is_missing
):
    pts = range(0, 20 * every, every)
    path = write_video(tmp_path / "film.mkv", 20, codec="libx264", gop=1, pts=pts)
    content = path.read_bytes()
    # The duration of a Matroska file is a float in its header: element 0x4489, 8 bytes.
    place = content.index(b"\x44\x89\x88") + 3
    longer = struct.pack(">d", 1000 * (read_index(path).end_s + lost_s))
    path.write_bytes(content[:place] + longer + content[place + 8 :])
    assert (read_index(path).missing is not None) == is_missing


def test_the_last_picture_counts_for_as_long_as_it_is_shown(tmp_path):
    path = make(tmp_path / "slides.mkv", Recipe("mkv", "libx264", Fraction(1, 2), 5))
    assert read_index(path).duration_s == pytest.approx(10.0, abs=0.01)
    assert read_index(path).missing is None


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("mov", "mjpeg"), ("flv", "libx264"), ("wmv", "wmv2"), ("avi", "mpeg4")],
)
def test_a_second_recording_that_no_reader_reaches_is_named(tmp_path, container, codec):
    # Where sound outlasts the pictures, an avi is read by its index, which knows the first part alone.
    recipe = Recipe(container, codec, Fraction(25), 30, sound_s=4.0 if container == "avi" else 0.0)
    path = tmp_path / f"film.{container}"
    assert read_index(make(path, recipe)).missing is None
    content = path.read_bytes()
    path.write_bytes(2 * content)
    missing = read_index(path).missing
    assert "another recording follows, which no player reaches" in missing
    assert f"of its {2 * len(content)} bytes" in missing
    if container in ("mp4", "mov"):  # its pictures come last
        assert f"which are {len(content)} of" in missing


def test_a_second_avi_that_is_read_in_part_is_named(tmp_path):
    recipe = Recipe("avi", "mpeg4", Fraction(30000, 1001), 14, first=57, gop=6, sound_s=2.48)
    path = make(tmp_path / "film.avi", recipe)
    assert read_index(path).missing is None
    content = path.read_bytes()
    path.write_bytes(2 * content)
    index = read_index(path)
    assert 14 < len(index.shown) < 28
    assert index.missing.startswith(
        f"holds another recording, at byte {len(content)} of {2 * len(content)}, "
    )


def test_a_later_part_of_an_avi_is_no_second_recording(tmp_path):
    """Those of a large one lie behind what its beginning states."""
    path = make(tmp_path / "film.avi", Recipe("avi", "mpeg4", Fraction(25), 30))
    content = bytearray(path.read_bytes())
    content[4:8] = (len(content) // 2).to_bytes(4, "little")
    path.write_bytes(content)
    index = read_index(path)
    assert (len(index.shown), index.missing) == (30, None)


def test_joined_fragmented_recordings_of_which_players_show_a_part_are_named(tmp_path):
    made = make(tmp_path / "film.mp4", Recipe("mp4", "libx264", Fraction(10), 40, gop=10))
    path = tmp_path / "fragments.mp4"
    ffmpeg("-i", made, "-c", "copy", "-movflags", "frag_keyframe+empty_moov", path)
    assert read_index(path).missing is None
    path.write_bytes(2 * path.read_bytes())
    assert "another recording" in read_index(path).missing


@pytest.mark.parametrize("container", ["ts", "mpg"])
def test_a_recording_of_another_format_that_follows_is_named(tmp_path, container):
    recipe = Recipe(container, "mpeg2video", Fraction(25), 100)
    stream = make(tmp_path / f"film.{container}", recipe).read_bytes()
    path = make(tmp_path / "film.mp4", Recipe("mp4", "libx264", Fraction(10), 20))
    path.write_bytes(path.read_bytes() + stream)
    assert "another recording follows, which no player reaches" in read_index(path).missing


@pytest.mark.parametrize(("container", "codec"), [("avi", "mpeg4"), ("wmv", "wmv2")])
def test_half_a_file_that_states_its_bytes_is_named(tmp_path, container, codec):
    path = make(
        tmp_path / f"film.{container}", Recipe(container, codec, Fraction(25), 200, sound_s=8.0)
    )
    assert read_index(path).missing is None
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half])
    said = read_index(path).missing
    assert said.startswith("ends after ")
    if "s it states" not in said:
        assert f"of the {len(content)} bytes it states {half} are there" in said


@pytest.mark.parametrize(("container", "codec"), [("ts", "libx264"), ("mpg", "mpeg2video")])
def test_zeros_in_place_of_the_second_half_are_named(tmp_path, container, codec):
    path = make(
        tmp_path / f"film.{container}", Recipe(container, codec, Fraction(25), 100, sound_s=9.0)
    )
    content = path.read_bytes()
    assert read_index(path).missing is None  # the sound goes on
    path.write_bytes(content[: len(content) // 3].ljust(len(content), b"\0"))
    assert "no picture and no sound follows" in read_index(path).missing


@pytest.mark.parametrize(
    ("tail", "size", "is_empty"),
    [
        (2**15, 2**16, False),
        (2**15 + 1, 2**16, True),
        (10**6, 10**7, False),
        (10**6 + 1, 10**7, True),
    ],
)
def test_a_tenth_of_a_file_and_32_kib_may_be_stuffing(tail, size, is_empty):
    assert truncation._is_empty(tail, size) == is_empty


@pytest.mark.parametrize(("left", "is_named"), [(0.015, False), (0.03, True)])
def test_a_fiftieth_of_a_file_may_be_left_unread(tmp_path, left, is_named):
    read = read_pass(make(tmp_path / "film.ts", Recipe("ts", "mpeg2video", Fraction(25), 10)))
    read.packets.end = round((1 - left) * read.path.stat().st_size)
    read.end.fault = "it broke off"
    said = truncation.what_is_missing(read, 0.4, 0.4, has_jumps=False)
    assert (said is not None and "(it broke off)" in said) == is_named


def test_a_box_that_says_nothing_is_no_loss(tmp_path):
    path = make(tmp_path / "film.mp4", Recipe("mp4", "libx264", Fraction(25), 10))
    path.write_bytes(path.read_bytes() + (2**17).to_bytes(4) + b"free" + bytes(2**17 - 8))
    assert read_index(path).missing is None


def test_where_the_clock_jumps_what_a_file_states_of_its_duration_says_nothing(tmp_path):
    read = read_pass(make(tmp_path / "film.ts", Recipe("ts", "mpeg2video", Fraction(25), 10)))
    read = replace(read, stated_s=3600.0)
    assert truncation.what_is_missing(read, 0.4, 0.4, has_jumps=True) is None
    said = truncation.what_is_missing(read, 0.4, 0.4, has_jumps=False)
    assert said.startswith("ends after 0.4 s of the 3600.0 s it states")


def test_a_stream_that_is_scrambled_from_its_middle_on_is_named(tmp_path):
    path = make(
        tmp_path / "film.ts", Recipe("ts", "libx264", Fraction(25), 100, gop=10, sound_s=4.0)
    )
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as opened:
        pictures = opened.streams.video[0].id
    for at in range(len(content) // 376 * 188, len(content), 188):
        if int.from_bytes(content[at + 1 : at + 3], "big") & 0x1FFF == pictures:
            content[at + 3] |= 0x80
            content[at + 4 : at + 188] = bytes(byte ^ 0x5A for byte in content[at + 4 : at + 188])
    path.write_bytes(content)
    index = read_index(path)
    assert index.end_s < 3
    assert "reading it stops there (what follows is encrypted)" in index.missing


def test_the_later_parts_of_a_large_avi_are_its_own(tmp_path):
    path = make(tmp_path / "film.avi", Recipe("avi", "mpeg4", Fraction(10), 20))
    path.write_bytes(path.read_bytes() + b"RIFF\4\0\0\0AVIX")
    assert read_index(path).missing is None


def on_other_streams(folder):
    """Two transport streams of the same film, which share no stream's number."""
    parts = [folder / "a.ts", folder / "b.ts"]
    film = write_video(folder / "film.mp4", 40, codec="libx264")
    for part, first in zip(parts, (256, 512), strict=True):
        numbers = ["-mpegts_start_pid", first, "-mpegts_pmt_start_pid", first + 2048]
        ffmpeg("-i", film, "-c", "copy", *numbers, part)
    return [part.read_bytes() for part in parts]


def test_a_recording_on_other_streams_is_named(tmp_path):
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(on_other_streams(tmp_path)))
    index = read_index(path)
    assert "streams follow that its beginning does not announce" in index.missing
    assert len(index.times) == 40


def test_a_fault_that_ends_the_reading_is_named(tmp_path):
    film = write_video(tmp_path / "film.mp4", 40, codec="libx264")
    parts = [tmp_path / "a.ogv", tmp_path / "b.ogv"]
    for part in parts:  # with streams of other numbers
        sound = ("-f", "lavfi", "-i", "sine=d=4")
        ffmpeg("-i", film, *sound, "-c:v", "libtheora", "-c:a", "libvorbis", part)
    path = tmp_path / "joined.ogv"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert "reading it stops there" in read_index(path).missing


@pytest.mark.parametrize("block", [20, 23, 1000])
def test_a_second_recording_is_found_wherever_a_block_ends(tmp_path, monkeypatch, block):
    path = make(tmp_path / "film.mp4", Recipe("mp4", "libx264", Fraction(25), 30))
    monkeypatch.setattr(truncation, "_BLOCK", block)
    for before in range(8):
        path.write_bytes(path.read_bytes() + bytes(before))
        length = path.stat().st_size
        path.write_bytes(2 * path.read_bytes())
        assert "another recording follows" in read_index(path).missing
        path.write_bytes(path.read_bytes()[: length - before])


def test_tables_behind_the_pictures_are_no_recording(tmp_path):
    path = write_video(tmp_path / "film.mp4", 3, codec="mpeg4")
    path.write_bytes(path.read_bytes() + b"\0\0\x10\0free" + bytes(4088))
    assert read_index(path).missing is None

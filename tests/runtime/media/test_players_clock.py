"""Times are those of a player: pictures that come late, that stay for long, that cannot be shown at first."""

import re
from fractions import Fraction

import av
import numpy as np
import pytest

from dgl_runtime import Retriever
from dgl_runtime.errors import MediaError
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.preview import picture, write_preview
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.media.video import Span, probe, read_clips
from tests.helpers.odd_videos import (
    number_of,
    numbered_picture,
    numbers_of,
    replace_bytes,
    write_video,
)
from tests.helpers.random_media import Recipe, make
from tests.helpers.specs import frame_spec

LATE = {"mkv": "libx264", "webm": "libvpx", "ts": "libx264", "mov": "libx264"}


def nothing():
    """No sign of life."""


def late(folder, container):
    """Four seconds of pictures that begin 5 s after the sound, which lasts for 9."""
    recipe = Recipe(container, LATE[container], Fraction(10), 40, late_s=5.0, sound_s=9.0)
    return make(folder / f"late.{container}", recipe)


def numbers(path, *spans, num_frames=2):
    clips = read_clips(path, spans, frame_spec(num_frames, 64))
    return [numbers_of(clip[:, :, 24:]) for clip in clips]


@pytest.mark.parametrize("container", LATE)
def test_pictures_that_begin_after_the_sound_have_a_players_times(tmp_path, container):
    path = late(tmp_path, container)
    info = probe(path)
    assert info.start_s == pytest.approx(5.0, abs=0.1)
    assert info.duration_s == pytest.approx(4.0, abs=0.01)
    end_s, spans = Segmentation(2.0).spans(path, nothing)
    assert [span.start_s for span in spans] == pytest.approx([5.0, 7.0], abs=0.1)
    assert end_s == spans[-1].end_s == pytest.approx(9.0, abs=0.1)
    assert numbers(path, *spans) == [[5, 15], [25, 35]]
    begin_s = info.start_s
    assert numbers(path, Span(begin_s + 1, begin_s + 2)) == [[12, 17]]
    assert numbers(path, Span(0.0, np.inf)) == [[10, 30]]


def test_where_ffmpeg_does_not_say_when_a_file_begins_its_sound_does(tmp_path):
    """It looks at the first packets, and here they are pictures alone."""
    rare = Recipe("mkv", "libx264", Fraction(1, 2), 34, gop=18, late_s=4.0, sound_s=9.0)
    path = make(tmp_path / "rare.mkv", rare)
    with av.open(str(path)) as opened:
        assert opened.start_time is None
    assert probe(path).start_s == 4.0


@pytest.mark.parametrize("second", [0.0, 3.0, 5.0])
def test_until_the_first_picture_a_player_waits_for_it(tmp_path, second):
    path = late(tmp_path, "mkv")
    _, (span,) = Segmentation(2.0, around_s=second).spans(path, nothing)
    assert span.start_s == read_index(path).start_s
    assert span.end_s == pytest.approx(span.start_s + 1)


def test_a_span_before_the_first_picture_is_outside(tmp_path):
    path = late(tmp_path, "webm")
    begin_s, end_s = read_index(path).start_s, read_index(path).end_s
    with pytest.raises(MediaError) as fault:
        read_clips(path, [Span(1.0, 4.0)], frame_spec(2, 32))
    assert str(fault.value) == (
        f"The span 1 to 4 s lies outside {path}, which begins at {begin_s:g} s and lasts {end_s:g} s. "
        "Check the times, or leave it out."
    )


def test_what_is_printed_is_what_a_player_shows(tmp_path, bundle):
    path = late(tmp_path, "webm")
    with Retriever(bundle, tmp_path / "gallery", threads=1) as retriever:
        retriever.add_videos([path], window_s=1.0)
        hits = retriever.search_embeddings(retriever.embed_example(path, 7.5, 1.0), 4)[0]
    assert hits[0].similarity > 0.999
    assert (hits[0].start_s, hits[0].end_s) == pytest.approx((7.0, 8.0), abs=0.1)


def test_thumbnails_and_previews_keep_to_a_players_clock(tmp_path):
    path = late(tmp_path, "mkv")
    begin_s = read_index(path).start_s
    image = av.open(_file(tmp_path / "7.jpg", picture(path, begin_s + 2.05, 64)))
    (frame,) = image.decode(video=0)
    assert number_of(frame.to_ndarray(format="rgb24")[24:].transpose(2, 0, 1)) == 20
    write_preview(path, begin_s + 1, begin_s + 2, str(tmp_path / "out.mp4"), nothing)
    with av.open(str(tmp_path / "out.mp4")) as made:
        shown = [
            number_of(f.to_ndarray(format="rgb24")[24:].transpose(2, 0, 1))
            for f in made.decode(video=0)
        ]
    assert shown[0] == 10
    assert len(shown) == pytest.approx(10, abs=1)


def _file(path, content):
    path.write_bytes(content)
    return str(path)


# --- few pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slides.mkv", "slides.ts"])
def test_windows_without_a_picture_of_their_own_show_the_one_on_display(tmp_path, name):
    path = write_video(tmp_path / name, 4, codec="libx264", pts=[0, 100, 200, 300], gop=1)
    _, spans = Segmentation(5.0).spans(path, nothing)
    assert len(spans) == 8
    assert numbers(path, *spans, num_frames=1) == [[n] for n in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert read_index(path).remarks == ()


def test_a_camera_with_a_picture_every_half_minute_is_indexed(tmp_path, bundle):
    path = write_video(tmp_path / "camera.ts", 20, codec="libx264", pts=range(0, 6000, 300))
    with Retriever(bundle, tmp_path / "gallery", threads=1) as retriever:
        report = retriever.add_videos([path], window_s=10.0)
    assert (report.broken, report.remarks, report.clips_added) == ((), (), 60)


# --- begun between keyframes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("cut.ts", "libx264", {}), ("cut.ts", "libx265", {}), ("cut.mpg", "mpeg2video", {})],
    ids=["h264", "hevc", "mpeg2"],
)
@pytest.mark.parametrize("part", [0.2, 0.24])
def test_a_recording_begins_with_the_first_picture_that_can_be_shown(
    tmp_path, name, codec, options, part
):
    container = name.rpartition(".")[2]
    recipe = Recipe(container, codec, Fraction(25), 200, gop=50, b_frames=2, cut=part)
    path = make(tmp_path / name, recipe)
    index = read_index(path)
    assert number_of_first(path) == pytest.approx(
        50, abs=2 if codec == "mpeg2video" else 0
    )  # blurred
    assert len(index.shown) == {"libx264": 150, "libx265": 150, "mpeg2video": 152}[codec]
    _, spans = Segmentation(2.0).spans(path, nothing)
    assert len(numbers(path, *spans)) == 3
    (remark,) = index.remarks
    said = re.fullmatch(
        r"begins between keyframes: the first (\S+) s of its pictures \((\d+) frames\) cannot be shown",
        remark,
    )
    assert float(said[1]) == pytest.approx(int(said[2]) / 25, abs=0.1)


def begun_at(path, whole, first):
    """A copy of a video without its first packets, and what is in its keyframes."""
    keys = []
    with av.open(str(whole)) as source, av.open(str(path), "w") as output:
        film = output.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.size][first:]:
            keys += [bytes(packet)] if packet.is_keyframe else []
            packet.stream = film
            output.mux(packet)
    return keys


def test_a_first_keyframe_that_does_not_decode_shows_nothing(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", 80, codec="libx264", gop=20)
    path = tmp_path / "cut.mkv"
    key, *_ = begun_at(path, whole, 10)
    assert number_of_first(path) == 20
    place = 0  # of the unit that holds the picture, which alone becomes zeros
    while key[place + 4] & 31 != 5:
        place += 4 + int.from_bytes(key[place : place + 4])
    replace_bytes(path, key, key[: place + 5] + bytes(len(key) - place - 5))
    index = read_index(path)
    assert index.keyframes[0] == 10
    assert number_of_first(path) == 40
    assert len(index.shown) == 40
    assert index.remarks == (
        "begins between keyframes: the first 3.0 s of its pictures (30 frames) cannot be shown",
    )


def test_pictures_before_the_first_keyframe_that_need_no_other_are_shown(tmp_path):
    whole, path = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    with av.open(str(whole), "w") as output:
        film = output.add_stream("libx265", rate=10)
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        how = "log-level=none:pools=1:keyint=20:min-keyint=20:radl=2:open-gop=0:bframes=3:scenecut=0:b-adapt=0"
        film.codec_context.options = {"x265-params": how}
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            output.mux(film.encode(frame))
        output.mux(film.encode(None))
    begun_at(path, whole, 18)
    index = read_index(path)
    assert index.keyframes[0] == 0
    assert index.times[0] > index.times[2]
    assert index.remarks == ()
    assert number_of_first(path) == 18


def number_of_first(path):
    begin_s = read_index(path).start_s
    return numbers(path, Span(begin_s, begin_s), num_frames=1)[0][0]


def test_a_picture_refreshed_in_stripes_begins_when_it_is_whole(tmp_path):
    whole = tmp_path / "whole.ts"
    with av.open(str(whole), "w", format="mpegts") as output:
        film = output.add_stream("libx264", rate=25)
        film.width, film.height, film.pix_fmt = 256, 64, "yuv420p"
        film.codec_context.options = {"x264-params": "intra-refresh=1:keyint=25:bframes=0"}
        for number in range(100):
            picture = np.full((64, 256, 3), 2 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(film.encode(frame))
        output.mux(film.encode(None))
    path = tmp_path / "cut.ts"
    content = whole.read_bytes()
    path.write_bytes(content[len(content) // 188 // 8 * 188 :])
    index = read_index(path)
    (clip,) = read_clips(path, [Span(index.start_s, index.start_s + 0.5)], frame_spec(4, 32))
    assert np.all(np.diff([frame.mean() for frame in clip]) > 2)
    assert index.remarks[0].startswith("begins between keyframes")

"""Frame choice, windows of one pass, and pixels."""

import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from dgl_runtime.errors import MediaError
from dgl_runtime.media.frame_reader import FrameReader
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.pixels import preprocess
from dgl_runtime.media.side_by_side import read_frames
from dgl_runtime.media.video import (
    Span,
    VideoInfo,
    cut_windows,
    probe,
    read_clips,
)
from tests.helpers.odd_videos import (
    HEIGHT,
    WIDTH,
    number_of,
    numbers_of,
    write_video,
)
from tests.helpers.specs import frame_spec

SIZE = 32
# name of the file, how it is written; together: B-frames, no B-frames, seek by pts, by dts, none.
CONTAINERS = {
    "plain.mp4": {"codec": "mpeg4"},
    "b.mp4": {"codec": "libx264", "b_frames": 2},
    "hevc.mp4": {"codec": "libx265", "b_frames": 2},
    "b.mkv": {"codec": "libx264", "b_frames": 2},
    "b.ts": {"codec": "libx264", "b_frames": 2},
    "b.flv": {"codec": "libx264", "b_frames": 2},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp8.webm": {"codec": "libvpx"},
    "b.avi": {"codec": "mpeg4", "b_frames": 2},
    "h264.avi": {"codec": "libx264", "b_frames": 2},
    "old.wmv": {"codec": "mpeg4"},
    "raw.h264": {"codec": "libx264", "b_frames": 2},
}
NOISE = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8).repeat(4, 0).repeat(4, 1)
# Streams of MPEG with open groups of pictures; in a program stream a seek lands within a picture.
MPEG = {
    name: {"codec": codec, "b_frames": 2, "rate": 25, "size": (160, 96)}
    | {"pictures": [NOISE[i : i + 96] for i in range(100)]}  # none shares a packet with another
    for name, codec in (
        ("mpeg1.mpg", "mpeg1video"),
        ("mpeg2.mpg", "mpeg2video"),
        ("mpeg2.vob", "mpeg2video"),
        ("mpeg2.ts", "mpeg2video"),
    )
}


def read_numbers(path: Path, *spans: Span, num_frames: int = 10) -> list[list[int]]:
    return [numbers_of(clip) for clip in read_clips(path, spans, frame_spec(num_frames, SIZE))]


def whole(path: Path) -> Span:
    return Span(0.0, probe(path).duration_s)


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> Path:
    """24 s at 10 frames a second, a keyframe every 12 frames, B-frames."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return write_video(path, 240, codec="libx264", b_frames=2, gop=12)


# --- which frame -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTAINERS)
def test_frames_are_the_ones_on_display(tmp_path, name):
    path = write_video(tmp_path / name, 100, **CONTAINERS[name])
    assert read_numbers(path, whole(path)) == [[5, 15, 25, 35, 45, 55, 65, 75, 85, 95]]


@pytest.mark.parametrize("name", CONTAINERS)
def test_duration_and_frames_come_from_the_packets(tmp_path, name):
    path = write_video(tmp_path / name, 60, **CONTAINERS[name])
    info = probe(path)
    assert (info.width, info.height, info.num_frames) == (WIDTH, HEIGHT, 60)
    assert info.duration_s == pytest.approx(60 / CONTAINERS[name].get("rate", 10), abs=0.05)


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv", "plain.avi"])
def test_variable_frame_rate_keeps_a_frame_until_the_next(tmp_path, name):
    shown_at = [0, 1, 2, 10, 11, 30, 31, 32, 40]
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = write_video(tmp_path / name, len(shown_at), codec=codec, pts=shown_at)
    wanted = [0.0, 0.099, 0.1, 0.95, 1.0, 2.95, 3.0, 3.95, 4.0]
    spans = [Span(time_s, time_s) for time_s in wanted]
    shown = [numbers[0] for numbers in read_numbers(path, *spans, num_frames=1)]
    assert shown == [0, 0, 1, 2, 3, 4, 5, 7, 8]


@pytest.mark.parametrize("name", ["late.mkv", "late.ts", "late.mp4"])
def test_time_0_is_the_first_frame_wherever_the_stream_starts(tmp_path, name):
    pts = range(50, 70)
    path = write_video(tmp_path / name, 20, codec="libx264", b_frames=2, pts=pts)
    assert probe(path).duration_s == pytest.approx(2.0)
    assert read_numbers(path, Span(0, 2)) == [[1, 3, 5, 7, 9, 11, 13, 15, 17, 19]]


def test_frames_cut_off_by_an_edit_list_are_not_there(tmp_path):
    pts = range(-8, 12)
    path = write_video(tmp_path / "cut.mp4", 20, codec="libx264", b_frames=2, pts=pts)
    assert probe(path).num_frames == 12
    assert read_numbers(path, Span(0, 1.2), num_frames=6) == [[9, 11, 13, 15, 17, 19]]


def test_a_wrong_stated_rate_does_not_matter(tmp_path):
    pts = range(0, 60, 3)
    path = write_video(tmp_path / "rate.mkv", 20, rate=30, pts=pts)
    assert probe(path).duration_s == pytest.approx(2.0)
    assert read_numbers(path, Span(0, 2), num_frames=4) == [[2, 7, 12, 17]]


def test_the_last_frame_lasts_as_its_packet_says_where_the_others_tell_the_truth(tmp_path):
    made = write_video(tmp_path / "film.mp4", 10)
    path = tmp_path / "long.mp4"
    with av.open(str(made)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                tenth = packet.duration
                packet.duration = 5 * tenth if packet.pts == 9 * tenth else tenth
                packet.stream = stream
                output.mux(packet)
    assert probe(path).duration_s == pytest.approx(1.4)


def test_a_frame_of_which_nothing_says_how_long_it_lasts_lasts_a_moment(tmp_path):
    path = write_video(tmp_path / "one.asf", 1, codec="wmv2")
    assert probe(path).duration_s == 0.001
    assert read_numbers(path, whole(path), num_frames=2) == [[0, 0]]


def test_one_frame_is_a_video(tmp_path):
    path = write_video(tmp_path / "one.mp4", 1)
    assert probe(path) == VideoInfo(path, 0.0, pytest.approx(0.1), WIDTH, HEIGHT, 1)
    assert read_numbers(path, whole(path), num_frames=3) == [[0, 0, 0]]


@pytest.mark.parametrize("size", [(50, 34), (34, 66), (18, 162)])
def test_sizes_and_portrait(tmp_path, size):
    path = write_video(tmp_path / "size.mp4", 5, size=size)
    assert (probe(path).width, probe(path).height) == size
    (clip,) = read_clips(path, [whole(path)], frame_spec(3, SIZE))
    assert clip.shape == (3, 3, SIZE, SIZE)
    assert clip.dtype == np.uint8


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_a_rotated_video_is_read_as_displayed(tmp_path, degrees):
    stored = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stored[: HEIGHT // 2, : WIDTH // 2] = 240  # top left; turning is counter-clockwise
    path = write_video(tmp_path / "turned.mp4", 2, rotation=degrees, pictures=[stored] * 2)
    info = probe(path)
    assert (info.width < info.height) == (degrees % 180 == 90)
    (clip,) = read_clips(path, [whole(path)], frame_spec(1, SIZE))
    half = SIZE // 2
    corners = [clip[0, :, y : y + half, x : x + half].mean() for y in (0, half) for x in (0, half)]
    # Corners in reading order: top left, top right, bottom left, bottom right.
    assert int(np.argmax(corners)) == {0: 0, 90: 2, 180: 3, -90: 1}[degrees]
    assert max(corners) > 180
    assert sorted(corners)[2] < 60


# --- one pass, overlapping windows, seeking -----------------------------------------------------


def test_overlapping_windows_equal_each_window_read_alone(long_video):
    spans = cut_windows(whole(long_video).end_s, 5.0, 2.0)
    together = list(read_clips(long_video, spans, frame_spec(7, SIZE)))
    assert len(together) == len(spans) > 8
    for span, clip in zip(spans, together, strict=True):
        (alone,) = read_clips(long_video, [span], frame_spec(7, SIZE))
        np.testing.assert_array_equal(clip, alone)


def test_overlapping_windows_decode_and_resize_each_frame_once(long_video, monkeypatch):
    import dgl_runtime.media.video as video

    sizes = []
    monkeypatch.setattr(
        video,
        "preprocess",
        lambda picture, spec: sizes.append(spec.size) or preprocess(picture, spec),
    )
    spans = cut_windows(24.0, 4.0, 1.0)
    wanted = read_index(long_video).frames_at
    times = [span.start_s + (i + 0.5) * 0.5 for span in spans for i in range(8)]
    list(read_clips(long_video, spans, frame_spec(8, SIZE)))
    assert len(sizes) == len(set(wanted(np.array(times)).tolist())) < len(spans) * 8


def test_a_span_around_others_comes_first_and_keeps_their_frames(long_video):
    spans = [Span(0, 24), Span(0.05, 24), Span(6, 8)]
    expected = [read_numbers(long_video, span)[0] for span in spans]
    assert read_numbers(long_video, *spans) == expected


@pytest.mark.parametrize("name", [*CONTAINERS, *MPEG])
@pytest.mark.parametrize("threads", [1, 2])
def test_skipping_never_changes_a_frame(tmp_path, name, threads):
    path = write_video(tmp_path / name, 100, **{"gop": 10, **(CONTAINERS | MPEG)[name]})
    index = read_index(path)
    for numbers in ([3, 40, 41, 77, 98], [95], list(range(0, 98, 13))):
        pictures = [
            list(FrameReader(path, index, threads=threads, may_skip=may_skip).read(numbers))
            for may_skip in (True, False)
        ]
        assert [number for number, _ in pictures[0]] == numbers
        for (_, skipped), (_, plain) in zip(*pictures, strict=True):
            np.testing.assert_array_equal(skipped, plain)


@pytest.mark.parametrize("name", MPEG)
@pytest.mark.parametrize(("gop", "b_frames"), [(5, 2), (12, 0), (12, 2), (18, 2)])
def test_each_frame_of_mpeg_is_the_same_alone_and_among_all(tmp_path, name, gop, b_frames):
    form = {**MPEG[name], "gop": gop, "b_frames": b_frames}
    path = write_video(tmp_path / name, 100, **form)
    index = read_index(path)
    numbers = range(len(index.shown))
    pictures = dict(FrameReader(path, index, may_skip=False).read(numbers))
    for number in numbers:
        ((_, alone),) = FrameReader(path, index).read([number])
        np.testing.assert_array_equal(alone, pictures[number], err_msg=f"{number}")


@pytest.mark.parametrize("name", MPEG)
def test_seeking_in_mpeg_decodes_less(tmp_path, name):
    path = write_video(tmp_path / name, 100, **MPEG[name])
    reader = FrameReader(path, read_index(path))
    assert [number for number, _ in reader.read([90])] == [90]
    assert reader.frames_decoded < 45  # from a second before its keyframe on, not from the start


def frames_decoded(path: Path, numbers: list[int], *, may_skip: bool) -> int:
    reader = FrameReader(path, read_index(path), may_skip=may_skip)
    assert len(list(reader.read(numbers))) == len(numbers)
    return reader.frames_decoded


def test_seeking_decodes_less_in_short_gops_only(tmp_path):
    short = write_video(tmp_path / "short.mp4", 200, codec="libx264", gop=10)
    long = write_video(tmp_path / "long.mp4", 200, codec="libx264", gop=400)
    numbers = [35, 90, 150]
    assert frames_decoded(short, numbers, may_skip=False) == 151
    assert frames_decoded(short, numbers, may_skip=True) == 6 + 1 + 1
    assert frames_decoded(long, numbers, may_skip=True) == 151


def test_nothing_is_read_behind_the_last_frame_before_a_seek(tmp_path):
    path = write_video(tmp_path / "b.mp4", 200, codec="libx264", b_frames=2, gop=10)
    reader = FrameReader(path, read_index(path))
    keyframes = [0, 40, 90, 150]
    assert [number for number, _ in reader.read(keyframes)] == keyframes
    assert reader.packets_read == len(keyframes)


def test_near_frames_are_decoded_on_without_a_seek(tmp_path):
    path = write_video(tmp_path / "dense.mp4", 60, codec="libx264", gop=5)
    assert frames_decoded(path, list(range(0, 60, 5)), may_skip=True) == 56


def test_frames_nobody_refers_to_are_not_decoded(tmp_path):
    path = write_video(tmp_path / "b.mp4", 100, codec="libx264", b_frames=2, gop=400)
    skipping = frames_decoded(path, [99], may_skip=True)
    assert skipping < 0.9 * frames_decoded(path, [99], may_skip=False)


def test_a_container_without_exact_seeks_is_read_from_the_start(tmp_path):
    # A small wmv has no seek table: every seek lands on the first packet.
    path = write_video(tmp_path / "old.wmv", 100, gop=10)
    assert read_numbers(path, Span(2, 3), Span(8, 9), num_frames=2) == [[22, 27], [82, 87]]


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("gop", [4, 12, 400])
def test_several_threads_give_the_same_clips(tmp_path, threads, gop):
    path = write_video(tmp_path / "b.mp4", 240, codec="libx264", b_frames=2, gop=gop)
    for spans, num_frames in ((cut_windows(24.0, 5.0, 2.0), 7), ([Span(0, 24)], 240)):
        alone = read_clips(path, spans, frame_spec(num_frames, SIZE))
        together = read_clips(path, spans, frame_spec(num_frames, SIZE), threads=threads)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other)


def test_frames_of_different_keyframes_are_decoded_side_by_side(long_video):
    seen = set()

    def shape(picture):
        seen.add(threading.current_thread().name)
        return picture.shape

    numbers = range(0, 240, 20)
    read = list(read_frames(long_video, read_index(long_video), numbers, shape, threads=2))
    assert read == [(number, (HEIGHT, WIDTH, 3)) for number in numbers]
    assert len(seen) == 2
    assert threading.current_thread().name not in seen


@pytest.mark.parametrize("threads", [1, 2])
def test_reading_stops_when_nobody_listens(long_video, threads):
    clips = read_clips(
        long_video, cut_windows(24.0, 2.0, 1.0), frame_spec(4, SIZE), threads=threads
    )
    assert number_of(next(clips)[0]) == 2
    clips.close()


def test_random_frames_stay_in_their_segments_and_repeat_with_the_seed(long_video):
    def read(seed):
        rng = np.random.default_rng(seed)
        return numbers_of(
            next(read_clips(long_video, [Span(0, 24)], frame_spec(12, SIZE), rng=rng))
        )

    assert read(1) == read(1) != read(2)
    assert all(20 * i <= number < 20 * (i + 1) for i, number in enumerate(read(1)))


# --- spans -------------------------------------------------------------------------------------


def test_a_span_is_cut_off_at_the_ends_of_the_video(long_video):
    spans = [Span(-3, 2), Span(22, 90)]
    assert read_numbers(long_video, *spans, num_frames=2) == [[5, 15], [225, 235]]


@pytest.mark.parametrize("span", [Span(24.0, 30.0), Span(99.0, 100.0), Span(-5.0, -1.0)])
def test_a_span_outside_the_video_is_named(long_video, span):
    with pytest.raises(MediaError) as fault:
        read_clips(long_video, [span], frame_spec(2, SIZE))
    assert str(fault.value) == (
        f"The span {span.start_s:g} to {span.end_s:g} s lies outside {long_video}, "
        "which lasts 24 s. Check the times, or leave it out."
    )


@pytest.mark.parametrize(
    ("spans", "num_frames", "size", "threads"),
    [
        ([Span(3, 4), Span(1, 2)], 2, 32, 1),
        ([Span(4, 3)], 2, 32, 1),
        ([Span(0, float("nan"))], 2, 32, 1),
        ([Span(0, 1)], 0, 32, 1),
        ([Span(0, 1)], 2, 0, 1),
        ([Span(0, 1)], 2, 32, 0),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(long_video, spans, num_frames, size, threads):
    with pytest.raises(ValueError, match=r"1 or more|sorted|ends before"):
        read_clips(long_video, spans, frame_spec(num_frames, size), threads=threads)


def test_no_spans_give_no_clips(long_video):
    assert list(read_clips(long_video, [], frame_spec(4, SIZE))) == []


def test_a_clip_holds_the_preprocessed_frames(long_video):
    (clip,) = read_clips(long_video, [Span(3.0, 3.1)], frame_spec(1, SIZE))
    with av.open(str(long_video)) as container:
        frames = list(container.decode(video=0))
    picture = frames[30].to_ndarray(format="rgb24")
    np.testing.assert_array_equal(clip[0], preprocess(picture, frame_spec(1, SIZE)))


def test_importing_video_loads_neither_av_nor_pillow():
    code = (
        "import sys, dgl_runtime.media.video; "
        "print({name.split('.')[0] for name in sys.modules} & {'av', 'PIL', 'torch'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

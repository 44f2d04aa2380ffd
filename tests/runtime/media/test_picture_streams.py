"""Of several picture streams, the one that a player would show."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.stream import Disposition

from dgl_runtime.media.container import picture_streams
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.video import Span, read_clips
from tests.helpers.odd_videos import number_of, numbered_picture, numbers_of
from tests.helpers.random_media import Recipe, make
from tests.helpers.specs import frame_spec

MARKS = ["attached_pic", "timed_thumbnails", "still_image", "dependent", "metadata"]


def write_films(path, *films):
    """Write picture streams: (first number, count, size, disposition) each."""
    with av.open(str(path), "w") as output:
        streams = []
        for _, _, size, disposition in films:
            stream = output.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.disposition = Disposition[disposition] if disposition else Disposition(0)
            streams.append(stream)
        for stream, (first, count, size, _) in zip(streams, films, strict=True):
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(
                    numbered_picture(first + number, *size), format="rgb24"
                )
                frame.pts, frame.time_base = number, Fraction(1, 10)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return path


def first_shown(path):
    (clip,) = read_clips(path, [Span(0, 1)], frame_spec(5, 32))
    return numbers_of(clip)


@pytest.mark.parametrize("container", ["mkv", "mp4", "mov"])
def test_a_still_without_a_mark_in_front_of_the_film_is_not_taken_for_it(tmp_path, container):
    path = make(
        tmp_path / f"film.{container}", Recipe(container, "libx264", Fraction(10), 20, still=True)
    )
    index = read_index(path)
    assert (index.stream, len(index.shown)) == (1, 20)
    assert index.remarks == ("has 2 picture streams; number 1 (h264, 64 x 48) is read",)


def test_one_picture_alone_is_a_film(tmp_path):
    path = write_films(tmp_path / "one.mkv", (3, 1, (64, 48), ""))
    assert (len(read_index(path).shown), read_index(path).remarks) == (1, ())


@pytest.mark.parametrize(
    ("films", "expected"),
    [
        ([(0, 20, (64, 48), ""), (100, 20, (64, 48), "")], 0),
        ([(0, 20, (64, 48), ""), (100, 20, (128, 96), "")], 1),
        ([(0, 20, (128, 96), ""), (100, 20, (64, 48), "default")], 1),
        ([(0, 20, (64, 48), "default"), (100, 20, (128, 96), "")], 0),
        ([(0, 1, (128, 96), "default"), (100, 20, (64, 48), "")], 1),
    ],
    ids=[
        "the first of equals",
        "the larger",
        "the default",
        "the first is the default",
        "what moves",
    ],
)
def test_the_default_then_the_larger_then_the_first_is_read(tmp_path, films, expected):
    path = write_films(tmp_path / "films.mkv", *films)
    index = read_index(path)
    assert index.stream == expected
    assert first_shown(path)[0] == films[expected][0] + 1
    assert len(index.remarks) == 1


@pytest.mark.parametrize("mark", MARKS)
def test_what_accompanies_the_film_is_left_out(mark):
    def stream(index, disposition):
        codec = SimpleNamespace(width=64, height=48)
        return SimpleNamespace(
            index=index, disposition=Disposition[disposition], codec_context=codec
        )

    films = [stream(0, mark), stream(1, "original"), stream(2, "default")]
    container = SimpleNamespace(streams=SimpleNamespace(video=films))
    assert [film.index for film in picture_streams(Path("film.mkv"), container)] == [2, 1]


def test_times_and_pictures_are_of_the_same_stream(tmp_path):
    path = write_films(tmp_path / "films.mkv", (0, 20, (64, 48), ""), (100, 40, (128, 96), ""))
    index = read_index(path)
    assert index.duration_s == pytest.approx(4.0)
    (clip,) = read_clips(path, [Span(3.0, 4.0)], frame_spec(2, 32))
    assert [number_of(frame) for frame in clip] == [132, 137]
    assert np.all(np.diff(index.shown) > 0)

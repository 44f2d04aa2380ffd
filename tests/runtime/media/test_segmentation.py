"""How a video is cut into clips: by its own times, and never into a million for nothing."""

import sys

import pytest

from dgl_runtime.errors import MediaError
from dgl_runtime.media import segmentation
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.media.windows import Span
from tests.helpers.odd_videos import write_video


def nothing():
    """No sign of life."""


def ends(path, how):
    _, spans = how.spans(path, nothing)
    return [(round(span.start_s, 3), round(span.end_s, 3)) for span in spans]


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Segmentation(), "all None None None"),
        (Segmentation(2.0, 0.5), "all 2.0 0.5 None"),
        (Segmentation(2.0, at_shots=True), "shots 2.0 None None"),
        (Segmentation(around_s=1.25), "all None None 1.25"),
    ],
)
def test_a_segmentation_has_a_name_that_is_read(made, text):
    assert str(made) == text
    assert Segmentation.from_text(text) == made


@pytest.mark.parametrize("parts", [1, 2])
def test_a_thousand_windows_for_each_frame_are_the_most(tmp_path, parts):
    path = write_video(tmp_path / "film.mp4", 2)
    most, more = (read_index(path).end_s / count for count in (2000, 2001))
    many = [Segmentation(step) if parts == 1 else Segmentation(0.1, step) for step in (most, more)]
    assert len(many[0].spans(path, nothing)[1]) == pytest.approx(2000 / parts, abs=2)
    with pytest.raises(
        MediaError, match=r"claims to last 0 s with 2 frames, which is 1000 windows"
    ):
        many[1].spans(path, nothing)


def test_time_before_the_first_frame_counts_for_no_windows(tmp_path):
    path = write_video(
        tmp_path / "late.mkv",
        2,
        pts=[50, 51],
        audio_packets=[b"junk" * 9] * 85,
        audio_first=True,
    )
    assert read_index(path).start_s > 4
    assert len(Segmentation(2e-4).spans(path, nothing)[1]) == pytest.approx(1000, abs=2)


@pytest.mark.parametrize("absent", ["scenedetect", "cv2"])
def test_shots_without_their_extra_are_refused(monkeypatch, absent):
    monkeypatch.setitem(sys.modules, "cv2", sys)
    monkeypatch.setattr(segmentation, "find_spec", lambda name: name)
    Segmentation(1.0, at_shots=True).require_installed()
    monkeypatch.setattr(segmentation, "find_spec", lambda name: None if name == absent else name)
    Segmentation(1.0).require_installed()
    with pytest.raises(ModuleNotFoundError, match=absent) as refused:
        Segmentation(1.0, at_shots=True).require_installed()
    assert refused.value.name == absent


def late_by(folder, packets):
    """Two seconds of pictures behind some sound, 0.064 s a packet."""
    first = packets * 1024 / 16_000
    return write_video(
        folder / "late.mkv",
        20,
        rate=1000,
        pts=[round(1000 * first) + 100 * number for number in range(20)],
        audio_packets=[b"junk" * 9] * 40,
        audio_first=True,
    )


@pytest.mark.parametrize(("packets", "is_late"), [(2, False), (3, True)])
def test_pictures_a_tenth_of_a_second_behind_the_sound_begin_with_it(tmp_path, packets, is_late):
    path = late_by(tmp_path, packets)
    start_s = read_index(path).start_s
    assert 0.05 < start_s < 0.15
    assert (start_s > 0.1) == is_late
    first, *_ = ends(path, Segmentation(0.5))
    assert first == pytest.approx((start_s, start_s + 0.5) if is_late else (0.0, 0.5), abs=1e-3)


def test_a_moment_lies_inside_the_video(tmp_path):
    path = write_video(tmp_path / "film.mp4", 20)
    assert ends(path, Segmentation(0.5, around_s=1.9)) == [(1.65, 2.0)]
    assert ends(path, Segmentation(around_s=0.5)) == [(0.0, 1.5)]
    with pytest.raises(MediaError, match=r"lasts 2 s, so it has no second 2\."):
        Segmentation(0.5, around_s=2.0).spans(path, nothing)


def test_the_end_of_the_video_comes_with_its_clips(tmp_path):
    path = write_video(tmp_path / "film.mp4", 20)
    assert Segmentation().spans(path, nothing) == (2.0, [Span(0.0, 2.0)])
    assert Segmentation(around_s=1.0).spans(path, nothing) == (2.0, [Span(0.0, 2.0)])

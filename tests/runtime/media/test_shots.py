"""Shots: where the picture changes, by the times of our packets, in every file that we can read."""

import numpy as np
import pytest

from dgl_runtime.errors import MediaError
from dgl_runtime.media.frame_reader import FrameReader
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.media.shots import SHORTEST_SHOT_S, find_shots
from dgl_runtime.media.windows import Span
from tests.helpers.odd_videos import damage, replace_bytes, write_video
from tests.helpers.scenes import SIZE, write_scenes

pytest.importorskip("scenedetect")
pytest.importorskip("cv2", exc_type=ImportError)  # it needs libraries of the system


def shots(path, sign=lambda: None):
    index = read_index(path)
    found = find_shots(path, Span(index.start_s, index.end_s), sign)
    return [(round(one.start_s, 3), round(one.end_s, 3)) for one in found]


def test_a_shot_ends_where_the_picture_changes(tmp_path):
    path, signs = write_scenes(tmp_path / "a.mp4", [20, 15, 30]), []
    assert shots(path, lambda: signs.append(1)) == [(0.0, 2.0), (2.0, 3.5), (3.5, 6.5)]
    assert len(signs) == 65  # for each frame


def test_a_video_without_cuts_is_one_shot(tmp_path):
    assert shots(write_scenes(tmp_path / "a.mp4", [30])) == [(0.0, 3.0)]


@pytest.mark.parametrize(
    ("lengths", "found"),
    [
        ([6, 20, 20], [0.0, 0.6, 2.6]),
        ([5, 20, 20], [0.0, 2.5]),
        ([20, 20, 6], [0.0, 2.0, 4.0]),
        ([20, 20, 5], [0.0, 2.0]),
        ([14, 6], [0.0, 1.4]),  # 2.0 - 0.6 is less than 1.4 in floats
        ([20, 6, 20], [0.0, 2.0, 2.6]),
        ([20, 5, 20], [0.0, 2.0]),
        ([20, 100, 6, 20], [0.0, 2.0, 12.0, 12.6]),  # 12.6 - 12.0 is less than 0.6 in floats
    ],
)
def test_a_shot_lasts_six_tenths_of_a_second_at_least(tmp_path, lengths, found):
    assert SHORTEST_SHOT_S == 0.6
    path = write_scenes(tmp_path / "a.mp4", lengths)
    assert [start for start, _ in shots(path)] == found
    ends = [end for _, end in shots(path)]
    assert ends == [*found[1:], sum(lengths) / 10]


def test_a_turned_video_has_its_shots(tmp_path):
    path = write_scenes(tmp_path / "a.mp4", [20, 15], rotation=180)
    assert shots(path) == [(0.0, 2.0), (2.0, 3.5)]


def test_times_of_shots_are_those_of_the_packets(tmp_path):
    """20 frames a tenth of a second apart, then 20 half a second apart, then 10 a tenth again."""
    pts = [*range(20), *range(20, 120, 5), *range(120, 130)]
    path = write_scenes(tmp_path / "a.mkv", [20, 20, 10], pts=pts)
    assert shots(path) == [(0.0, 2.0), (2.0, 12.0), (12.0, 13.0)]


def test_shots_are_at_a_players_seconds(tmp_path):
    """The pictures begin 5 s after the sound."""
    path = write_scenes(
        tmp_path / "a.mkv",
        [20, 20],
        pts=range(50, 90),
        audio_packets=[b"junk" * 9] * 140,
        audio_first=True,
    )
    start_s = read_index(path).start_s
    assert 4 < start_s < 6
    assert shots(path) == [
        (round(start_s, 3), round(start_s + 2, 3)),
        (round(start_s + 2, 3), round(start_s + 4, 3)),
    ]
    end_s, spans = Segmentation(window_s=1.0, at_shots=True).spans(path, lambda: None)
    assert end_s == pytest.approx(start_s + 4)
    assert [span.start_s - start_s for span in spans] == pytest.approx([0, 1, 2, 3])
    assert [span.end_s - start_s for span in spans] == pytest.approx([1, 2, 3, 4])


def test_a_shot_longer_than_a_window_is_cut_into_windows(tmp_path):
    path = write_scenes(tmp_path / "a.mp4", [20, 35])
    _, spans = Segmentation(window_s=1.5, at_shots=True).spans(path, lambda: None)
    found = [(round(span.start_s, 3), round(span.end_s, 3)) for span in spans]
    assert found == [(0.0, 1.5), (0.5, 2.0), (2.0, 3.5), (3.5, 5.0), (4.0, 5.5)]


def test_metadata_need_not_be_utf_8(tmp_path):
    path = write_scenes(tmp_path / "latin.avi", [20, 20], metadata={"title": "XXXXXXXX"})
    replace_bytes(path, b"XXXXXXXX", bytes(range(0xF8, 0x100)))
    assert shots(path) == [(0.0, 2.0), (2.0, 4.0)]


def test_pictures_that_change_their_size_are_looked_at(tmp_path):
    parts = [
        write_scenes(tmp_path / f"{i}.h264", [length], i, codec="libx264", gop=10, size=size)
        for i, (length, size) in enumerate([(20, (320, 240)), (40, (240, 320))])
    ]
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    rate = len(read_index(path).shown) / read_index(path).duration_s
    (_, end), (start, _) = shots(path)
    assert start == end == pytest.approx(20 / rate)


def test_a_large_picture_is_made_small_before_it_is_looked_at(tmp_path, monkeypatch):
    from scenedetect import AdaptiveDetector

    seen = []

    def look(self, timecode, picture):
        seen.append((timecode.seconds, picture))
        return []

    monkeypatch.setattr(AdaptiveDetector, "process_frame", look)
    blue = np.full((480, 640, 3), (10, 10, 240), np.uint8)
    assert len(shots(write_video(tmp_path / "a.mp4", 3, size=(640, 480), pictures=[blue] * 3))) == 1
    assert [second for second, _ in seen] == pytest.approx([0.0, 0.1, 0.2])
    assert {picture.shape for _, picture in seen} == {(192, 256, 3)}
    assert seen[0][1][100, 100, 0] > 200  # blue comes first
    seen.clear()
    shots(write_video(tmp_path / "b.mp4", 1, size=(64, 256)))
    shots(write_video(tmp_path / "c.mp4", 1, size=(512, 2)))
    shots(write_video(tmp_path / "d.mp4", 1, size=SIZE))
    assert [one.shape for _, one in seen] == [(256, 64, 3), (1, 256, 3), (48, 64, 3)]


def test_a_stretch_that_does_not_decode_hides_only_its_own_cuts(tmp_path):
    path = write_scenes(tmp_path / "hole.mp4", [40] * 5, codec="libx264", gop=10)
    damage(path, 0.4, 0.6)
    starts = [start for start, _ in shots(path)]
    assert (starts[:2], starts[-1]) == ([0.0, 4.0], 16.0)
    assert all(8.0 <= start <= 14.0 for start in starts[2:-1])


@pytest.mark.parametrize(("gop", "passes"), [(20, 10), (5, 32)])
def test_a_file_of_which_nothing_decodes_is_one_shot(tmp_path, monkeypatch, gop, passes):
    """Each keyframe is tried, but not for ever; to read the clips will tell what is wrong."""
    path, tried = write_scenes(tmp_path / "a.mp4", [200], gop=gop), []

    def fail(self, numbers):
        tried.append(numbers)
        yield from ()
        raise MediaError("broken")

    monkeypatch.setattr(FrameReader, "read", fail)
    assert shots(path) == [(0.0, 20.0)]
    assert [(one.start, one.stop) for one in tried] == [(i * gop, 200) for i in range(passes)]


def test_a_file_that_is_no_video_is_refused(tmp_path):
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(MediaError, match="is not a video or is damaged"):
        Segmentation(at_shots=True).spans(tmp_path / "text.mp4", lambda: None)

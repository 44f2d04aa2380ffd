"""Clocks that jump: every picture once, in order, at times that go on."""

import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest

from dgl_runtime.media import packet_index
from dgl_runtime.media.clock import Jump, find_jumps, shifts, without_stills
from dgl_runtime.media.frame_reader import FrameReader
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.media.video import read_clips
from tests.helpers.odd_videos import ffmpeg, number_of, numbers_of, write_video
from tests.helpers.random_media import Recipe, make
from tests.helpers.specs import frame_spec

TICK_S = 0.1


def jumps(times, keys=(0,), *, forward=False, step=1, tick_s=TICK_S):
    is_key = np.isin(np.arange(len(times)), keys)
    return find_jumps(np.array(times, np.int64), is_key, step, tick_s, forward=forward)


def follow(times, found, step=1):
    return (np.array(times) + shifts(found, len(times), step)).tolist()


def test_a_clock_that_goes_on_has_no_jumps():
    assert jumps(range(50)) == []


def test_frames_stored_behind_ones_shown_later_are_no_jump():
    assert jumps([0, 4, 2, 1, 3, 8, 6, 5, 7, 12, 10, 9, 11]) == []
    assert jumps([0, 16, *range(1, 16)]) == []
    assert jumps([0, 17, *range(1, 17)], step=1) == []


def test_a_keyframe_shown_earlier_than_what_was_shown_begins_a_new_count():
    times = [5, 6, 7, 0, 1, 2]
    found = jumps(times, keys=(0, 3))
    assert found == [Jump(packet=3, before=7, after=0)]
    assert follow(times, found) == [5, 6, 7, 8, 9, 10]


def test_a_keyframe_a_tenth_of_a_second_early_is_no_jump():
    assert jumps([5, 6, 7, 6, 8], keys=(0, 3)) == []
    assert jumps([5, 6, 7, 5, 8], keys=(0, 3)) == [Jump(3, 7, 5)]
    assert jumps([50, 60, 70, 61, 80], keys=(0, 3), tick_s=0.01) == []
    assert jumps([50, 60, 70, 59, 80], keys=(0, 3), tick_s=0.01) == [Jump(3, 70, 59)]


def test_what_is_reordered_lies_a_second_or_sixteen_frames_back():
    shown = [*range(100, 116)]
    assert jumps([*shown, 199, 99, 300], step=1, tick_s=0.01) == []
    assert jumps([*shown, 201, 99, 300], step=1, tick_s=0.01) == [Jump(17, 201, 99)]
    assert jumps([*shown, 258, 99, 500], step=10, tick_s=0.01) == []
    assert jumps([*shown, 260, 99, 500], step=10, tick_s=0.01) == [Jump(17, 260, 99)]


def test_sixteen_frames_that_are_reordered_may_stay_for_minutes():
    later = [1000 * number for number in range(2, 18)]
    assert jumps([0, *later, 1000]) == []
    assert jumps([*later, 1000]) == []  # also where a recording begins
    assert jumps([0, *later, 18000, 1000]) == [Jump(18, 18000, 1000)]
    assert jumps([0, *later, 18000, 2000]) == []  # the other field of a picture


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_reordered_slides_are_no_jumps(tmp_path, container):
    """A lecture as x264 writes it: slides that stay for 5 s in the middle of a film."""
    stamps = "setpts='if(lt(N,40),N/25,if(lt(N,46),2+(N-40)*5,32+(N-46)/25))/TB'"
    path = tmp_path / f"lecture.{container}"
    made = ("-f", "lavfi", "-i", "testsrc=s=64x48:r=25:d=4", "-vf", stamps, "-fps_mode", "vfr")
    ffmpeg(*made, "-enc_time_base", "1/90000", "-c:v", "libx264", "-pix_fmt", "yuv420p", path)
    index = read_index(path)
    assert index.remarks == ()
    assert index.end_s == pytest.approx(34.16, abs=0.05)
    assert len(index.shown) > 90


def test_one_frame_or_one_time_has_no_jumps():
    assert jumps([7], forward=True) == jumps([7, 7, 7], forward=True) == []


def test_the_second_packet_may_be_behind_a_jump():
    assert jumps([500, 0, 1], keys=(0, 1)) == [Jump(1, 500, 0)]


def test_frames_before_a_jump_do_not_say_where_it_leads():
    assert jumps([*range(31), 20, 21], keys=(0, 31)) == [Jump(31, 30, 20)]


def test_sixteen_frames_behind_a_jump_say_where_it_leads():
    assert jumps([0, 1, 2, 3, 516, 500], keys=(0, 4), forward=True) == [Jump(4, 3, 500)]


def test_what_waits_are_usual_is_seen_whatever_is_stated():
    assert jumps([0, 1, 2, 3, 25], forward=True, step=5, tick_s=1.0) == [Jump(4, 3, 25)]


def test_frames_far_behind_a_jump_do_not_say_where_it_leads():
    times = [0, 1, 2, *range(500, 525), 495, 496]
    assert jumps(times, keys=(0, 3, 28), forward=True) == [Jump(3, 2, 500), Jump(28, 524, 495)]


def test_a_count_that_begins_anew_between_keyframes_is_seen_beyond_what_is_reordered():
    times = [*range(30), 0, 1, 2]
    assert follow(times, jumps(times)) == list(range(33))
    assert jumps([*range(30), 14]) == []  # within 16 frames
    assert jumps([*range(30), 12]) == [Jump(30, 29, 12)]


def test_behind_a_jump_the_first_frame_shown_follows_though_another_is_stored_first():
    times = [0, 1, 2, 3, 500, 498, 499, 501]
    found = jumps(times, keys=(0, 4), forward=True)
    assert found == [Jump(4, 3, 498)]
    assert follow(times, found) == [0, 1, 2, 3, 6, 4, 5, 7]


@pytest.mark.parametrize(("wait", "is_jump"), [(100, False), (103, True)])
def test_a_wait_of_ten_seconds_is_a_jump_forward_where_clocks_jump(wait, is_jump):
    times = [0, 1, 2, 2 + wait, 3 + wait]
    assert bool(jumps(times, forward=True)) == is_jump
    assert jumps(times) == []


def test_slides_are_no_jumps():
    assert jumps(range(0, 9000, 300), forward=True, step=300) == []
    assert jumps([0, 300, 600, 900, 3900], forward=True, step=300) == []
    assert len(jumps([0, 300, 600, 900, 3901], forward=True, step=300)) == 1


def test_each_of_several_jumps_is_followed():
    times = [10, 11, 12, 900, 901, 3, 4, 5]
    found = jumps(times, keys=(0, 3, 5), forward=True)
    assert [jump.packet for jump in found] == [3, 5]
    assert follow(times, found) == [10, 11, 12, 13, 14, 15, 16, 17]


def test_jumps_back_that_lie_near_are_told_apart():
    times = [200, 201, 202, 100, 101, 102, 0, 1, 2]
    found = jumps(times, keys=(0, 3, 6))
    assert found == [Jump(3, 202, 100), Jump(6, 102, 0)]
    assert follow(times, found) == [*range(200, 209)]


def test_where_sound_goes_on_a_picture_stays_on_display():
    found = [Jump(3, before=20, after=920), Jump(5, before=930, after=0)]
    assert without_stills(found, np.array([5.0, 50.0]), TICK_S) == found[1:]
    assert without_stills(found, np.array([2.5, 91.5, 93.0]), TICK_S) == found
    assert without_stills(found, np.array([3.0]), TICK_S) == found
    assert without_stills(found, np.array([3.5]), TICK_S) == found[1:]
    assert without_stills(found, np.array([90.9]), TICK_S) == found[1:]
    assert without_stills(found, np.array([91.0]), TICK_S) == found


# --- files -------------------------------------------------------------------------------------

JOINED = {"ts": "libx264", "mpg": "mpeg2video", "mkv": "libx264", "webm": "libvpx"}


def joined(folder, container, **more):
    """Thirty pictures, and thirty more of a second recording whose clock begins anew."""
    more = {"b_frames": 2 if container in ("ts", "mkv") else 0, **more}
    recipe = Recipe(container, JOINED[container], Fraction(25), 30, join="cat", gop=10, **more)
    return make(folder / f"joined.{container}", recipe)


def numbers(path, index, wanted):
    pictures = FrameReader(path, index).read(wanted)
    return [number_of(picture[16:].transpose(2, 0, 1)) for _, picture in pictures]


@pytest.mark.parametrize("container", JOINED)
@pytest.mark.parametrize("sound_s", [0.0, 2.0])
def test_of_joined_recordings_every_picture_is_there_once_in_order(tmp_path, container, sound_s):
    path = joined(tmp_path, container, sound_s=sound_s)
    index = read_index(path)
    assert numbers(path, index, range(60)) == list(range(60))
    assert numbers(path, index, [0, 29, 30, 45, 59]) == [0, 29, 30, 45, 59]
    np.testing.assert_allclose(np.diff(index.shown) * index.tick_s, 0.04, atol=0.0021)
    assert index.duration_s == pytest.approx(2.4, abs=0.01)
    assert index.missing is None
    (remark,) = index.remarks
    assert remark.startswith("has a clock that jumps (number of jumps: 1, the first by -")


@pytest.mark.parametrize(
    ("container", "codec"), [("mkv", "ffv1"), ("webm", "libvpx"), ("ts", "libx264")]
)
def test_pictures_that_no_clock_tells_apart_are_counted(tmp_path, container, codec):
    """Two recordings of a tenth of a second: their times differ too little for a new count."""
    recipe = Recipe(container, codec, Fraction(25), 3, sound_s=1.0)
    path = make(tmp_path / f"short.{container}", recipe)
    assert read_index(path).remarks == ()
    path.write_bytes(2 * path.read_bytes())
    index = read_index(path)
    assert len(index.shown) == 3
    (remark,) = index.remarks
    assert remark.startswith("has 3 pictures with the time of an earlier one, ")


def test_pictures_of_joined_recordings_without_stamps_of_their_own_come_in_order(tmp_path):
    # Small pictures share a packet of the container, which stamps the first of them.
    recipe = Recipe("mpg", "libx264", Fraction(25), 30, join="cat", gop=10)
    path = make(tmp_path / "joined.mpg", recipe)
    assert numbers(path, read_index(path), range(60)) == list(range(60))


def test_headers_of_a_second_recording_in_an_ogg_are_no_frames(tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    film, path = write_video(tmp_path / "film.mp4", 20), tmp_path / "film.ogv"
    subprocess.run(["ffmpeg", "-v", "error", "-i", film, "-c:v", "libtheora", path], check=True)
    path.write_bytes(2 * path.read_bytes())
    index = read_index(path)
    assert len(index.shown) == 40
    assert index.duration_s == pytest.approx(4.0)


def test_joined_recordings_are_cut_and_read_as_one(tmp_path):
    path = joined(tmp_path, "ts")
    _, spans = Segmentation(0.8).spans(path, lambda: None)
    assert [span.end_s for span in spans] == pytest.approx([0.8, 1.6, 2.4])
    clips = list(read_clips(path, spans, frame_spec(2, 64), threads=2))
    assert [numbers_of(clip[:, :, 24:]) for clip in clips] == [[5, 15], [25, 35], [45, 55]]


def test_an_hour_that_is_missing_from_the_clock_is_passed_over(tmp_path):
    first = write_video(tmp_path / "first.ts", 20, codec="libx264", b_frames=2)
    later = [36_000 + number for number in range(20)]
    second = write_video(tmp_path / "second.ts", 20, codec="libx264", b_frames=2, pts=later)
    path = tmp_path / "jump.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    index = read_index(path)
    assert len(index.shown) == 40
    assert index.duration_s == pytest.approx(4.0)
    assert index.missing is None
    assert index.remarks == (
        "has a clock that jumps (number of jumps: 1, the first by +3597.8 s at 2.0 s); its times go on "
        "as in a player",
    )


@pytest.mark.parametrize("name", ["still.mkv", "still.mp4"])
def test_a_frame_that_stays_for_an_hour_stays_where_clocks_do_not_jump(tmp_path, name):
    path = write_video(tmp_path / name, 12, pts=[*range(10), 36_000, 36_001])
    index = read_index(path)
    assert index.remarks == ()
    assert index.duration_s == pytest.approx(3600.2)


def still_while_sound_goes_on(path):
    """A second of pictures, 39 in which the last one stays, and one more; all with sound."""
    with av.open(str(path), "w", format="mpegts") as output:
        film = output.add_stream("mpeg2video", rate=25)
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        sound = output.add_stream("mp2", rate=32_000, layout="mono")
        for pts in (*range(25), *range(1000, 1025)):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), pts % 250, np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = pts, Fraction(1, 25)
            output.mux(film.encode(frame))
        sound.codec_context.open(strict=False)
        for number in range(32_000 * 41 // 1152):
            part = av.AudioFrame.from_ndarray(
                np.zeros((1, 1152), np.int16), format="s16", layout="mono"
            )
            part.sample_rate, part.pts, part.time_base = 32_000, 1152 * number, Fraction(1, 32_000)
            output.mux(sound.encode(part))
        output.mux(film.encode(None))
        output.mux(sound.encode(None))
    return path


def test_a_frame_that_stays_while_sound_goes_on_stays(tmp_path):
    index = read_index(still_while_sound_goes_on(tmp_path / "still.ts"))
    assert index.remarks == ()
    assert index.duration_s == pytest.approx(41.0, abs=0.1)


def test_a_frame_that_stays_is_none_of_the_jumps_beside_it(tmp_path):
    path = still_while_sound_goes_on(tmp_path / "still.ts")
    path.write_bytes(2 * path.read_bytes())
    index = read_index(path)
    assert index.remarks[0].startswith("has a clock that jumps (number of jumps: 1, ")
    assert index.duration_s == pytest.approx(82.0, abs=0.2)


def test_sound_is_asked_only_where_pictures_do_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(packet_index, "read_others", None)
    assert read_index(joined(tmp_path, "ts", sound_s=2.0)).has_jumps


def test_a_recording_whose_first_picture_lies_behind_a_jump_begins_there(tmp_path):
    first = make(tmp_path / "a.ts", Recipe("ts", "libx264", Fraction(25), 40, gop=100, cut=0.4))
    second = make(tmp_path / "b.ts", Recipe("ts", "libx264", Fraction(25), 30, first=40))
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    index = read_index(path)
    assert len(index.shown) == 30
    assert numbers(path, index, [0, 29]) == [40, 69]

import av
import numpy as np
import pytest

from dgl_bench import decode, made_clips
from dgl_bench.decode import FRAME_SIZE, NUM_FRAMES, OURS, Decoder, compare, other_frames
from dgl_bench.made_clips import MadeClip, make_clips
from dgl_runtime.errors import MediaError
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.video import probe
from studies.decode_libraries import DECODERS, centres

TINY = MadeClip("tiny", "short", 2)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two seconds, 160x120 pixels, a keyframe every 12 frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(made_clips.SIZES, "tiny", (160, 120))
        (path,) = make_clips(tmp_path_factory.mktemp("clips"), (TINY,))
    return path


def test_made_clips_have_the_keyframes_and_length_their_name_says(clip):
    assert clip.name == "tiny-short-gop-2s.mp4"
    index = read_index(clip)
    assert index.duration_s == pytest.approx(2)
    assert index.keyframes[:3].tolist() == [0, 12, 24]
    info = probe(clip)
    assert (info.width, info.height, info.num_frames) == (160, 120, 50)


def test_a_clip_that_is_there_is_not_made_again(clip, monkeypatch):
    monkeypatch.setattr(made_clips, "write_clip", None)
    assert make_clips(clip.parent, (TINY,)) == [clip]


def test_our_reading_is_timed_and_its_parts_told(clip, measured, monkeypatch):
    monkeypatch.setattr(decode, "QUICK", (TINY,))
    options = ("--quick", "--clips", clip.parent, "--rounds", 2, "--threads", 1)
    _, ((times,), (work,)) = measured(decode.decode, *options)
    assert times["clip"] == work["clip"] == clip.name
    assert [len(some) for some in times["times_ms"]] == [2, 2]
    assert work["frames"] == 50
    assert 12 <= work["decoded"] < 50


def test_wrong_frames_of_ours_are_an_error(clip):
    frames = DECODERS[OURS].frames(probe(clip), 1)
    assert other_frames(clip, {OURS: frames}) == {OURS: 0}
    frames[3] ^= 1
    with pytest.raises(MediaError, match="our frames differ from a plain pass"):
        other_frames(clip, {OURS: frames})


# ---- the study of others' decoders ------------------------------------------------------------


def works(name):
    """Whether its package is here with all that it needs."""
    try:
        __import__(DECODERS[name].package)
    except (ImportError, RuntimeError, OSError):
        return False
    return True


@pytest.mark.parametrize("name", [name for name in DECODERS if works(name)])
def test_every_decoder_gives_the_same_moments_in_both_forms(clip, name):
    video, decoder = probe(clip), DECODERS[name]
    frames, small = decoder.frames(video, 1), decoder.clip(video, 1)
    assert frames.shape == (NUM_FRAMES, 120, 160, 3)
    assert (small.shape, small.dtype) == ((NUM_FRAMES, 3, FRAME_SIZE, FRAME_SIZE), np.uint8)
    ours = DECODERS[OURS]
    found = other_frames(clip, {OURS: ours.frames(video, 1), name: frames})
    assert found == {OURS: 0, name: 0}
    assert np.abs(small.astype(int) - ours.clip(video, 1)).mean() < 5


def test_centres_are_the_frames_at_the_centres_of_equal_parts():
    assert centres(120) == list(range(5, 120, 10))
    assert centres(5) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4]


def test_other_moments_failures_and_missing_packages_are_told(clip):
    ours = DECODERS[OURS]

    def late(video, threads):
        pictures = ours.frames(video, threads)
        return np.concatenate([pictures[1:], pictures[-1:]])

    def failing(video, threads):
        raise RuntimeError("no such codec\nmore")

    some = {OURS: ours}
    for name, frames in (("late", late), ("failing", failing)):
        some[name] = Decoder(av.__name__, "", "", frames, ours.clip)
    some["absent"] = Decoder("no_such_package", "pip install x", "", late, late)
    report = compare("some", some, [clip], 2, 1)
    rows = {row["decoder"]: row for row in report.tables[0].rows}
    assert rows.keys() == {OURS, "late", "failing"}
    assert {row["clip"] for table in report.tables for row in table.rows} == {clip.name}
    assert (rows[OURS]["other frames"], rows[OURS]["off, grey levels"]) == (0, 0)
    assert rows["late"]["other frames"] == NUM_FRAMES - 1
    assert rows["late"]["ours faster, pictures"].median > 0
    assert rows["failing"]["remark"] == "failed: RuntimeError: no such codec more"
    assert "Not installed, absent: pip install x." in report.notes

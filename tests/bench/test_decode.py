import json
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.cli import bench
from benchmarks.decode import bench_clip, bench_decode, look_at
from benchmarks.decode_clips import MadeClip, make_clips
from benchmarks.decode_report import make_report
from benchmarks.decoders import DECODERS, FRAME_SIZE, NUM_FRAMES, OURS, Video, centres
from click.testing import CliRunner

from benchmarks import decode, decode_clips
from dgl_runtime.errors import MediaError
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.video import probe

TINY = MadeClip("tiny", "short", 2)
INSTALLED = [one for one in DECODERS if one.is_installed]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two seconds, 160x120 pixels, a keyframe every 12 frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(decode_clips.SIZES, "tiny", (160, 120))
        (path,) = make_clips(tmp_path_factory.mktemp("clips"), (TINY,))
    return path


def late(decoder):
    """The decoder, each frame one too late."""

    def frames(video, threads):
        pictures = decoder.frames(video, threads)
        return np.concatenate([pictures[1:], pictures[-1:]])

    return replace(decoder, name="late", frames=frames)


def failing(decoder):
    def frames(video, threads):
        raise RuntimeError("no such codec\nmore")

    return replace(decoder, name="failing", frames=frames)


def test_made_clips_have_the_keyframes_and_length_their_name_says(clip):
    assert clip.name == "tiny-short-gop-2s.mp4"
    index = read_index(clip)
    assert index.duration_s == pytest.approx(2)
    assert index.keyframes[:3].tolist() == [0, 12, 24]
    info = probe(clip)
    assert (info.width, info.height, info.num_frames) == (160, 120, 50)


def test_a_clip_that_is_there_is_not_made_again(clip, monkeypatch):
    monkeypatch.setattr(decode_clips, "write_clip", None)
    assert make_clips(clip.parent, (TINY,)) == [clip]


@pytest.mark.parametrize("decoder", INSTALLED, ids=lambda one: one.name)
def test_every_decoder_gives_the_same_moments_in_both_forms(clip, decoder):
    video = Video(clip, 160, 120)
    assert decoder.frames(video, 1).shape == (NUM_FRAMES, 120, 160, 3)
    small = decoder.clip(video, 1)
    assert (small.shape, small.dtype) == ((NUM_FRAMES, 3, FRAME_SIZE, FRAME_SIZE), np.uint8)
    result = bench_clip(clip, [DECODERS[0], decoder][: 1 + (decoder.name != OURS)], 1, 1)
    assert result.failures == {}
    assert result.sights[decoder.name].other_frames == 0
    assert result.sights[decoder.name].pixels_off < 5


def test_centres_are_the_frames_at_the_centres_of_equal_parts():
    assert centres(120) == list(range(5, 120, 10))
    assert centres(5) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4]


def test_other_moments_and_failures_are_told(clip, monkeypatch):
    ours = DECODERS[0]
    some = (ours, late(ours), failing(ours))
    monkeypatch.setattr(decode, "DECODERS", some)
    monkeypatch.setattr("benchmarks.decode_report.DECODERS", some)
    result = bench_decode([clip], threads=1, rounds=2)
    (one,) = result.clips
    assert one.failures == {"failing": "RuntimeError: no such codec more"}
    assert one.sights["late"].other_frames == NUM_FRAMES - 1
    assert one.sights[OURS] == decode.Sight(0, 0.0)
    page = make_report(result).to_markdown()
    assert "11 of 12" in page
    assert "failing failed on tiny-short-gop-2s.mp4: RuntimeError: no such codec more." in page


def test_wrong_frames_of_ours_are_an_error(clip):
    video = Video(clip, 160, 120)
    frames = DECODERS[0].frames(video, 1)
    frames[3] ^= 1
    with pytest.raises(MediaError, match="our frames differ from a plain pass"):
        look_at(clip, {OURS: frames}, {OURS: DECODERS[0].clip(video, 1)})


def test_a_slow_decoder_is_timed_once(clip):
    ours = DECODERS[0]

    def often(read):
        return lambda video, threads: [read(video, threads) for _ in range(30)][-1]

    slow = replace(ours, name="slow", frames=often(ours.frames), clip=often(ours.clip))
    result = bench_clip(clip, [ours, slow], 1, 2)
    for form in ("frames", "clip"):
        assert result.once_ms[form].keys() == {"slow"}
        assert result.paired[form].times_ms.keys() == {OURS}


def test_missing_decoders_are_rows_that_say_how_to_install(clip, tmp_path, monkeypatch):
    absent = replace(DECODERS[0], name="absent", package="no_such_package", install="pip install x")
    for module in ("benchmarks.decode", "benchmarks.decode_report"):
        monkeypatch.setattr(f"{module}.DECODERS", (DECODERS[0], absent))
    monkeypatch.setattr(decode_clips, "QUICK", (TINY,))
    command = ["decode", "--quick", "--clips", str(clip.parent), "--rounds", "2", "--threads", "1"]
    result = CliRunner().invoke(bench, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    files = sorted((tmp_path / "out").iterdir())
    assert [path.suffix for path in files] == [".json", ".md"]
    assert result.stdout == files[1].read_text()
    assert "absent: not installed (pip install x)" in result.stdout
    document = json.loads(files[0].read_text())
    assert document["missing"] == {"absent": "pip install x"}
    (measured,) = document["clips"]
    assert len(measured["clip"]["times_ms"][OURS]) == 2
    assert measured["work"]["num_frames"] == 50
    assert 12 <= measured["work"]["frames_decoded"] < 50

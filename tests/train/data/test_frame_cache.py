"""Frames on disk: what is stored comes back, whoever is killed or damages what."""

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from dgl_runtime.media.video import Span
from dgl_train.data import batches as data
from dgl_train.data import clip_frames
from dgl_train.data.batches import (
    CHOICES,
    FrameFormat,
    evaluation_batches,
    read_batches,
    training_batches,
)
from dgl_train.data.frame_cache import FrameCache, clip_key
from tests.helpers.specs import frame_spec

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16), np.uint8)
ENTRY_GB = (FRAMES.nbytes + 6 * 4) / 1e9
ROWS = np.array([1, 4, 5])
KEY, OTHER = "0" * 64, "1" * 64


@pytest.fixture
def cache(tmp_path):
    return FrameCache(tmp_path / "frames", 1.0)


def stored(cache):
    return sorted(path for path in cache.folder.glob("*/*"))


def is_there(cache, key):
    frames = cache.get(key, ROWS, 16)
    return frames is not None and np.array_equal(frames, FRAMES[ROWS])


def read(clips, form, batches):
    return np.concatenate([batch.frames for batch in read_batches(clips, form, batches)])


def test_the_frames_asked_for_come_back(cache):
    assert cache.get(KEY, ROWS, 16) is None
    cache.put(KEY, FRAMES)
    assert is_there(cache, KEY)


@pytest.mark.parametrize("epoch", [None, 0, 1])
def test_what_is_seen_does_not_depend_on_what_is_stored(clips, cache, epoch):
    plan = [[(number, epoch) for number in range(8)]]
    full = FrameCache(cache.folder.with_name("full"), 0.0)
    first, again, never = (
        read(clips, FrameFormat(frame_spec(2, 16), seed=7, cache=one), plan)
        for one in (cache, cache, full)
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, never)
    assert len(stored(cache)) == 8
    assert stored(full) == []


def test_evaluation_sees_the_same_with_and_without_a_cache(clips, cache):
    plan = list(evaluation_batches(8, 3))
    kept = [
        read(clips, FrameFormat(frame_spec(3, 16), cache=one), plan) for one in (None, cache, cache)
    ]
    np.testing.assert_array_equal(kept[0], kept[1])
    np.testing.assert_array_equal(kept[0], kept[2])


def test_training_sees_every_moment_of_a_segment_in_time(clips, cache):
    form = FrameFormat(frame_spec(1, 16), seed=7, cache=cache)
    seen = read(clips, form, [[(0, epoch)] for epoch in range(20)])
    assert len({clip.tobytes() for clip in seen}) == CHOICES


def test_the_second_epoch_and_evaluation_open_no_video(clips, cache, monkeypatch):
    form = FrameFormat(frame_spec(2, 16), cache=cache)
    plan = list(training_batches(8, batch_size=4, epochs=2, seed=1))
    read(clips, form, plan[:2])
    monkeypatch.delattr(clip_frames, "read_clips")
    read(clips, form, [*plan[2:], *evaluation_batches(8, 4)])


def test_workers_fill_one_cache(clips, cache):
    form = FrameFormat(frame_spec(2, 16), cache=cache)
    plan = list(evaluation_batches(8, 2))
    helped = [batch.frames for batch in read_batches(clips, form, plan, num_workers=2)]
    assert len(stored(cache)) == 8
    np.testing.assert_array_equal(np.concatenate(helped), read(clips, form, plan))


def test_the_limit_is_kept_and_what_is_stored_stays(cache):
    cache.limit_gb = 2.5 * ENTRY_GB
    keys = [str(number) * 64 for number in range(4)]
    for key in keys:
        cache.put(key, FRAMES)
    assert [is_there(cache, key) for key in keys] == [True, True, False, False]


def test_two_processes_count_what_the_other_has_written(cache):
    other = FrameCache(cache.folder, 2.5 * ENTRY_GB)
    cache.limit_gb = other.limit_gb
    for number in range(4):
        (cache, other)[number % 2].put(str(number) * 64, FRAMES)
    assert len(stored(cache)) == 2


@pytest.mark.parametrize("limit_gb", [1.0, ENTRY_GB])  # also in a folder that is full
@pytest.mark.parametrize("damage", ["empty", "short", "flipped"])
def test_a_damaged_file_is_a_miss_and_is_written_again(cache, damage, limit_gb):
    cache.limit_gb = limit_gb
    cache.put(KEY, FRAMES)
    (path,) = stored(cache)
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes({"empty": b"", "short": whole[:-1], "flipped": flipped}[damage])
    assert cache.get(KEY, ROWS, 16) is None
    cache.put(KEY, FRAMES)
    assert is_there(cache, KEY)


def put_often(folder):
    cache = FrameCache(folder, 1.0)
    found = []
    for _ in range(100):
        cache.put(KEY, FRAMES)
        found.append(is_there(cache, KEY))
    return all(found)


def test_two_processes_may_write_one_key_at_once(cache):
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        assert all(pool.map(put_often, [cache.folder] * 2))
    assert len(stored(cache)) == 1


def test_a_process_killed_before_the_rename_leaves_a_usable_cache(cache):
    script = (
        "import os, signal, sys, numpy as np; from pathlib import Path\n"
        "from dgl_train.data.frame_cache import FrameCache\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "FrameCache(Path(sys.argv[1]), 1.0).put('0' * 64, np.zeros((6, 3, 16, 16), np.uint8))"
    )
    subprocess.run([sys.executable, "-c", script, str(cache.folder)], check=False)
    (unfinished,) = stored(cache)
    assert cache.get(KEY, ROWS, 16) is None
    cache.put(KEY, FRAMES)
    assert is_there(cache, KEY)
    os.utime(unfinished, (0, 0))
    FrameCache(cache.folder, 1.0).put(OTHER, FRAMES)
    assert unfinished not in stored(cache)
    assert len(stored(cache)) == 2


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path, capsys):
    tmp_path.joinpath("file").write_text("in the way")
    cache = FrameCache(tmp_path / "file", 1.0)
    for _ in range(2):
        cache.put(KEY, FRAMES)
    assert cache.get(KEY, ROWS, 16) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Warning: frames cannot be kept in {cache.folder}")


def test_a_process_that_reads_passes_its_warning_on(clips, tmp_path, capsys):
    tmp_path.joinpath("file").write_text("in the way")
    form = FrameFormat(frame_spec(2, 16), cache=FrameCache(tmp_path / "file", 1.0))
    assert len(list(read_batches(clips, form, evaluation_batches(8, 4), num_workers=1))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Warning: frames cannot be kept in {form.cache.folder}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_once_and_leaves_nothing(cache, monkeypatch, capsys):
    write_bytes = Path.write_bytes
    monkeypatch.setattr(
        Path, "write_bytes", lambda _, pixels: write_bytes(Path("/dev/full"), pixels)
    )
    for key in (KEY, OTHER):
        cache.put(key, FRAMES)
    assert stored(cache) == []
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_key_names_everything_that_frames_depend_on(clips, tmp_path):
    video = tmp_path / "video.mp4"
    video.write_bytes(clips[0].video.read_bytes())
    spec = frame_spec(6, 16)
    asked = [(Span(0, 1), spec), (Span(0.1, 1), spec), (Span(0, 2), spec)]
    others = {"num_frames": 9, "size": 32, "resize": "squash", "interpolation": "bilinear"}
    asked += [(Span(0, 1), replace(spec, **{name: value})) for name, value in others.items()]
    keys = [clip_key(video, *one) for one in asked]
    os.utime(video, ns=(1, 1))
    keys.append(clip_key(video, *asked[0]))
    video.write_bytes(clips[1].video.read_bytes() + b"0")
    os.utime(video, ns=(1, 1))
    keys.append(clip_key(video, *asked[0]))
    assert len(set(keys)) == len(keys) == 9
    assert clip_key(video, *asked[0]) == keys[-1]


def test_a_video_that_is_missing_is_still_the_readers_error(clips, cache, tmp_path):
    gone = replace(clips[0], video=tmp_path / "gone.mp4")
    with pytest.raises(data.MediaError, match=r"gone\.mp4 does not exist"):
        read([gone], FrameFormat(frame_spec(2, 16), cache=cache), [[(0, None)]])

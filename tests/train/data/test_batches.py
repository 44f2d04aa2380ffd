"""Batches of frames: the order of clips and the times of frames."""

import subprocess
import sys
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from dgl_runtime.errors import MediaError
from dgl_runtime.media.video import Span, read_clips
from dgl_train.data.batches import (
    FrameFormat,
    evaluation_batches,
    read_batches,
    share,
    training_batches,
)
from tests.helpers.specs import frame_spec

FORM = FrameFormat(frame_spec(2, 16), seed=7)
PLAN = {"batch_size": 3, "epochs": 3, "seed": 1}


def test_every_epoch_is_another_order_of_the_clips():
    batches = list(training_batches(9, **PLAN))
    assert [len(batch) for batch in batches] == [3] * 9
    epochs = [[*batches[i], *batches[i + 1], *batches[i + 2]] for i in (0, 3, 6)]
    for number, epoch in enumerate(epochs):
        assert {item[1] for item in epoch} == {number}
        assert sorted(item[0] for item in epoch) == list(range(9))
    assert [n for n, _ in epochs[0]] != [n for n, _ in epochs[1]]


@pytest.mark.parametrize("first_step", range(10))
def test_batches_from_any_step_on_are_those_of_the_whole_run(first_step):
    whole = list(training_batches(10, **PLAN))
    assert list(training_batches(10, first_step=first_step, **PLAN)) == whole[first_step:]


def test_few_clips_make_one_small_batch_an_epoch():
    assert [len(batch) for batch in training_batches(2, **PLAN)] == [2, 2, 2]


def test_frame_times_depend_on_seed_epoch_and_clip_alone(clips):
    def frames(form, item):
        return next(read_batches(clips, form, [[item]])).frames.numpy()

    np.testing.assert_array_equal(frames(FORM, (0, 3)), frames(FORM, (0, 3)))
    drawn = [frames(replace(FORM, seed=seed), (0, epoch)) for seed, epoch in np.ndindex(4, 4)]
    assert len({one.tobytes() for one in drawn}) > 4


def test_evaluation_sees_what_serving_sees(clips):
    part = replace(clips[1], start_s=0.2, end_s=0.5)
    batches = list(read_batches([clips[0], part, clips[2]], FORM, evaluation_batches(3, 2)))
    assert [batch.numbers for batch in batches] == [[0, 1], [2]]
    (whole,) = read_clips(clips[0].video, [Span(0, 99)], frame_spec(2, 16))
    (cut,) = read_clips(part.video, [Span(0.2, 0.5)], frame_spec(2, 16))
    np.testing.assert_array_equal(batches[0].frames, np.stack([whole, cut]))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_video_is_a_media_error_on_one_line(tmp_path, clips, num_workers):
    broken = replace(clips[0], video=tmp_path / "broken.mp4")
    broken.video.write_bytes(b"no video")
    batches = read_batches(
        [clips[1], broken], FORM, evaluation_batches(2, 2), num_workers=num_workers
    )
    with pytest.raises(MediaError) as caught:
        next(batches)
    assert str(caught.value).startswith(str(broken.video))
    assert "\n" not in str(caught.value)


def test_workers_read_the_same_frames(clips):
    plan = list(islice(training_batches(8, **PLAN), 4))
    alone, helped = (list(read_batches(clips, FORM, plan, num_workers=n)) for n in (0, 1))
    for one, other in zip(alone, helped, strict=True):
        assert one.numbers == other.numbers
        np.testing.assert_array_equal(one.frames, other.frames)


@pytest.mark.parametrize("world", [1, 2, 4, 5])
def test_shares_of_a_batch_are_the_batch_and_about_equal(world):
    whole = list(training_batches(9, batch_size=4, epochs=2, seed=1))
    shares = [list(share(whole, rank, world)) for rank in range(world)]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert [item for part in parts for item in part] == batch
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("num_clips", "num_workers", "expected"), [(3, 8, 3), (8, 2, 2)])
def test_no_more_workers_start_than_there_are_clips(
    clips, started_decoders, num_clips, num_workers, expected
):
    plan = evaluation_batches(num_clips, 2)
    batches = list(read_batches(clips, FORM, plan, num_workers=num_workers))
    assert [number for batch in batches for number in batch.numbers] == list(range(num_clips))
    assert len(started_decoders) <= expected
    assert all(one.process.poll() is not None for one in started_decoders)


ENDLESS = """
import sys
from pathlib import Path
from dgl_runtime.bundle.input_spec import clip_frames
from dgl_train.data.batches import FrameFormat, read_batches, training_batches
from dgl_train.data.datasets import CaptionedClip

if __name__ == "__main__":
    clips = [CaptionedClip(Path(sys.argv[1]), "the ant")] * 8
    plan = training_batches(8, batch_size=2, epochs=10**6, seed=0)
    form = FrameFormat(clip_frames(2, 16, (0, 0, 0), (1, 1, 1)))
    for batch in read_batches(clips, form, plan, num_workers=2):
        print("read", flush=True)
"""


def test_workers_do_not_outlive_a_killed_run(clips):
    run = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(clips[0].video)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert run.stdout.readline() == b"read\n"
    run.kill()
    run.communicate(timeout=30)  # the pipe ends with the last process that can write to it

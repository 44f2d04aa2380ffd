"""Worker processes that look into videos: what a crash, a hang, or a bomb costs."""

import os
import signal
import time

import av
import numpy as np
import pytest

from dgl_runtime.decoding.decode_pool import Clips, DecodePool, Done, Job, Seen
from dgl_runtime.decoding.decode_process import DecodeProcess, Limits
from dgl_runtime.errors import MediaError
from dgl_runtime.media.preview import write_preview
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.media.video import read_clips
from dgl_runtime.media.windows import Span
from tests.helpers.odd_videos import numbers_of, write_video, write_video_with_tones
from tests.helpers.specs import frame_spec

SPEC = frame_spec(4, 32)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{number}.mp4", 20 + number) for number in range(6)]


def read_all(
    videos, *, jobs=2, limits=None, segmentation=None, choose=lambda seen: range(len(seen.spans))
):
    with DecodePool(segmentation or Segmentation(1.0), SPEC, jobs=jobs, limits=limits) as pool:
        return list(pool.read(map(Job, videos), choose))


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_every_clip_comes_once_with_the_frames_that_reading_here_gives(videos, jobs):
    found = read_all(videos, jobs=jobs)
    for video in videos:
        mine = [
            one
            for one in found
            if (one.path if not isinstance(one, Clips) else one.seen.path) == video
        ]
        assert [type(one) for one in mine] == [Seen, Clips, Done]
        seen, clips, done = mine
        expected = np.stack(list(read_clips(video, seen.spans, SPEC)))
        np.testing.assert_array_equal(clips.frames, expected)
        assert clips.numbers == tuple(range(len(seen.spans)))
        assert done == Done(video, seen.content, seen, None)


def test_only_what_was_chosen_is_read(videos):
    found = read_all(videos[:1], choose=lambda seen: [1])
    (clips,) = (one for one in found if isinstance(one, Clips))
    assert clips.numbers == (1,)
    assert numbers_of(clips.frames[0]) == [11, 13, 16, 18]
    assert [type(one) for one in read_all(videos[:1], choose=lambda seen: [])] == [Seen, Done]


def broken(found):
    return {one.path: one.fault for one in found if isinstance(one, Done) and one.fault}


LOST = "lost its decoder ({}). Try it again, with more memory or fewer processes."


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (signal.SIGSEGV, "crashed the decoder (SIGSEGV). Play it to check, and re-encode it."),
        (signal.SIGKILL, LOST.format("SIGKILL")),
        (signal.SIGRTMIN + 6, LOST.format("signal 40")),  # has no name
    ],
)
def test_a_worker_that_dies_costs_its_video_alone(videos, how, told, started_decoders):
    def choose(seen):
        if seen.path == videos[2]:
            os.kill(started_decoders[-1].process.pid, how)
        return range(len(seen.spans))

    found = read_all(videos, jobs=1, choose=choose)
    assert len(started_decoders) == 2
    assert broken(found) == {videos[2]: f"{videos[2]} {told}"}
    assert sum(isinstance(one, Done) for one in found) == len(videos)


def test_a_worker_that_hangs_is_given_up(videos, started_decoders):
    def choose(seen):
        if seen.path == videos[2]:
            os.kill(started_decoders[-1].process.pid, signal.SIGSTOP)
        return range(len(seen.spans))

    found = read_all(videos, jobs=1, choose=choose, limits=Limits(silent_s=3.0))
    assert list(broken(found)) == [videos[2]]
    assert "took more than 3 s without any progress" in broken(found)[videos[2]]
    assert all(one.process.poll() is not None for one in started_decoders)


def test_a_video_that_needs_too_much_memory_is_reported(tmp_path):
    """8,000 x 8,000 pixels are 192 MB as RGB and more on the way; here that is too much."""
    large = write_video(tmp_path / "large.mp4", 2, codec="mpeg4", size=(8000, 8000))
    small = write_video(tmp_path / "small.mp4", 20)
    found = read_all([large, small], jobs=1, limits=Limits(most_bytes=700 * 2**20))
    assert list(broken(found)) == [large]


def test_no_process_is_left_behind(videos):
    with DecodePool(Segmentation(), SPEC, jobs=3) as pool:
        reading = pool.read(map(Job, videos), lambda seen: [0])
        next(reading)
        processes = [process.process for process in pool._workers._all]
        assert processes
    assert all(process.poll() is not None for process in processes)


def test_a_worker_ends_when_its_parent_has_gone(videos):
    process = DecodeProcess.start(Limits())
    process.line.close()
    deadline = time.monotonic() + 20
    while process.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.process.returncode == 0


def test_pictures_and_previews_are_made_apart(videos, tmp_path):
    from PIL import Image

    process = DecodeProcess.start(Limits())
    made = process.make({"path": str(videos[0]), "picture": {"second": 1.5, "side": 32}})
    (tmp_path / "p.jpg").write_bytes(made)
    with Image.open(tmp_path / "p.jpg") as image:
        assert (image.size, image.format) == ((32, 24), "JPEG")
    out = tmp_path / "p.mp4"
    span = {"start_s": 0.5, "end_s": 1.5, "out": str(out)}
    assert process.make({"path": str(videos[0]), "preview": span}) is None
    with av.open(str(out)) as container:
        frames = list(container.decode(video=0))
        assert not container.streams.audio
    assert [round(float(frame.time), 2) for frame in frames] == [
        round(0.1 * n, 2) for n in range(11)
    ]
    with pytest.raises(MediaError, match="does not exist"):
        process.make({"path": str(tmp_path / "gone.mp4"), "picture": {"second": 0, "side": 32}})
    process.close()


def test_a_preview_has_the_sound_of_its_moment(tmp_path):
    """A tone that is 300 Hz in the first two seconds and 900 Hz in the last two."""
    video = write_video_with_tones(tmp_path / "tones.mkv", (300, 900), seconds=2)
    for start_s, tone in ((0.5, 300), (2.5, 900)):
        write_preview(video, start_s, start_s + 1, str(tmp_path / "p.mp4"), lambda: None)
        with av.open(str(tmp_path / "p.mp4")) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            frames = list(container.decode(audio=0))
        samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
        assert len(samples) / frames[0].sample_rate == pytest.approx(1.0, abs=0.15)
        loudest = np.abs(np.fft.rfft(samples)).argmax() * frames[0].sample_rate / len(samples)
        assert loudest == pytest.approx(tone, abs=5)


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        (Segmentation(), [Span(0.0, 2.0)]),
        (Segmentation(1.0), [Span(0.0, 1.0), Span(1.0, 2.0)]),
        (Segmentation(1.0, 0.5), [Span(0.0, 1.0), Span(0.5, 1.5), Span(1.0, 2.0)]),
        (Segmentation(0.5, around_s=1.25), [Span(1.0, 1.5)]),
        (Segmentation(0.5, around_s=0.1), [Span(0.0, 0.35)]),
        (Segmentation(around_s=1.0), [Span(0.0, 2.0)]),
    ],
)
def test_segmentations_keep_their_meaning_as_texts(videos, segmentation, expected):
    assert Segmentation.from_text(str(segmentation)) == segmentation
    assert segmentation.spans(videos[0], lambda: None) == (2.0, expected)


def test_a_moment_after_the_end_is_refused(videos):
    with pytest.raises(MediaError, match="lasts 2 s, so it has no second 5"):
        Segmentation(1.0, around_s=5.0).spans(videos[0], lambda: None)

"""One video, read in this process: what is told of it, in which order, and what is wrong with it."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from dgl_runtime.decoding import read_video as reading
from dgl_runtime.decoding.read_video import Clips, Done, Job, ReadHere, Seen, read_video
from dgl_runtime.errors import MediaError
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.media.windows import Span
from tests.helpers.odd_videos import numbers_of, truncate, write_video
from tests.helpers.specs import frame_spec

SPEC = frame_spec(2, 32)
ENDS = (  # a video of ten seconds, of whose bytes 60 % are left
    "ends after 4.4 s of the 6.0 s it states: the rest is missing, or its header is wrong. "
    "Copy or download it again."
)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def video(tmp_path):
    """Ten clips of a second, of ten frames each."""
    return write_video(tmp_path / "video.mp4", 100)


def test_what_is_seen_comes_first_then_clips_some_at_once_then_the_end(video):
    seen, *clips, done = read_video(video, Segmentation(1.0), SPEC)
    spans = tuple(Span(float(n), n + 1.0) for n in range(10))
    assert seen == Seen(video, sha256(video), 10.0, spans)
    assert [one.numbers for one in clips] == [(0, 1, 2, 3, 4, 5, 6, 7), (8, 9)]
    for one in clips:
        assert one.seen == seen
        assert (one.frames.dtype, one.frames.shape[1:]) == (np.uint8, (2, 3, 32, 32))
        found = [numbers_of(clip) for clip in one.frames]
        assert found == [[10 * n + 2, 10 * n + 7] for n in one.numbers]
    assert done == Done(video, seen.content, seen, None)


def test_a_content_that_is_known_is_not_looked_into(video):
    asked = []

    def is_known(content):
        asked.append(content)
        return True

    content = sha256(video)
    assert list(read_video(video, Segmentation(), SPEC, is_known=is_known)) == [
        Done(video, content, None, None)
    ]
    list(read_video(video, Segmentation(), SPEC, content="told", is_known=is_known))
    assert asked == [content, "told"]
    (seen, *_) = read_video(video, Segmentation(), SPEC, content="told", is_known=lambda _: False)
    assert seen.content == "told"
    (seen, *_) = read_video(video, Segmentation(), SPEC, content="told")
    assert seen.content == "told"


@pytest.fixture
def odd_seconds_fail(monkeypatch):
    """Clips that begin at an odd second do not decode."""
    real = reading.read_clips

    def read_clips(path, spans, spec):
        for span, clip in zip(spans, real(path, spans, spec), strict=True):
            if span.start_s % 2:
                raise MediaError(f"{path} breaks at second {span.start_s:g}.")
            yield clip

    monkeypatch.setattr(reading, "read_clips", read_clips)


def test_stretches_that_do_not_decode_cost_their_clips_alone(video, odd_seconds_fail, monkeypatch):
    seen, clips, done = read_video(video, Segmentation(1.0), SPEC)
    assert clips.numbers == (0, 2, 4, 6, 8)
    assert [numbers_of(clip)[0] for clip in clips.frames] == [2, 22, 42, 62, 82]
    fault = f"{video} breaks at second 9. 5 of 10 clips of it were read."
    assert done == Done(video, seen.content, seen, fault, is_unreadable=True)
    *_, done = read_video(video, Segmentation(1.0), SPEC, lambda _: [3])
    assert done.fault == f"{video} breaks at second 3."
    monkeypatch.setattr(reading, "_GIVE_UP", 2)
    _, clips, done = read_video(video, Segmentation(1.0), SPEC)
    assert clips.numbers == (0, 2)
    assert done.fault == f"{video} breaks at second 3. 2 of 10 clips of it were read."


def test_work_that_goes_on_is_signed(video):
    signed = []
    for found in read_video(video, Segmentation(1.0), SPEC, sign=lambda: signed.append(1)):
        if isinstance(found, Seen):
            signed.clear()
    assert len(signed) == 10  # of each clip
    for found in read_video(video, Segmentation(1.0), None, sign=lambda: signed.append(1)):
        if isinstance(found, Seen):
            signed.clear()
    assert len(signed) == 100  # of each frame


def test_without_a_way_with_frames_every_frame_is_decoded_and_no_clip_comes(video):
    seen, done = read_video(video, Segmentation(1.0), None)
    assert (len(seen.spans), done) == (10, Done(video, seen.content, seen, None))


def test_a_picture_is_one_clip_and_no_video(tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    assert [type(one) for one in read_video(picture, Segmentation(), SPEC)] == [Seen, Clips, Done]
    seen, done = read_video(picture, Segmentation(), None)
    fault = f"{picture} is a picture, expected a video. Get it again."
    assert done == Done(picture, seen.content, seen, fault, is_unreadable=True)


def test_a_video_that_is_cut_off_is_read_and_what_is_missing_is_told(tmp_path):
    video = truncate(write_video(tmp_path / "cut.avi", 100), 0.6)
    for spec, kinds in ((SPEC, [Seen, Clips, Done]), (None, [Seen, Done])):
        found = list(read_video(video, Segmentation(1.0), spec))
        assert [type(one) for one in found] == kinds
        assert found[-1].is_unreadable
        assert found[-1].seen == found[0]
        assert found[-1].fault == f"{video} {ENDS}"


def test_of_a_video_that_is_cut_off_the_missing_part_is_told_first(tmp_path, odd_seconds_fail):
    video = truncate(write_video(tmp_path / "cut.avi", 100), 0.6)
    *_, done = read_video(video, Segmentation(2.0), SPEC, lambda _: [0])
    assert done.fault == f"{video} {ENDS}"
    *_, done = read_video(video, Segmentation(1.0), SPEC, lambda _: [0, 1])
    broken = f"{video} breaks at second 1. 1 of 2 clips of it were read."
    assert done.fault == f"{video} {ENDS} {broken}"


def test_what_cannot_be_opened_is_the_file_s_fault(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    for name in ("noise.mp4", "gone.mp4"):
        (done,) = read_video(tmp_path / name, Segmentation(), SPEC)
        assert (done.seen, done.is_unreadable) == (None, True)
        assert done.fault.startswith(str(tmp_path / name))
        assert "\n" not in done.fault


@pytest.mark.parametrize("where", ["choose", "is_known"])
def test_what_a_callback_raises_is_not_the_file_s_fault(video, where):
    def fail(_):
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        list(read_video(video, Segmentation(), SPEC, **{where: fail}))


def test_videos_are_read_one_after_the_other_until_it_is_stopped(tmp_path):
    paths = [write_video(tmp_path / f"{number}.mp4", 10) for number in range(3)]
    reader = ReadHere(Segmentation(), SPEC)
    ended = []
    for found in reader.read([Job(path, f"content of {path.name}") for path in paths]):
        if isinstance(found, Done):
            ended.append((found.path, found.content))
            if len(ended) == 2:
                reader.stop()
    assert ended == [(path, f"content of {path.name}") for path in paths[:2]]
    known = ReadHere(Segmentation(), SPEC).read([Job(paths[0])], is_known=lambda _: True)
    assert [type(one) for one in known] == [Done]
    chosen = ReadHere(Segmentation(), SPEC).read([Job(paths[0])], lambda seen: [])
    assert [type(one) for one in chosen] == [Seen, Done]

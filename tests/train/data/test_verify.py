"""Videos are verified by decoding them: all faults found and named, nothing examined twice."""

import csv
import shutil

import av
import pytest

from dgl_runtime.decoding import read_video as reading
from dgl_runtime.errors import ConfigError
from dgl_runtime.media.segmentation import Segmentation
from dgl_train.data.captioned_clip import CaptionedClip
from dgl_train.data.verify import examine_video, find_faults, verify_videos, write_dropped
from tests.helpers.annotations import damage_twenty
from tests.helpers.odd_videos import write_video
from tests.helpers.tiny import write_tiny_clips


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of findings for each test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/dgl-retrieval"


@pytest.fixture
def opened(monkeypatch):
    """The videos that were opened, in order."""
    seen, real = [], Segmentation.spans

    def spans(segmentation, path, *_):
        seen.append(path.name)
        return real(segmentation, path, *_)

    monkeypatch.setattr(Segmentation, "spans", spans)
    return seen


def captioned(paths, **more):
    return [CaptionedClip(path, "a clip", **more) for path in paths]


@pytest.mark.parametrize("jobs", [1, 2])
def test_twenty_damaged_videos_are_named_and_left_out(tmp_path, jobs):
    good = write_tiny_clips(tmp_path / "videos", 16)  # with the damaged ones: enough for processes
    damaged = damage_twenty(tmp_path / "videos")
    verified = verify_videos(captioned(damaged) + good, jobs=jobs, progress=False)
    assert verified.clips == good
    assert sorted(verified.faults) == sorted(damaged)
    reasons = {path.stem[7:-1]: reason for path, reason in verified.faults.items()}
    assert reasons["_empty"].startswith("this video is empty (0 bytes)")
    assert reasons["_text"].startswith("this video is not a video or is damaged")
    assert reasons["_cut_off"].startswith("this video ends after 3.0 s of the 7.0 s it states")
    assert reasons["_audio"].startswith("this video has no picture stream, only: audio")
    assert reasons["_picture"].startswith("this video is a picture")
    assert reasons["_folder"].startswith("this video is a folder")
    assert reasons["_gone"].startswith("this video does not exist")
    assert all("\n" not in reason for reason in reasons.values())


def test_damage_between_frames_that_are_whole_is_found(tmp_path):
    video = write_video(tmp_path / "hole.mp4", 250, codec="libx264", gop=100)
    content = bytearray(video.read_bytes())
    hole = slice(int(0.3 * len(content)), int(0.6 * len(content)))
    content[hole] = bytes(len(content[hole]))
    video.write_bytes(content)
    fault = examine_video(video).fault
    assert fault is not None
    assert "cannot be decoded at second" in fault


@pytest.mark.parametrize("kind", ["mkv", "avi", "mov", "webm"])
def test_whole_videos_of_other_containers_are_not_taken_for_cut_off(tmp_path, kind):
    codec = "libvpx" if kind == "webm" else "libx264"
    path = write_video(tmp_path / f"whole.{kind}", 40, codec=codec)
    assert examine_video(path).fault is None


def test_a_clip_cut_out_without_encoding_it_again_is_not_taken_for_cut_off(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 100, codec="libx264", gop=50)
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        (stream,) = source.streams.video
        copied = target.add_stream_from_template(stream)
        start = int(3.0 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - start, packet.dts - start
                packet.stream = copied
                target.mux(packet)
    finding = examine_video(cut)  # the 3 s before its beginning are in the file, but not shown
    assert (round(finding.end_s, 3), finding.fault) == (7.0, None)


def test_nothing_is_opened_twice(tmp_path, opened):
    clips = write_tiny_clips(tmp_path / "videos", 3)
    broken = tmp_path / "videos/broken.mp4"
    broken.write_text("no video")
    first = find_faults(clips + captioned([broken]), jobs=1, progress=False)
    assert opened == ["train0.mp4", "train1.mp4", "train2.mp4", "broken.mp4"]
    assert find_faults(clips + captioned([broken]), jobs=1, progress=False) == first
    assert len(opened) == 4


def test_the_second_run_does_not_even_read_the_files(tmp_path, monkeypatch):
    clips = write_tiny_clips(tmp_path / "videos", 3)
    find_faults(clips, jobs=1, progress=False)
    monkeypatch.delattr(reading, "content_hash")
    assert find_faults(clips, jobs=1, progress=False).clips == clips


def test_a_changed_video_is_examined_again_and_a_renamed_one_is_not(tmp_path, opened):
    paths = [clip.video for clip in write_tiny_clips(tmp_path / "videos", 2)]
    find_faults(captioned(paths), jobs=1, progress=False)
    changed, renamed = paths[0], paths[1].rename(tmp_path / "videos/renamed.mp4")
    changed.write_bytes(b"x" * changed.stat().st_size)  # of the same size
    verified = find_faults(captioned([changed, renamed]), jobs=1, progress=False)
    assert opened == ["train0.mp4", "train1.mp4", "train0.mp4"]
    assert list(verified.faults) == [changed]


def test_a_reason_never_names_the_file_it_was_found_in_first(tmp_path, opened):
    path = tmp_path / "broken.mp4"
    path.write_text("no video")
    copy = tmp_path / "copy.mp4"
    shutil.copy(path, copy)
    faults = find_faults(captioned([path]), jobs=1, progress=False).faults
    assert find_faults(captioned([copy]), jobs=1, progress=False).faults == {copy: faults[path]}
    assert "broken.mp4" not in faults[path]
    assert opened == ["broken.mp4"]


def test_an_interrupted_verification_goes_on_where_it_was(tmp_path, monkeypatch, opened):
    clips = write_tiny_clips(tmp_path / "videos", 5)
    real = reading.content_hash

    def interrupt(path, *more):
        if len(opened) == 3:
            raise KeyboardInterrupt
        return real(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "content_hash", interrupt)
        with pytest.raises(KeyboardInterrupt):
            find_faults(clips, jobs=1, progress=False)
    assert len(opened) == 3
    assert find_faults(clips, jobs=1, progress=False).clips == clips
    assert opened == [clip.video.name for clip in clips]


def test_a_video_of_many_captions_is_examined_once(tmp_path, opened):
    (clip,) = write_tiny_clips(tmp_path / "videos", 1)
    assert len(verify_videos([clip] * 20, progress=False).clips) == 20
    assert opened == ["train0.mp4"]


def test_a_clip_outside_its_video_is_left_out_and_the_others_stay(tmp_path):
    path = write_video(tmp_path / "two_seconds.mp4", 20)
    inside, outside = captioned([path], start_s=1.0, end_s=30.0), captioned([path], start_s=2.5)
    verified = find_faults(inside + outside, progress=False)
    assert verified.clips == inside
    assert verified.faults == {
        path: "its clip from 2.5 s on lies outside: this video lasts 2 s. Check the times."
    }


def test_a_split_of_which_nothing_is_left_is_an_error_with_reasons(tmp_path):
    train = write_tiny_clips(tmp_path / "videos", 2)
    gone = [tmp_path / f"gone{number}.mp4" for number in range(5)]
    with pytest.raises(ConfigError) as caught:
        verify_videos(train + captioned(gone, split="test"), progress=False)
    assert str(caught.value) == (
        f"no video of split test is there, of 5; the first is looked for as {gone[0]}. Check "
        "--data-root; docs/datasets.md says where videos lie."
    )
    for path in gone[1:]:
        path.touch()
    with pytest.raises(ConfigError) as caught:
        verify_videos(train + captioned(gone, split="test"), progress=False)
    empty = "this video is empty (0 bytes), expected a video. Copy or download it again."
    assert str(caught.value) == (
        f"no clip of split test can be read, of 5 videos. The first: {gone[0]}: this video does not "
        f"exist. Check the path. {gone[1]}: {empty} {gone[2]}: {empty} See dgl-data check."
    )


def test_what_was_dropped_is_written_as_a_table(tmp_path):
    faults = {tmp_path / "a, b.mp4": "this video is empty.", tmp_path / "c.mp4": "cut off"}
    write_dropped(tmp_path / "dropped.csv", faults)
    with (tmp_path / "dropped.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["video", "reason"], *([str(p), why] for p, why in faults.items())]


def test_a_damaged_cache_is_named_with_its_remedy(tmp_path, cache):
    clips = write_tiny_clips(tmp_path / "videos", 1)
    find_faults(clips, progress=False)
    (file,) = cache.glob("*.sqlite")
    file.write_text("no database, but long enough to be taken for one" * 40)
    with pytest.raises(ConfigError, match=r"cannot be used: file is not a database\. Delete it"):
        find_faults(clips, progress=False)

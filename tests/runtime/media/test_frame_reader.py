"""What a pass over a video makes sure of: the right frame, or an error."""

from dataclasses import replace

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from dgl_runtime.errors import MediaError
from dgl_runtime.media.frame_reader import FrameReader
from dgl_runtime.media.packet_index import read_index
from tests.helpers.odd_videos import blank_first_packet, number_of, write_video


def numbers(reader, wanted):
    return [number_of(picture.transpose(2, 0, 1)) for _, picture in reader.read(wanted)]


@pytest.mark.parametrize("may_skip", [True, False])
@pytest.mark.parametrize(("lost_s", "stands_in"), [(0.9, True), (1.1, False)])
def test_a_frame_stands_in_for_a_second_of_loss_at_most(tmp_path, lost_s, stands_in, may_skip):
    path = write_video(tmp_path / "film.mkv", 40, pts=[*range(20), *range(60, 80)])
    index = read_index(path)
    # The index knows of a frame that no packet brings, so long after the last one before the gap.
    lost = int(index.shown[19]) + round(lost_s / index.tick_s)
    index = replace(index, shown=np.sort(np.append(index.shown, lost)))
    reader = FrameReader(path, index, may_skip=may_skip)
    if stands_in:
        assert numbers(reader, [19, 20, 21]) == [19, 19, 20]
        return
    with pytest.raises(MediaError, match=r"cannot be decoded at second 3\.00"):
        numbers(reader, [19, 20, 21])


def test_a_frame_that_a_skipping_pass_does_not_bring_is_read_in_a_full_one(tmp_path, monkeypatch):
    path = write_video(tmp_path / "film.mp4", 40, codec="libx264", b_frames=2)
    index = read_index(path)
    decode = FrameReader._decode_packet

    def skipping_too_much(self, packet):
        for time, frame in decode(self, packet):
            if not self._may_skip or time != index.shown[21]:
                yield time, frame

    monkeypatch.setattr(FrameReader, "_decode_packet", skipping_too_much)
    assert numbers(FrameReader(path, index), [5, 21, 30]) == [5, 21, 30]


@pytest.mark.parametrize(("lands", "packets"), [(0, 76), (10, 16 + 66)])
def test_a_seek_that_goes_back_changes_no_frame(tmp_path, monkeypatch, lands, packets):
    path = write_video(tmp_path / "film.mp4", 80, codec="libx264", gop=10)
    index, seek = read_index(path), FrameReader._seek
    monkeypatch.setattr(FrameReader, "_seek", lambda self, ticks: seek(self, lands * 1024))
    reader = FrameReader(path, index)
    assert numbers(reader, [25, 45, 75]) == [25, 45, 75]
    assert reader._may_skip  # it goes on from there; nothing is read anew
    assert reader.packets_read == packets  # and no seek is tried again


@pytest.mark.parametrize("ahead", [1, 11])
def test_a_seek_that_lands_behind_its_keyframe_is_useless(tmp_path, monkeypatch, ahead):
    path = write_video(tmp_path / "film.mp4", 60, codec="libx264", gop=10)
    index, seek = read_index(path), FrameReader._seek

    def too_far(self, ticks):
        packets = seek(self, ticks)
        for _ in range(ahead):
            next(packets)
        return packets

    monkeypatch.setattr(FrameReader, "_seek", too_far)
    assert numbers(FrameReader(path, index), [5, 20, 45]) == [5, 20, 45]


def test_a_stamp_behind_a_seek_that_is_not_the_indexs_begins_the_pass_again(tmp_path, monkeypatch):
    path = write_video(tmp_path / "film.mp4", 60, codec="libx264", gop=10)
    index, seek = read_index(path), FrameReader._seek

    def late_by_one(self, ticks):
        for place, packet in enumerate(seek(self, ticks)):
            if place == 2:
                packet.pts = int(index.shown[43])  # of picture 42
            yield packet

    monkeypatch.setattr(FrameReader, "_seek", late_by_one)
    reader = FrameReader(path, index)
    assert numbers(reader, [5, 43]) == [5, 43]
    assert not reader._may_skip


def test_a_file_that_grew_since_its_index_was_read_is_no_fault(tmp_path, monkeypatch):
    path = write_video(tmp_path / "film.mp4", 60, codec="libx264", gop=10)
    whole, decode = read_index(path), FrameReader._decode_packet
    known = {name: getattr(whole, name)[:50] for name in ("times", "decode_times", "shown")}
    known |= {name: getattr(whole, name)[:5] for name in ("keyframes", "key_places")}

    def losing_the_end(self, packet):
        for time, frame in decode(self, packet):
            if not self._may_skip or time < whole.shown[43]:
                yield time, frame

    monkeypatch.setattr(FrameReader, "_decode_packet", losing_the_end)
    reader = FrameReader(path, replace(whole, **known))
    assert numbers(reader, [5, 43, 44]) == [5, 43, 44]
    assert not reader._may_skip  # the packet behind all that it knew of ended the pass that skips


@pytest.mark.parametrize(("lie", "last"), [("time", 11), ("place", 16), ("size", 16)])
def test_a_seek_counts_only_where_a_keyframe_is_in_time_place_and_size(
    tmp_path, monkeypatch, lie, last
):
    path = write_video(tmp_path / "film.mp4", 60, codec="libx264", gop=10)
    index, seek, taken = read_index(path), FrameReader._seek, []

    def counted(self, ticks):
        taken.append(0)
        for packet in seek(self, ticks):
            taken[-1] += 1
            yield packet

    monkeypatch.setattr(FrameReader, "_seek", counted)
    if lie == "time":
        index.times[40] += 1
    else:
        index.key_places[4, ["place", "size"].index(lie)] += 1
    assert numbers(FrameReader(path, index), [5, 45]) == [5, 45]
    assert taken == [
        2,
        2,
        last,
    ]  # twice to what lies behind it; a second before, to keyframe 30 and on


def test_a_wanted_frame_that_no_other_refers_to_is_not_skipped(tmp_path):
    path = write_video(tmp_path / "film.mp4", 40, codec="libx264", b_frames=2, gop=400)
    for number in range(20, 24):
        reader = FrameReader(path, read_index(path))
        assert numbers(reader, [number]) == [number]
        assert reader._may_skip  # it was found in the pass that skips


def test_a_container_that_cannot_seek_there_is_read_from_its_start(tmp_path):
    path = write_video(tmp_path / "film.rm", 60, codec="rv10", gop=10)
    for ticks in (4600, 3600):  # to the frame, and to a second before it
        with av.open(str(path)) as container, pytest.raises(PermissionError):
            container.seek(ticks, stream=container.streams.video[0])
    reader = FrameReader(path, read_index(path))
    assert numbers(reader, [46, 50]) == [46, 50]
    assert reader.frames_decoded >= 51


def test_of_pictures_that_a_container_gave_one_time_the_last_is_shown(tmp_path):
    path = write_video(tmp_path / "fast.mkv", 200, codec="libx264", rate=2000, gop=10)
    reader = FrameReader(path, read_index(path))
    assert numbers(reader, [3, 40, 80, 95]) == [5, 79, 159, 189]  # 2 a millisecond


def test_the_first_picture_that_decodes_stands_in_for_one_before_it(tmp_path):
    path = write_video(tmp_path / "film.mp4", 20, codec="mpeg4", gop=1)
    blank_first_packet(path)
    index = read_index(path)
    assert index.shown[0] == 0  # its container says that the lost one is a keyframe
    assert numbers(FrameReader(path, index), [0, 1]) == [1, 1]


def test_pictures_that_share_a_stamp_stand_in_for_one_another(tmp_path):
    # Small pictures share a packet of the container, which stamps the first of them.
    path = write_video(tmp_path / "film.mpg", 30, codec="libx265", rate=25, gop=10)
    wanted = [0, 1, 5, 15, 25]
    found = numbers(FrameReader(path, read_index(path)), wanted)
    assert found[:2] == [0, 1]
    assert found == sorted(found)
    assert all(abs(one - other) < 10 for one, other in zip(found, wanted, strict=True))


def test_pictures_that_have_no_rgb_are_named(tmp_path, monkeypatch):
    class OfAnotherFrame:
        def reformat(self, frame, **how):
            return VideoReformatter().reformat(av.VideoFrame(64, 48, "gray32le"), **how)

    path = write_video(tmp_path / "film.mp4", 3)
    monkeypatch.setattr("av.video.reformatter.VideoReformatter", OfAnotherFrame)
    with pytest.raises(MediaError) as fault:
        numbers(FrameReader(path, read_index(path)), [1])
    assert str(fault.value) == (
        f"{path}: frame 1 cannot be converted to RGB (Operation not supported). "
        "Convert the video to H.264."
    )


def test_an_avi_whose_pictures_are_not_reordered_says_when_each_is_shown(tmp_path):
    path = write_video(tmp_path / "film.avi", 60, codec="mpeg4", gop=10)
    reader = FrameReader(path, read_index(path))
    assert numbers(reader, [5, 45]) == [5, 45]
    assert reader.frames_decoded < 20  # by a seek


def test_a_picture_stream_without_a_frame_is_named(tmp_path):
    path = blank_first_packet(write_video(tmp_path / "film.mkv", 20, codec="mpeg4", gop=1))
    with pytest.raises(MediaError, match="has a picture stream without frames"):
        read_index(path)

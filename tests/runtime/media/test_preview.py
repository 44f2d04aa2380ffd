"""Previews: what a browser plays of any video; pictures that change their size, and their sound."""

import av
import numpy as np
import pytest
from PIL import Image

from dgl_runtime.errors import MediaError
from dgl_runtime.media.pixels import preprocess
from dgl_runtime.media.preview import LONGEST_S, PREVIEW_SIDE, picture, write_preview
from dgl_runtime.media.preview_sound import add_sound
from dgl_runtime.media.video import Span, probe, read_clips
from tests.helpers.odd_videos import (
    ffmpeg,
    numbered_picture,
    replace_bytes,
    write_video,
    write_video_with_tones,
)
from tests.helpers.specs import frame_spec

GREEN, RED = (40, 180, 40), (200, 40, 40)


def framed(size, colour):
    """A picture with a white frame, so that what is cut off shows."""
    made = Image.new("RGB", size, "white")
    made.paste(colour, (20, 20, size[0] - 20, size[1] - 20))
    return np.asarray(made)


def join(path, *sizes):
    """A raw stream of 20 pictures of each size, green and red in turn."""
    parts = []
    for i, size in enumerate(sizes):
        pictures = [framed(size, (GREEN, RED)[i % 2])] * 20
        part = write_video(
            path.with_name(f"{i}.h264"), 20, codec="libx264", size=size, pictures=pictures
        )
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    return path


def frames_of(path):
    with av.open(str(path)) as made:
        return [frame.to_ndarray(format="rgb24") for frame in made.decode(video=0)]


def preview(path, start_s, end_s, out):
    signs = []
    write_preview(path, start_s, end_s, str(out), lambda: signs.append(1))
    return len(signs)


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def near(pixel, colour):
    return np.abs(pixel.astype(int) - colour).max() < 30


@pytest.mark.parametrize(
    ("first", "second", "left", "top"),
    [
        ((320, 240), (160, 240), 80, 0),  # narrower: black beside it
        ((320, 240), (480, 180), 0, 60),  # wider: black above and below
        ((320, 240), (640, 480), 0, 0),  # larger
        ((320, 240), (160, 120), 0, 0),  # smaller
        ((240, 320), (320, 240), 0, 70),  # turned
    ],
)
def test_pictures_that_change_their_size_are_fitted_into_the_first(
    tmp_path, first, second, left, top
):
    path = join(tmp_path / "both.h264", first, second)
    assert preview(path, 0.0, 10.0, tmp_path / "out.mp4") == 40
    frames = frames_of(tmp_path / "out.mp4")
    assert {frame.shape for frame in frames} == {(first[1], first[0], 3)}
    assert near(frames[0][first[1] // 2, first[0] // 2], GREEN)
    last, (middle_y, middle_x) = frames[-1], (first[1] // 2, first[0] // 2)
    assert near(last[middle_y, middle_x], RED)
    for y, x in (
        (middle_y, left + 3),
        (middle_y, -left - 4),
        (top + 3, middle_x),
        (-top - 4, middle_x),
    ):
        assert near(last[y, x], (255, 255, 255))  # nothing of it is cut off
    if left:
        assert near(last[middle_y, left // 2], (0, 0, 0))
    if top:
        assert near(last[top // 2, middle_x], (0, 0, 0))


def test_thumbnails_and_clips_take_each_picture_in_its_own_size(tmp_path):
    path = join(tmp_path / "both.h264", (320, 240), (160, 240))
    rate = probe(path).num_frames / probe(path).duration_s
    second = 30 / rate
    (tmp_path / "a.jpg").write_bytes(picture(path, second, 480))
    shown = pixels_of(tmp_path / "a.jpg")
    assert shown.shape == (240, 160, 3)
    assert near(shown[120, 80], RED)
    (clip,) = read_clips(path, [Span(0.0, 40 / rate)], frame_spec(2, 32))
    for found, (size, colour) in zip(clip, [((320, 240), GREEN), ((160, 240), RED)], strict=True):
        expected = preprocess(framed(size, colour), frame_spec(1, 32))
        assert np.abs(found.astype(int) - expected).mean() < 8


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1280, 720), (PREVIEW_SIDE, 360)),
        ((1366, 770), (PREVIEW_SIDE, 360)),  # 361 is odd
        ((320, 240), (320, 240)),  # never larger
    ],
)
def test_a_preview_is_small_and_of_even_size(tmp_path, size, expected):
    path = write_video(tmp_path / "a.mp4", 3, size=size)
    preview(path, 0.0, 1.0, tmp_path / "out.mp4")
    assert frames_of(tmp_path / "out.mp4")[0].shape == (*expected[::-1], 3)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (51, 37)])
def test_a_picture_of_odd_size_has_a_preview(tmp_path, size):
    Image.new("RGB", size, GREEN).save(tmp_path / "a.png")
    preview(tmp_path / "a.png", 0.0, 1.0, tmp_path / "out.mp4")
    (frame,) = frames_of(tmp_path / "out.mp4")
    assert frame.shape == (*(max(side // 2 * 2, 2) for side in size[::-1]), 3)
    assert near(frame[0, 0], GREEN)


def test_a_preview_holds_the_frames_of_its_moment_at_their_times(tmp_path):
    path = write_video(tmp_path / "a.mkv", 60, pts=[*range(30), *range(40, 70)])
    assert preview(path, 2.0, 5.0, tmp_path / "out.mp4") == 21
    with av.open(str(tmp_path / "out.mp4")) as made:
        frames = list(made.decode(video=0))
        times = [frame.time for frame in frames]
        assert made.streams.video[0].codec_context.name == "h264"
        assert [stream.type for stream in made.streams] == ["video"]
    assert times == pytest.approx([*np.arange(10) / 10, *np.arange(20, 31) / 10])
    expected = numbered_picture(20)[24, 4, 0]
    assert abs(int(frames[0].to_ndarray(format="rgb24")[24, 4, 0]) - int(expected)) < 8


def test_a_preview_begins_with_the_frame_on_display(tmp_path):
    path = write_video(tmp_path / "a.mp4", 10, pts=range(0, 100, 10))
    preview(path, 2.5, 3.5, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as made:
        times = [frame.time for frame in made.decode(video=0)]
    assert times == pytest.approx([0.0, 0.5])


def test_a_preview_can_be_played_before_all_of_it_is_there(tmp_path):
    preview(write_video(tmp_path / "a.avi", 10), 0.0, 1.0, tmp_path / "preview")
    content = (tmp_path / "preview").read_bytes()
    assert content[4:8] == b"ftyp"
    assert content.index(b"moov") < content.index(b"mdat")


def test_a_preview_is_a_minute_at_the_most(tmp_path):
    path = write_video(tmp_path / "a.mp4", 100, rate=1)
    assert LONGEST_S == 60
    assert preview(path, 10.0, 90.0, tmp_path / "out.mp4") == 61


def test_the_sound_of_a_preview_is_as_long_as_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("dgl_runtime.media.preview.LONGEST_S", 2.0)
    path = write_video_with_tones(tmp_path / "tones.mp4", [440], seconds=6)
    assert preview(path, 1.0, 6.0, tmp_path / "out.mp4") == 21
    _, samples = sound_of(tmp_path / "out.mp4")
    assert len(samples) / 48_000 == pytest.approx(2.0, abs=0.15)


def loudest(samples, rate):
    spectrum = np.abs(np.fft.rfft(samples))
    return float(np.fft.rfftfreq(len(samples), 1 / rate)[spectrum.argmax()])


def sound_of(path):
    """When the sound of a preview begins, and its samples."""
    with av.open(str(path)) as made:
        parts = [(frame.time, frame.to_ndarray()[0]) for frame in made.decode(audio=0)]
    return parts[0][0], np.concatenate([part for _, part in parts])


@pytest.mark.parametrize("name", ["tones.mp4", "tones.wmv"])
@pytest.mark.parametrize(("start_s", "end_s", "tones"), [(0.0, 2.0, [440]), (3.0, 5.0, [440, 880])])
def test_a_preview_has_the_sound_of_its_moment(tmp_path, name, start_s, end_s, tones):
    path = write_video_with_tones(tmp_path / name, [440, 880, 1320], seconds=4)
    preview(path, start_s, end_s, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as made:
        (sound,) = made.streams.audio
        assert (sound.codec_context.name, sound.rate, sound.layout.name) == (
            "aac",
            48_000,
            "stereo",
        )
    begins_s, samples = sound_of(tmp_path / "out.mp4")
    assert begins_s == pytest.approx(0.0, abs=0.07)
    assert len(samples) / 48_000 == pytest.approx(end_s - start_s, abs=0.15)
    pieces = np.array_split(samples, len(tones))
    # Away from where one tone ends and from the encoder's first frames.
    found = [loudest(piece[len(piece) // 4 : -len(piece) // 4], 48_000) for piece in pieces]
    assert found == pytest.approx(tones, abs=15)


def test_a_seek_to_the_middle_of_a_packet_of_sound_loses_that_packet_alone(tmp_path):
    film, tone = "testsrc=s=64x48:r=10:d=4", "sine=d=4:frequency=440"
    sources = ("-f", "lavfi", "-i", film, "-f", "lavfi", "-i", tone)
    path = tmp_path / "film.mpg"
    ffmpeg(*sources, "-r", 25, "-c:v", "mpeg2video", "-c:a", "mp2", path)
    preview(path, 1.0, 3.0, tmp_path / "out.mp4")
    begins_s, samples = sound_of(tmp_path / "out.mp4")
    assert begins_s == pytest.approx(0.0, abs=0.1)
    assert len(samples) / 48_000 == pytest.approx(2.0, abs=0.15)
    assert loudest(samples[12_000:-12_000], 48_000) == pytest.approx(440, abs=15)


def with_other_sound(path, made, change):
    """Copy a video; ``change`` makes of each packet of its sound another."""
    with av.open(str(made)) as source, av.open(str(path), "w") as output:
        streams = [output.add_stream_from_template(one) for one in source.streams]
        for packet in source.demux():
            if packet.size:
                number = packet.stream_index
                if packet.stream.type == "audio":
                    packet = change(packet)
                packet.stream = streams[number]
                output.mux(packet)
    return path


def test_what_was_heard_before_its_moment_is_not_looked_at(tmp_path):
    def broken_at_first(packet):
        if packet.pts >= 4 * 16_000:
            return packet
        junk = av.Packet(b"junk" * 9)
        junk.pts, junk.dts, junk.time_base = packet.pts, packet.dts, packet.time_base
        return junk

    tones = write_video_with_tones(tmp_path / "tones.mp4", [440, 880], seconds=5)
    path = with_other_sound(tmp_path / "broken.mp4", tones, broken_at_first)
    preview(path, 7.0, 9.0, tmp_path / "out.mp4")
    begins_s, samples = sound_of(tmp_path / "out.mp4")
    assert begins_s == pytest.approx(0.0, abs=0.07)
    assert len(samples) / 48_000 == pytest.approx(2.0, abs=0.15)


def test_sound_that_begins_late_is_late_in_the_preview(tmp_path):
    def later(packet):
        packet.pts, packet.dts = packet.pts + 3 * 16_000, packet.dts + 3 * 16_000
        return packet

    tones = write_video_with_tones(tmp_path / "tones.mp4", [440, 880], seconds=3)
    path = with_other_sound(tmp_path / "late.mp4", tones, later)
    preview(path, 2.0, 5.0, tmp_path / "out.mp4")
    begins_s, samples = sound_of(tmp_path / "out.mp4")
    assert begins_s == pytest.approx(1.0, abs=0.1)
    assert len(samples) / 48_000 == pytest.approx(2.0, abs=0.15)


def test_sound_in_an_unknown_codec_is_left_out(tmp_path):
    path = write_video(tmp_path / "a.mp4", 20, codec="libx264", audio_packets=[b"junk" * 9] * 9)
    replace_bytes(replace_bytes(path, b"mp4a", b"zzzz"), b"esds", b"zsds")
    assert preview(path, 0.0, 2.0, tmp_path / "out.mp4") == 20
    with av.open(str(tmp_path / "out.mp4")) as made:
        assert [stream.type for stream in made.streams] == ["video"]


def test_sound_that_does_not_decode_is_left_out(tmp_path):
    path = write_video(tmp_path / "a.mp4", 20, audio_packets=[b"junk" * 9] * 30)
    assert preview(path, 0.0, 2.0, tmp_path / "out.mp4") == 20
    assert len(frames_of(tmp_path / "out.mp4")) == 20


def test_a_video_without_sound_has_room_for_none(tmp_path):
    path = write_video(tmp_path / "a.mp4", 5)
    with av.open(str(tmp_path / "out.mp4"), "w") as container:
        assert add_sound(path, container) is None


def test_a_preview_that_cannot_be_written_is_told(tmp_path):
    path = write_video(tmp_path / "a.mp4", 5)
    with pytest.raises(MediaError, match=r"no preview of .*a\.mp4 can be made \(No such file"):
        preview(path, 0.0, 1.0, tmp_path / "none" / "out.mp4")


def test_a_thumbnail_is_the_frame_on_display_and_never_larger(tmp_path):
    path = write_video(tmp_path / "a.mp4", 20)
    (tmp_path / "a.jpg").write_bytes(picture(path, 1.55, 480))
    shown = pixels_of(tmp_path / "a.jpg")
    assert shown.shape == (48, 64, 3)
    assert near(shown[24, 8], numbered_picture(15)[24, 8])
    (tmp_path / "b.jpg").write_bytes(picture(path, 1.55, 32))
    assert pixels_of(tmp_path / "b.jpg").shape == (24, 32, 3)


def test_a_thumbnail_is_finer_than_a_jpeg_is_by_default(tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture(write_video(tmp_path / "a.mp4", 3), 0.0, 480))
    steps = {}
    with Image.open(tmp_path / "a.jpg") as made:
        for name, quality in (("usual.jpg", 75), ("best.jpg", 95)):
            made.save(tmp_path / name, quality=quality)
            with Image.open(tmp_path / name) as image:
                steps[name] = sum(image.quantization[0])
        assert steps["best.jpg"] < sum(made.quantization[0]) < steps["usual.jpg"]

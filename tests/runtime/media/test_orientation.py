"""Pictures as they are shown: all eight orientations, of videos and of pictures, wherever one is looked at."""

import io
import shutil
import struct
import subprocess

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from dgl_runtime.media.orientation import as_shown
from dgl_runtime.media.pixels import preprocess
from dgl_runtime.media.preview import picture, write_preview
from dgl_runtime.media.video import Span, probe, read_clips
from tests.helpers.odd_videos import write_video
from tests.helpers.specs import frame_spec

# Exif's number -> what is done to the picture as it lies, and the display matrix (a, b, c, d) for the same.
SHOWN = {
    1: (None, (1, 0, 0, 1)),
    2: (Image.Transpose.FLIP_LEFT_RIGHT, (-1, 0, 0, 1)),
    3: (Image.Transpose.ROTATE_180, (-1, 0, 0, -1)),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, (1, 0, 0, -1)),
    5: (Image.Transpose.TRANSPOSE, (0, 1, 1, 0)),
    6: (Image.Transpose.ROTATE_270, (0, 1, -1, 0)),
    7: (Image.Transpose.TRANSVERSE, (0, -1, -1, 0)),
    8: (Image.Transpose.ROTATE_90, (0, -1, 1, 0)),
}
eight = pytest.mark.parametrize("number", SHOWN)


def stored() -> Image.Image:
    """96 x 64: each quarter in another colour."""
    made = Image.new("RGB", (96, 64), (200, 40, 40))
    made.paste((40, 180, 40), (48, 0, 96, 32))
    made.paste((40, 40, 220), (0, 32, 48, 64))
    made.paste((220, 220, 60), (48, 32, 96, 64))
    return made


def shown(number: int) -> np.ndarray:
    how, _ = SHOWN[number]
    return np.asarray(stored() if how is None else stored().transpose(how))


def turned_video(path, number, codec="libx264", matrix=None):
    """A video of one picture whose track header holds a display matrix."""
    write_video(path, 5, codec=codec, size=(96, 64), pictures=[np.asarray(stored())] * 5)
    content = bytearray(path.read_bytes())
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = content.index(plain, content.index(b"tkhd"))
    a, b, c, d = (round(value * 65536) for value in matrix or SHOWN[number][1])
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 6


@eight
def test_a_video_is_read_as_it_is_shown_wherever_it_is_looked_at(tmp_path, number):
    path = turned_video(tmp_path / "turned.mp4", number)
    expected = shown(number)
    assert (probe(path).width, probe(path).height) == expected.shape[1::-1]
    (clip,) = read_clips(path, [Span(0.0, 0.5)], frame_spec(1, 32))
    assert_alike(clip[0], preprocess(expected, frame_spec(1, 32)))
    assert_alike(np.asarray(Image.open(io.BytesIO(picture(path, 0.0, 96)))), expected)
    write_preview(path, 0.0, 0.5, str(tmp_path / "preview.mp4"), lambda: None)
    with av.open(str(tmp_path / "preview.mp4")) as made:
        frame = next(made.decode(video=0))
    assert_alike(frame.to_ndarray(format="rgb24"), expected)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the command ffmpeg")
@eight
def test_a_video_is_read_as_ffmpeg_shows_it(tmp_path, number):
    path = turned_video(tmp_path / "turned.mp4", number)
    command = ["ffmpeg", "-v", "error", "-i", path, "-frames:v", "1", tmp_path / "shown.png"]
    subprocess.run(command, check=True)
    ours = np.asarray(Image.open(io.BytesIO(picture(path, 0.0, 96))))
    assert_alike(ours, np.asarray(Image.open(tmp_path / "shown.png").convert("RGB")))


@pytest.mark.parametrize(
    ("matrix", "number"),
    [
        ((0.9, 0.4, -0.4, 0.9), 1),
        ((0.4, 0.9, -0.9, 0.4), 6),
        ((2, 0, 0, -2), 4),
        ((0.7, 0.7, -0.7, 0.7), 1),
        ((0, 0, 0, 0), 1),
    ],
)
def test_of_an_odd_angle_the_nearest_right_one_is_taken(tmp_path, matrix, number):
    path = turned_video(tmp_path / "odd.mp4", 1, matrix=matrix)
    assert_alike(np.asarray(Image.open(io.BytesIO(picture(path, 0.0, 96)))), shown(number))


def test_a_frame_that_was_looked_at_does_not_stay_in_memory():
    frame = av.VideoFrame(64, 48, "rgb24")
    as_shown(frame, np.zeros((48, 64, 3), np.uint8))
    import gc

    gc.collect()
    assert not [one for one in gc.get_referrers(frame) if type(one).__name__ == "SideDataContainer"]


def exif_of(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@eight
@pytest.mark.parametrize("form", ["jpeg", "png", "tiff", "webp", "avif"])
def test_a_picture_is_read_as_it_is_shown(tmp_path, form, number):
    path = tmp_path / "picture"  # its content tells what it is
    lossless = {"lossless": True} if form == "webp" else {"quality": 95} if form != "tiff" else {}
    stored().save(path, format=form, exif=exif_of(number), **lossless)
    assert_alike(
        np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")), shown(number)
    )
    (clip,) = read_clips(path, [Span(0.0, 0.04)], frame_spec(1, 32))
    assert_alike(clip[0], preprocess(shown(number), frame_spec(1, 32)))
    assert_alike(np.asarray(Image.open(io.BytesIO(picture(path, 0.0, 96)))), shown(number))


def test_a_video_of_pictures_with_exif_is_turned(tmp_path):
    made = io.BytesIO()
    stored().save(made, format="jpeg", exif=exif_of(6), quality=95)
    path = tmp_path / "pictures.mjpeg"
    path.write_bytes(made.getvalue() * 3)
    assert probe(path).num_frames == 3
    assert_alike(np.asarray(Image.open(io.BytesIO(picture(path, 0.0, 96)))), shown(6))

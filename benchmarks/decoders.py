"""The ways to read F frames of a clip that dgl-bench decode compares, each as its makers advise.

All take the frames at the centres of F equal segments; the file is opened anew in every call. Two forms:
the pictures themselves, and pictures whose shorter side is brought to S and whose centre is cut out.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.bundle.input_spec import clip_frames
from dgl_runtime.errors import MediaError
from dgl_runtime.media.packet_index import PacketIndex, read_index
from dgl_runtime.media.side_by_side import read_frames
from dgl_runtime.media.video import Span, frame_times, read_clips

NUM_FRAMES = 12
FRAME_SIZE = 224
CLIP = clip_frames(NUM_FRAMES, FRAME_SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Video:
    """A file and its picture size, pixels, which a caller may know beforehand."""

    path: Path
    width: int
    height: int

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height when the shorter side is ``FRAME_SIZE``."""
        shorter = min(self.width, self.height)
        return int(FRAME_SIZE * self.width / shorter), int(FRAME_SIZE * self.height / shorter)


@dataclass(frozen=True)
class Decoder:
    """One way to read frames.

    Attributes:
        name: What the tables call it.
        package: The module it needs.
        install: How to get it.
        needs_torch: Whether it cannot run without torch.
        resizer: How it makes the frames small.
        frames: Video and threads to pictures, uint8 [F, H, W, 3] RGB.
        clip: Video and threads to uint8 [F, 3, S, S] RGB.
    """

    name: str
    package: str
    install: str
    needs_torch: bool
    resizer: str
    frames: Callable[[Video, int], Pixels]
    clip: Callable[[Video, int], Pixels]

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return find_spec(self.package) is not None


def centres(count: int) -> list[int]:
    """Numbers of the frames at the centres of F equal parts of ``count`` frames."""
    return [int((place + 0.5) * count / NUM_FRAMES) for place in range(NUM_FRAMES)]


def expected_frames(index: PacketIndex) -> list[int]:
    """Numbers of the frames on display at the centres of F equal parts of a video."""
    times_s = frame_times(Span(0, index.duration_s), NUM_FRAMES, None)
    return [int(number) for number in index.frames_at(times_s)]


def _crop(pictures: Pixels) -> Pixels:
    """The centre of pictures [F, H, W, 3] as [F, 3, S, S]."""
    top, left = (round((side - FRAME_SIZE) / 2) for side in pictures.shape[1:3])
    cut = pictures[:, top : top + FRAME_SIZE, left : left + FRAME_SIZE]
    return np.ascontiguousarray(cut.transpose(0, 3, 1, 2))


# ---- ours -----------------------------------------------------------------------------------------


def _anew(path: Path) -> PacketIndex:
    """The packet index, read again: indexes are kept for as long as a file does not change."""
    os.utime(path)
    return read_index(path)


def _our_frames(video: Video, threads: int) -> Pixels:
    index = _anew(video.path)
    wanted = expected_frames(index)
    read = read_frames(video.path, index, wanted, lambda picture: picture, threads=threads)
    return np.stack([picture for _, picture in read])


def _our_clip(video: Video, threads: int) -> Pixels:
    span = Span(0, _anew(video.path).duration_s)
    return next(read_clips(video.path, [span], CLIP, threads=threads))


# ---- decord ---------------------------------------------------------------------------------------


def _decord(video: Video, threads: int, **size: int) -> Pixels:
    import decord

    reader = decord.VideoReader(str(video.path), num_threads=threads, **size)
    pictures: Pixels = reader.get_batch(centres(len(reader))).asnumpy()
    return pictures


def _decord_clip(video: Video, threads: int) -> Pixels:
    width, height = video.resized
    return _crop(_decord(video, threads, width=width, height=height))


# ---- torchcodec -----------------------------------------------------------------------------------


def _torchcodec(mode: str) -> tuple[Callable[[Video, int], Pixels], Callable[[Video, int], Pixels]]:
    def read(video: Video, threads: int, **more: Any) -> Any:  # noqa: ANN401 - a torch tensor
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(
            str(video.path),
            num_ffmpeg_threads=threads,
            seek_mode=mode,
            dimension_order=more.pop("order"),
            **more,
        )
        return decoder.get_frames_at(centres(decoder.metadata.num_frames)).data

    def frames(video: Video, threads: int) -> Pixels:
        pictures: Pixels = read(video, threads, order="NHWC").numpy()
        return pictures

    def clip(video: Video, threads: int) -> Pixels:
        from torchcodec.transforms import CenterCrop, Resize

        width, height = video.resized
        transforms = [Resize((height, width)), CenterCrop((FRAME_SIZE, FRAME_SIZE))]
        made = read(video, threads, order="NCHW", transforms=transforms)
        pixels: Pixels = made.contiguous().numpy()
        return pixels

    return frames, clip


# ---- OpenCV ---------------------------------------------------------------------------------------


def _opencv_seek(video: Video, threads: int) -> Iterator[Pixels]:
    """Pictures in BGR; a seek before each."""
    import cv2

    capture = _opencv_open(video, threads)
    for number in centres(int(capture.get(cv2.CAP_PROP_FRAME_COUNT))):
        capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        yield _opencv_taken(video, number, *capture.read())


def _opencv_grab(video: Video, threads: int) -> Iterator[Pixels]:
    """Pictures in BGR; every frame is decoded, those wanted are converted."""
    import cv2

    capture = _opencv_open(video, threads)
    wanted = set(centres(int(capture.get(cv2.CAP_PROP_FRAME_COUNT))))
    for number in range(max(wanted) + 1):
        capture.grab()
        if number in wanted:
            yield _opencv_taken(video, number, *capture.retrieve())


def _opencv_open(video: Video, threads: int) -> Any:  # noqa: ANN401 - untyped package
    import cv2

    cv2.setNumThreads(threads)
    return cv2.VideoCapture(str(video.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])


def _opencv_taken(video: Video, number: int, there: bool, picture: Any) -> Pixels:  # noqa: ANN401
    if not there:
        raise MediaError(f"OpenCV gives no frame {number} of {video.path.name}.")
    pixels: Pixels = picture
    return pixels


def _opencv(
    read: Callable[[Video, int], Iterator[Pixels]],
) -> tuple[Callable[[Video, int], Pixels], Callable[[Video, int], Pixels]]:
    def frames(video: Video, threads: int) -> Pixels:
        import cv2

        return np.stack([cv2.cvtColor(one, cv2.COLOR_BGR2RGB) for one in read(video, threads)])

    def clip(video: Video, threads: int) -> Pixels:
        import cv2

        small = [
            cv2.cvtColor(
                cv2.resize(one, video.resized, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB
            )
            for one in read(video, threads)
        ]
        return _crop(np.stack(small))

    return frames, clip


OURS = "dgl_runtime"
DECODERS = (
    Decoder(OURS, "av", "", False, "Pillow, bicubic", _our_frames, _our_clip),
    Decoder("decord2", "decord", "pip install decord2", False, "its own", _decord, _decord_clip),
    Decoder(
        "OpenCV, seek",
        "cv2",
        "pip install opencv-python-headless",
        False,
        "INTER_AREA",
        *_opencv(_opencv_seek),
    ),
    Decoder(
        "OpenCV, grab",
        "cv2",
        "pip install opencv-python-headless",
        False,
        "INTER_AREA",
        *_opencv(_opencv_grab),
    ),
    Decoder(
        "torchcodec, exact",
        "torchcodec",
        "pip install torchcodec, and FFmpeg's shared libraries",
        True,
        "its own, bilinear",
        *_torchcodec("exact"),
    ),
    Decoder(
        "torchcodec, approximate",
        "torchcodec",
        "pip install torchcodec, and FFmpeg's shared libraries",
        True,
        "its own, bilinear",
        *_torchcodec("approximate"),
    ),
)

"""Reading 12 frames of a clip, ours and others' ways, each as its makers advise.

    python benchmarks/studies/decode_libraries.py --threads 1

All take the frames at the centres of F equal parts; the file is opened anew in every call.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dgl_bench import decode
from dgl_bench.command import Threads, benchmark
from dgl_bench.decode import FRAME_SIZE, NUM_FRAMES, Clips, Pixels, Quick
from dgl_bench.report import Report
from dgl_runtime.errors import MediaError
from dgl_runtime.media.video import VideoInfo


def centres(count: int) -> list[int]:
    """Numbers of the frames at the centres of F equal parts of ``count`` frames."""
    return [int((place + 0.5) * count / NUM_FRAMES) for place in range(NUM_FRAMES)]


def resized(video: VideoInfo) -> tuple[int, int]:
    """Width and height when the shorter side is ``FRAME_SIZE``."""
    shorter = min(video.width, video.height)
    return int(FRAME_SIZE * video.width / shorter), int(FRAME_SIZE * video.height / shorter)


def crop(pictures: Pixels) -> Pixels:
    """The centre of pictures [F, H, W, 3] as [F, 3, S, S]."""
    top, left = (round((side - FRAME_SIZE) / 2) for side in pictures.shape[1:3])
    cut = pictures[:, top : top + FRAME_SIZE, left : left + FRAME_SIZE]
    return np.ascontiguousarray(cut.transpose(0, 3, 1, 2))


def decord(video: VideoInfo, threads: int, *, small: bool) -> Pixels:
    import decord

    size = dict(zip(("width", "height"), resized(video), strict=True)) if small else {}
    reader = decord.VideoReader(str(video.path), num_threads=threads, **size)
    pictures: Pixels = reader.get_batch(centres(len(reader))).asnumpy()
    return crop(pictures) if small else pictures


def torchcodec(video: VideoInfo, threads: int, *, mode: str, small: bool) -> Pixels:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import CenterCrop, Resize

    more: dict[str, Any] = {"seek_mode": mode, "dimension_order": "NCHW" if small else "NHWC"}
    if small:
        resize = Resize(resized(video)[::-1])
        more["transforms"] = [resize, CenterCrop((FRAME_SIZE, FRAME_SIZE))]
    decoder = VideoDecoder(str(video.path), num_ffmpeg_threads=threads, **more)
    made = decoder.get_frames_at(centres(decoder.metadata.num_frames)).data
    pixels: Pixels = made.contiguous().numpy()
    return pixels


def opencv(video: VideoInfo, threads: int, *, mode: str, small: bool) -> Pixels:
    """A seek before each frame, or every frame is decoded and those wanted are converted."""
    import cv2

    cv2.setNumThreads(threads)
    settings = [cv2.CAP_PROP_N_THREADS, threads]
    capture = cv2.VideoCapture(str(video.path), cv2.CAP_FFMPEG, settings)
    wanted = centres(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    made, at = {}, 0
    for number in dict.fromkeys(wanted):
        if mode == "seek":
            capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        for _ in range(at, number if mode == "grab" else 0):
            capture.grab()
        there, picture = capture.read()
        if not there:
            raise MediaError(f"OpenCV gives no frame {number} of {video.path.name}.")
        if small:
            picture = cv2.resize(picture, resized(video), interpolation=cv2.INTER_AREA)
        made[number] = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
        at = number + 1
    pictures = np.stack([made[number] for number in wanted])
    return crop(pictures) if small else pictures


def both(read: Callable[..., Pixels], **more: str) -> tuple[decode.Read, decode.Read]:
    return partial(read, small=False, **more), partial(read, small=True, **more)


_FFMPEG = "pip install torchcodec, and FFmpeg's shared libraries"
_OPENCV = "pip install opencv-python-headless"
DECODERS = {
    **decode.OUR_OWN,
    "decord2": decode.Decoder("decord", "pip install decord2", "its own", *both(decord)),
}
for way in ("exact", "approximate"):  # these alone need torch
    reads = both(torchcodec, mode=way)
    DECODERS[f"torchcodec, {way}"] = decode.Decoder(
        "torchcodec", _FFMPEG, "its own, bilinear", *reads
    )
for way in ("seek", "grab"):
    DECODERS[f"OpenCV, {way}"] = decode.Decoder(
        "cv2", _OPENCV, "INTER_AREA", *both(opencv, mode=way)
    )


@benchmark
def main(
    clips: Clips = None, rounds: int = 5, quick: Quick = False, threads: Threads = 2
) -> Report:
    """Time to read 12 frames of a clip: ours, decord2, OpenCV and torchcodec.

    Example: python benchmarks/studies/decode_libraries.py --threads 1
    """
    return decode.compare(
        "decode-libraries", DECODERS, decode.clips_in(clips, quick), rounds, threads
    )


if __name__ == "__main__":
    main()

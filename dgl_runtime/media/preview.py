"""What a browser can show of any video: one frame as a JPEG, one moment as a small MP4."""

from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import MediaError
from dgl_runtime.media.container import media_faults, one_line
from dgl_runtime.media.frame_reader import FrameReader
from dgl_runtime.media.packet_index import PacketIndex, read_index
from dgl_runtime.media.preview_sound import add_sound, write_sound

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_S = 60.0
PREVIEW_SIDE = 640
_JPEG_QUALITY = 82
_TICKS = 90_000  # a second


def picture(path: Path, second: float, side: int) -> bytes:
    """The frame on display at a second, as a JPEG whose longer side is ``side`` pixels at the most.

    Raises:
        MediaError: It cannot be read.
    """
    index = read_index(path)
    (number,) = index.frames_at(np.array([second]))
    _, pixels = next(FrameReader(path, index).read([int(number)]))
    out = BytesIO()
    _shrunk(pixels, side).save(out, format="JPEG", quality=_JPEG_QUALITY)
    return out.getvalue()


def write_preview(
    path: Path, start_s: float, end_s: float, out: str, sign: Callable[[], None]
) -> None:
    """Write a moment as H.264 and AAC in MP4: what every browser plays.

    Args:
        path: The video.
        start_s: Seconds of a player's clock.
        end_s: As ``start_s``; at most ``LONGEST_S`` after it.
        out: The file to write.
        sign: Called for each frame.

    Raises:
        MediaError: The video cannot be read, or this PyAV cannot write H.264.
    """
    import av

    index = read_index(path)
    end_s = min(end_s, start_s + LONGEST_S)
    numbers = _inside(index, start_s, end_s)
    frames = FrameReader(path, index).read(numbers)
    try:
        with av.open(out, "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", options={"preset": "veryfast", "crf": "26"})
            stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, _TICKS)
            stream.codec_context.time_base = stream.time_base
            stream.thread_count = 1
            sound = None if index.is_still else add_sound(path, container)
            for number, pixels in frames:
                image = _shrunk(pixels, PREVIEW_SIDE)
                if not stream.codec_context.is_open:
                    stream.width, stream.height = _even(image)
                frame = av.VideoFrame.from_ndarray(
                    np.asarray(_fitted(image, (stream.width, stream.height))), format="rgb24"
                )
                seconds = index.second(int(index.shown[number])) - start_s
                frame.pts, frame.time_base = round(max(seconds, 0) * _TICKS), stream.time_base
                container.mux(stream.encode(frame))
                sign()
            container.mux(stream.encode(None))
            if sound is not None:
                write_sound(path, container, sound, index.zero_s + start_s, index.zero_s + end_s)
    except media_faults() as fault:
        raise MediaError(f"no preview of {path} can be made ({one_line(fault)}).") from fault


def _inside(index: PacketIndex, start_s: float, end_s: float) -> range:
    first, last = index.frames_at(np.array([start_s, end_s])).tolist()
    return range(first, last + 1)


def _shrunk(pixels: NDArray[np.uint8], side: int) -> "Image":
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return image


def _fitted(image: "Image", size: tuple[int, int]) -> "Image":
    """All of a picture in a size, in its own shape: pictures may change theirs in mid-stream."""
    from PIL import Image, ImageOps

    if _even(image) == size and min(image.size) > 1:
        return image.crop((0, 0, *size))
    return ImageOps.pad(image, size, Image.Resampling.BICUBIC)


def _even(image: "Image") -> tuple[int, int]:
    """H.264 in 4:2:0 takes even sizes only."""
    return max(image.width // 2 * 2, 2), max(image.height // 2 * 2, 2)

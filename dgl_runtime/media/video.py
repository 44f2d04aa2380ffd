"""Videos as training and serving see them: probe, cut into windows, read as pixels.

Training and serving share these functions, so a model is never served pixels it was not trained
on. PyAV and Pillow are imported on use.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dgl_runtime.errors import MediaError
from dgl_runtime.media.frame_reader import FrameReader
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.pixels import preprocess
from dgl_runtime.media.side_by_side import read_frames
from dgl_runtime.media.windows import Span, cut_windows, frame_times

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dgl_runtime.media.frame_spec import FrameSpec
    from dgl_runtime.media.packet_index import PacketIndex

__all__ = [
    "Span",
    "VideoInfo",
    "cut_windows",
    "frame_times",
    "probe",
    "read_clips",
]


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        path: The file.
        start_s: The second, by a player's clock, at which its first frame is shown: 0, or later if
            its sound begins before.
        duration_s: From its first frame to the end of its last, seconds, by the packets.
        width: Pixels of the picture as displayed (after rotation).
        height: Pixels of the picture as displayed (after rotation).
        num_frames: Frames, counted in the packets.
    """

    path: Path
    start_s: float
    duration_s: float
    width: int
    height: int
    num_frames: int


def probe(path: Path) -> VideoInfo:
    """Read what a video holds; its first frame is decoded for the size.

    Raises:
        MediaError: If the file is missing, unreadable, not a video, or nothing decodes.
    """
    index = read_index(path)
    _, picture = next(FrameReader(path, index).read([0]))
    height, width, _ = picture.shape
    return VideoInfo(path, index.start_s, index.duration_s, width, height, len(index.shown))


def read_clips(
    path: Path,
    spans: Sequence[Span],
    spec: FrameSpec,
    *,
    threads: int = 1,
    rng: np.random.Generator | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Read the frames of many spans in one forward pass over a video.

    The frame for a time is the one on display then. Spans that overlap share decoded frames; a
    frame is kept only while a later span needs it. A truncated file is as long as what is left
    of it. The pixel shape of anamorphic video is ignored, as CLIP's training did.

    Args:
        path: The video.
        spans: Stretches sorted by ``start_s``; what lies outside the video is cut off.
        spec: How many frames F of a span, and how each becomes pixels.
        threads: Threads that decode and resize: 1 to read many videos side by side, more for one
            at low latency.
        rng: None: frames at the centres of equal segments; a generator: drawn inside them.

    Returns:
        One clip for each span in the same order, uint8 [F, 3, S, S] RGB.

    Raises:
        ValueError: If the spec has a fault, there is no thread, or spans are not sorted or end before
            they start.
        MediaError: If the file cannot be read, a span lies outside it, or, while reading, more
            than a second of it cannot be decoded.
    """
    for fault in spec.faults():
        raise ValueError(f"{fault}.")
    if threads < 1:
        raise ValueError(f"threads is {threads}, expected 1 or more.")
    if any(a.start_s > b.start_s for a, b in pairwise(spans)):
        raise ValueError("the spans are not sorted by start_s; sort them first.")
    index = read_index(path)
    wanted = [
        index.frames_at(frame_times(_inside(path, span, index), spec.num_frames, rng))
        for span in spans
    ]
    last_use = {int(number): i for i, numbers in enumerate(wanted) for number in numbers}

    def shape(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return preprocess(picture, spec)

    frames = read_frames(path, index, sorted(last_use), shape, threads=threads)
    return _clips(frames, wanted, last_use)


def _inside(path: Path, span: Span, index: PacketIndex) -> Span:
    """The part of a span in which the video has pictures."""
    if span.start_s <= span.end_s and (span.start_s >= index.end_s or span.end_s < index.start_s):
        begins = f"begins at {index.start_s:g} s and " if index.start_s else ""
        raise MediaError(
            f"The span {span.start_s:g} to {span.end_s:g} s lies outside {path}, which {begins}lasts "
            f"{index.end_s:g} s. Check the times, or leave it out."
        )
    return Span(max(span.start_s, index.start_s), min(span.end_s, index.end_s))


def _clips(
    frames: Iterator[tuple[int, NDArray[np.uint8]]],
    wanted: Sequence[NDArray[np.int64]],
    last_use: Mapping[int, int],
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames [F] of each span as pixels, holding a frame only while it is needed."""
    kept: dict[int, NDArray[np.uint8]] = {}
    for i, numbers in enumerate(wanted):
        needed = set(numbers.tolist())
        while not needed <= kept.keys():
            number, pixels = next(frames)
            kept[number] = pixels
        yield np.stack([kept[int(number)] for number in numbers])
        kept = {number: pixels for number, pixels in kept.items() if last_use[number] > i}

"""Where one shot ends and the next begins: PySceneDetect looks at the frames that we read."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dgl_runtime.errors import MediaError
from dgl_runtime.media.frame_reader import FrameReader
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.side_by_side import read_ahead
from dgl_runtime.media.windows import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from dgl_runtime.media.packet_index import PacketIndex

SHORTEST_SHOT_S = 0.6
_SAME_S = 1e-6  # smaller differences are rounding noise
_SIDE = 256
"""The longer side of what is looked at, pixels, as in PySceneDetect."""

_THREADS = 2  # that decode, beside the one that looks
_GIVE_UP = 32  # stretches of one video that do not decode


def find_shots(path: Path, whole: Span, sign: Callable[[], None]) -> list[Span]:
    """Shots of a video, by PySceneDetect's adaptive detector; every frame is decoded.

    A stretch that does not decode hides the cuts in it; what comes before and behind is looked at.

    Args:
        path: The video.
        whole: The part of it to cut into shots, all of it or nearly.
        sign: Called for each frame.

    Raises:
        MediaError: It cannot be read.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode

    index = read_index(path)
    shortest_s = SHORTEST_SHOT_S - _SAME_S
    detector = AdaptiveDetector(min_scene_len=shortest_s)
    rate = len(index.shown) / index.duration_s  # only named: what counts is each frame's second
    starts: list[float] = []
    for number, picture in _pictures(path, index):
        second = index.second(int(index.shown[number]))
        cuts = detector.process_frame(FrameTimecode(second, rate), picture)
        starts += [cut.seconds for cut in cuts]
        sign()
    inside = [start for start in starts if start <= whole.end_s - shortest_s]
    return [Span(*ends) for ends in pairwise([whole.start_s, *inside, whole.end_s])]


def _pictures(path: Path, index: PacketIndex) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Frame numbers and small pictures, uint8 [h, w, 3] BGR, all as large as the first."""
    from cv2 import resize

    numbers, lost, size = range(len(index.shown)), 0, None
    while numbers and lost < _GIVE_UP:
        try:
            frames = FrameReader(path, index, threads=_THREADS).read(numbers)
            for number, small in read_ahead((number, _small(frame)) for number, frame in frames):
                size = size or small.shape[1::-1]
                yield number, np.asarray(resize(small, size), np.uint8)
                numbers = range(number + 1, len(index.shown))
        except MediaError:  # whoever reads the clips will say so
            lost += 1
            keys = index.keyframes_before(index.shown[numbers])
            numbers = numbers[int(np.searchsorted(keys, keys[0], side="right")) :]


def _small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from cv2 import resize

    height, width, _ = picture.shape
    scale = min(_SIDE / max(width, height), 1.0)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = resize(picture, size)
    return np.ascontiguousarray(small[:, :, ::-1], np.uint8)

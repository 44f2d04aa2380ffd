"""Chosen frames of one video, read with several threads: decoders side by side where that pays."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from dgl_runtime.media.frame_reader import SEEK_SAVES_PACKETS, FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dgl_runtime.media.packet_index import PacketIndex

_PIECE = 16
"""Frames a decoder of several reads at a time: with the next, a bound on what waits to be taken."""

_AHEAD = 2
"""Pictures decoded before they are taken, with one decoder."""

Shaped = TypeVar("Shaped")


def read_frames(
    path: Path,
    index: PacketIndex,
    numbers: Sequence[int],
    shape: Callable[[NDArray[np.uint8]], Shaped],
    *,
    threads: int,
) -> Iterator[tuple[int, Shaped]]:
    """Yield chosen frames, each as ``shape`` makes it.

    Frames that hang on different keyframes are decoded side by side, which uses threads better
    than one decoder with all of them: at a seek, the threads of one decoder run dry.

    Args:
        path: The video.
        index: Its packet index.
        numbers: Frame numbers in order of display, ascending.
        shape: Makes of a picture, uint8 [H, W, 3] RGB, what is wanted; may run in any thread.
        threads: Threads at work, 1 or more.

    Yields:
        The number and what ``shape`` returned, in the order of ``numbers``.

    Raises:
        MediaError: If the file cannot be opened, or frames are lost for too long.
    """
    runs = [numbers] if index.is_counted or index.has_jumps else _runs(index, numbers)
    if threads > 1 and len(runs) > 1:
        return _side_by_side(path, index, runs, shape, threads)
    frames = FrameReader(path, index, threads=threads).read(numbers)
    if threads > 1:
        frames = read_ahead(frames)
    return ((number, shape(picture)) for number, picture in frames)


def _runs(index: PacketIndex, numbers: Sequence[int]) -> list[Sequence[int]]:
    """Cut ascending frame numbers at keyframes so far apart that a seek pays."""
    keys = index.keyframes_before(index.shown[list(numbers)])
    starts = [0]
    for place, key in enumerate(keys):
        if key - keys[starts[-1]] >= SEEK_SAVES_PACKETS:
            starts.append(place)
    return [numbers[a:b] for a, b in zip(starts, [*starts[1:], len(numbers)], strict=True)]


def _side_by_side(
    path: Path,
    index: PacketIndex,
    runs: Sequence[Sequence[int]],
    shape: Callable[[NDArray[np.uint8]], Shaped],
    threads: int,
) -> Iterator[tuple[int, Shaped]]:
    """Decode and shape runs of frames in turn, each decoder in a thread of its own."""
    count = min(threads, len(runs))
    passes = [
        FrameReader(path, index, threads=threads // count).read(list(chain(*runs[place::count])))
        for place in range(count)
    ]

    def read_piece(place: int, length: int) -> list[tuple[int, Shaped]]:
        return [(number, shape(picture)) for number, picture in islice(passes[place], length)]

    waiting: deque[Future[list[tuple[int, Shaped]]]] = deque()
    with ExitStack() as opened:
        for one in passes:
            opened.callback(one.close)
        workers = [opened.enter_context(ThreadPoolExecutor(1)) for _ in passes]
        opened.callback(lambda: [future.cancel() for future in waiting])
        for turn, run in enumerate(runs):
            place = turn % count
            for start in range(0, len(run), _PIECE):
                length = min(_PIECE, len(run) - start)
                waiting.append(workers[place].submit(read_piece, place, length))
                if len(waiting) > 2 * count:
                    yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def read_ahead(
    frames: Generator[tuple[int, NDArray[np.uint8]]],
) -> Generator[tuple[int, NDArray[np.uint8]]]:
    """Decode the next frames in a second thread while the caller works on one."""
    with closing(frames), ThreadPoolExecutor(1) as decoder:
        waiting = deque(decoder.submit(next, frames, None) for _ in range(_AHEAD))
        while (found := waiting.popleft().result()) is not None:
            waiting.append(decoder.submit(next, frames, None))
            yield found

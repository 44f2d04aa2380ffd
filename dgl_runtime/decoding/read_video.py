"""One video, read: what it holds, its clips as they are decoded, and in the end what is wrong with it.

Pure: it knows no process, socket or gallery. The worker process calls it, whoever reads without processes,
and training's check, so that all of them say the same of the same file.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.decoding.decode_process import LostWorkerError
from dgl_runtime.errors import MediaError
from dgl_runtime.media.container import media_faults, one_line
from dgl_runtime.media.content_hash import content_hash
from dgl_runtime.media.frame_reader import FrameReader
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.media.packet_index import PacketIndex, read_index
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.media.video import read_clips
from dgl_runtime.media.windows import Span

CLIPS_AT_ONCE = 8
_GIVE_UP = 32  # stretches of one video that do not decode


@dataclass(frozen=True)
class Job:
    """A video to look into; ``content`` is its sha256, if that is known."""

    path: Path
    content: str | None = None


@dataclass(frozen=True)
class Seen:
    """What a video holds, before any of it is decoded; ``remarks`` say what is odd about it."""

    path: Path
    content: str  # its sha256
    duration_s: float
    spans: tuple[Span, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clips:
    """Clips of a video."""

    seen: Seen
    numbers: tuple[int, ...]  # of its spans
    frames: NDArray[np.uint8]  # [B, F, 3, S, S]


@dataclass(frozen=True)
class Done:
    """A video is through.

    Attributes:
        path: The video.
        content: Its sha256, if that was asked for or found out.
        seen: What was seen of it; None: nothing could be, or its content was known.
        fault: What is wrong, in a sentence that names the path; None: nothing.
        is_unreadable: The fault is the file's own, not this machine's.
        loss: What became of the process that looked into it, if it was lost.
    """

    path: Path
    content: str | None
    seen: Seen | None
    fault: str | None
    is_unreadable: bool = False
    loss: LostWorkerError | None = None


Found = Seen | Clips | Done
Choose = Callable[[Seen], Sequence[int]]
"""Which clips of a video to read, as numbers of its spans, ascending."""

IsKnown = Callable[[str], bool]
"""Whether all that is wanted is known of a content."""


def every_clip(seen: Seen) -> Sequence[int]:
    """Read all there is."""
    return range(len(seen.spans))


def read_video(
    path: Path,
    segmentation: Segmentation,
    frame_spec: FrameSpec | None,
    choose: Choose = every_clip,
    *,
    content: str | None = None,
    is_known: IsKnown | None = None,
    sign: Callable[[], None] = lambda: None,
) -> Iterator[Found]:
    """Read a video: ``Seen``, then ``Clips`` as they come, then ``Done``; nothing is read ahead.

    A stretch that does not decode costs the clips in it, and the fault of the last one is told.

    Args:
        path: The video.
        segmentation: How it is cut into clips.
        frame_spec: What becomes of a clip's frames; None: no clips, but every frame is decoded, to
            see whether it can be, and a picture is refused.
        choose: Asked once, when ``Seen`` was taken.
        content: Its sha256, if that is known.
        is_known: Asked before the file is opened, which costs a hash also where it cannot be read; None:
            nothing is known.
        sign: Called now and then, to show that work goes on.
    """
    seen = fault = None
    try:
        if is_known is not None:
            content = content or content_hash(path, sign)
            if is_known(content):
                yield Done(path, content, None, None)
                return
        with _blaming(path):
            duration_s, spans = segmentation.spans(path, sign)
            index = read_index(path)  # kept from the first look
            content = content or content_hash(path, sign)
        seen = Seen(path, content, duration_s, tuple(spans), index.remarks)
        yield seen
        numbers = choose(seen)
        with _blaming(path):
            if frame_spec is not None:
                fault = yield from _read_clips(seen, numbers, frame_spec, sign)
            elif index.missing is None:
                _decode_all(path, index, sign)
        if index.missing is not None:  # told first, whatever else is wrong: every reader sees it
            fault = f"{path} {index.missing} {fault or ''}"
    except MediaError as error:
        fault = str(error)
    yield Done(path, content, seen, fault and " ".join(fault.split()), fault is not None)


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """What a library throws at a damaged file is the file's fault; what a callback throws is not."""
    try:
        yield
    except media_faults() as error:
        raise MediaError(f"{path} cannot be read ({one_line(error)}). Get it again.") from error


def _decode_all(path: Path, index: PacketIndex, sign: Callable[[], None]) -> None:
    """Decode every frame: a damaged stretch may lie between any two."""
    if index.is_still:
        raise MediaError(f"{path} is a picture, expected a video. Get it again.")
    for _ in FrameReader(path, index).read(range(len(index.shown))):
        sign()


def _read_clips(
    seen: Seen, numbers: Sequence[int], frame_spec: FrameSpec, sign: Callable[[], None]
) -> Generator[Clips, None, str | None]:
    """Read clips, some at once; stretches that do not decode are left out and the last one is told."""
    fault, lost = None, 0
    left = list(numbers)
    batch: list[tuple[int, NDArray[np.uint8]]] = []
    while left and lost < _GIVE_UP:
        clips = read_clips(seen.path, [seen.spans[number] for number in left], frame_spec)
        try:
            for clip in clips:
                batch.append((left.pop(0), clip))
                sign()
                if len(batch) == CLIPS_AT_ONCE:
                    yield _together(seen, batch)
                    batch = []
        except MediaError as error:
            fault, lost = str(error), lost + 1
            left = left[1:]
    if batch:
        yield _together(seen, batch)
    if fault is None:
        return None
    sent = len(numbers) - lost - len(left)
    return (
        fault if len(numbers) == 1 else f"{fault} {sent} of {len(numbers)} clips of it were read."
    )


def _together(seen: Seen, batch: Sequence[tuple[int, NDArray[np.uint8]]]) -> Clips:
    numbers, frames = zip(*batch, strict=True)
    return Clips(seen, numbers, np.stack(frames))


class Reader(Protocol):
    """Looks into many videos: ``DecodePool`` does in processes, ``ReadHere`` in this one."""

    def read(
        self, jobs: Iterable[Job], choose: Choose = every_clip, is_known: IsKnown | None = None
    ) -> Iterator[Found]:
        """As ``read_video``, of each."""

    def stop(self) -> None:
        """Make a :meth:`read` in another thread end."""


class ReadHere:
    """Reads without processes: for few videos, tests, and schedulers with processes of their own."""

    def __init__(self, segmentation: Segmentation, frame_spec: FrameSpec | None) -> None:
        """Prepare; the arguments are those of ``read_video``."""
        self._segmentation, self._frame_spec = segmentation, frame_spec
        self._is_stopped = False

    def read(
        self, jobs: Iterable[Job], choose: Choose = every_clip, is_known: IsKnown | None = None
    ) -> Iterator[Found]:
        """As ``read_video``, of one after the other."""
        for job in jobs:
            if self._is_stopped:
                return
            yield from read_video(
                job.path,
                self._segmentation,
                self._frame_spec,
                choose,
                content=job.content,
                is_known=is_known,
            )

    def stop(self) -> None:
        """Begin no further video."""
        self._is_stopped = True

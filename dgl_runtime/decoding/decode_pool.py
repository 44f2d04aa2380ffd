"""Worker processes that look into videos side by side; one that crashes or hangs costs its video alone.

What they have read waits in their sockets until it is taken, so memory is bounded by their number.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.decoding.decode_process import Limits, LostWorkerError
from dgl_runtime.decoding.workers import Worker, Workers
from dgl_runtime.media.cutting import Cutting
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.media.windows import Span

__all__ = ["Clips", "DecodePool", "Done", "Found", "Job", "Limits", "Seen"]


@dataclass(frozen=True)
class Job:
    """A video to look into; ``content`` is its sha256, if that is known."""

    path: Path
    content: str | None = None


@dataclass(frozen=True)
class Seen:
    """What a video holds, before any of it is decoded; ``remarks`` say what is odd about it."""

    job: Job
    content: str
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
    """A video is through; ``seen`` is None if nothing could be seen, ``fault`` if nothing is wrong."""

    job: Job
    seen: Seen | None
    fault: str | None
    is_unreadable: bool = False  # the file's own fault, not this machine's


Found = Seen | Clips | Done
Choose = Callable[[Seen], Sequence[int]]  # which spans to read


@dataclass
class _Look:
    """A video that a worker looks into."""

    job: Job
    seen: Seen | None = None


class DecodePool:
    """Look into videos with some processes. Use as a context; one thread at a time."""

    def __init__(
        self, cutting: Cutting, spec: FrameSpec, *, jobs: int, limits: Limits | None = None
    ) -> None:
        """Prepare; processes start when they are needed.

        Args:
            cutting: How videos are cut into clips.
            spec: What becomes of a clip's frames.
            jobs: Processes, 1 or more.
            limits: Of one video.
        """
        self._cutting, self._spec = cutting, spec
        self._workers = Workers[_Look](jobs, limits or Limits())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.__exit__()

    def stop(self) -> None:
        """End the processes, and so a :meth:`read` in another thread."""
        self._workers.stop()

    def read(self, jobs: Iterable[Job], choose: Choose) -> Iterator[Found]:
        """Look into videos; of one video ``Seen`` comes first, then ``Clips``, then ``Done``.

        Args:
            jobs: The videos; taken one by one as processes come free.
            choose: Says which clips of a video to read, as numbers of its spans, ascending.

        Raises:
            MediaError: No process can be started.
        """
        waiting = iter(jobs)
        while not self._workers.is_stopped:
            while self._workers.have_room and (job := next(waiting, None)) is not None:
                self._begin(job)
            if not self._workers.are_busy:
                return
            for worker in self._workers.speaking():
                if (found := self._hear(worker, choose)) is not None:
                    yield found

    def _begin(self, job: Job) -> None:
        asked = {"path": str(job.path), "content": job.content, "cutting": str(self._cutting)}
        self._workers.begin(_Look(job), {**asked, "frames": asdict(self._spec)})

    def _hear(self, worker: Worker[_Look], choose: Choose) -> Found | None:
        look, process = worker.task, worker.process
        try:
            message = process.hear()
            if "clips" in message:
                assert look.seen is not None
                numbers = tuple(message["clips"])
                return Clips(look.seen, numbers, self._pixels(process.receive(), len(numbers)))
        except LostWorkerError as loss:
            self._workers.dismiss(worker)
            return Done(look.job, look.seen, f"{look.job.path} {loss}. {loss.remedy}")
        if "content" in message:
            spans = tuple(Span(start_s, end_s) for start_s, end_s in message["spans"])
            content, duration_s = message["content"], message["duration_s"]
            look.seen = Seen(look.job, content, duration_s, spans, tuple(message["remarks"]))
            process.say(list(choose(look.seen)))
            return look.seen
        if "done" in message:
            self._workers.release(worker)
            return Done(look.job, look.seen, message["done"], message["unreadable"])
        return None  # a sign of life

    def _pixels(self, data: bytes, count: int) -> NDArray[np.uint8]:
        size = self._spec.size
        return np.frombuffer(data, np.uint8).reshape(count, self._spec.num_frames, 3, size, size)

"""Worker processes that look into videos side by side; one that crashes or hangs costs its video alone.

What they have read waits in their sockets until it is taken, so memory is bounded by their number.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.cutting import Cutting
from dgl_runtime.decode_process import DecodeProcess, Limits, LostWorkerError
from dgl_runtime.windows import Span

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
class _Worker:
    """A process, and the video it looks into."""

    process: DecodeProcess
    job: Job | None = None
    seen: Seen | None = None


class DecodePool:
    """Look into videos with some processes. Use as a context; one thread at a time."""

    def __init__(
        self, cutting: Cutting, form: tuple[int, int], *, jobs: int, limits: Limits | None = None
    ) -> None:
        """Prepare; processes start when they are needed.

        Args:
            cutting: How videos are cut into clips.
            form: F, frames a clip, and S, the side of a frame.
            jobs: Processes, 1 or more.
            limits: Of one video.
        """
        self._cutting, self._form, self._jobs = cutting, form, jobs
        self._limits = limits or Limits()
        self._workers: list[_Worker] = []
        self._is_stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.close()
        self._workers.clear()

    def stop(self) -> None:
        """End the processes, and so a :meth:`read` in another thread."""
        self._is_stopped = True
        for worker in self._workers:
            worker.process.process.kill()

    def read(self, jobs: Iterable[Job], choose: Choose) -> Iterator[Found]:
        """Look into videos; of one video ``Seen`` comes first, then ``Clips``, then ``Done``.

        Args:
            jobs: The videos; taken one by one as processes come free.
            choose: Says which clips of a video to read, as numbers of its spans, ascending.
        """
        waiting, busy = iter(jobs), list[_Worker]()
        while not self._is_stopped:
            while len(busy) < self._jobs and (job := next(waiting, None)) is not None:
                busy.append(self._begin(job, busy))
            if not busy:
                return
            for worker in self._with_something_to_say(busy):
                if (found := self._hear(worker, choose)) is not None:
                    yield found
                if worker.job is None:
                    busy.remove(worker)

    def _begin(self, job: Job, busy: list[_Worker]) -> _Worker:
        idle = [worker for worker in self._workers if worker not in busy]
        if not idle:
            idle = [_Worker(DecodeProcess.start(self._limits))]
            self._workers += idle
        worker = idle[0]
        worker.job, worker.seen = job, None
        asked = {"path": str(job.path), "content": job.content, "cutting": str(self._cutting)}
        worker.process.say({**asked, "form": self._form})
        return worker

    def _with_something_to_say(self, busy: list[_Worker]) -> list[_Worker]:
        """Wait for some; those that have said nothing for too long are among them."""
        now = time.monotonic()
        patience_s = min(one.process.heard_at for one in busy) + self._limits.silent_s - now
        ready = wait([one.process.line for one in busy], timeout=max(patience_s, 0.0))
        late = time.monotonic() - self._limits.silent_s
        return [one for one in busy if one.process.line in ready or one.process.heard_at <= late]

    def _hear(self, worker: _Worker, choose: Choose) -> Found | None:
        job = worker.job
        assert job is not None
        try:
            message = worker.process.hear()
            if "clips" in message:
                assert worker.seen is not None
                numbers = tuple(message["clips"])
                return Clips(
                    worker.seen, numbers, self._pixels(worker.process.receive(), len(numbers))
                )
        except LostWorkerError as loss:
            worker.process.close()
            self._workers.remove(worker)
            worker.job = None
            fault = f"{job.path} {loss}. Play it to check, and re-encode it."
            return Done(job, worker.seen, fault)
        if "content" in message:
            spans = tuple(Span(start_s, end_s) for start_s, end_s in message["spans"])
            content, duration_s = message["content"], message["duration_s"]
            worker.seen = Seen(job, content, duration_s, spans, tuple(message["remarks"]))
            worker.process.say(list(choose(worker.seen)))
            return worker.seen
        if "done" in message:
            worker.job = None
            return Done(job, worker.seen, message["done"], message["unreadable"])
        return None  # a sign of life

    def _pixels(self, data: bytes, count: int) -> NDArray[np.uint8]:
        num_frames, size = self._form
        return np.frombuffer(data, np.uint8).reshape(count, num_frames, 3, size, size)

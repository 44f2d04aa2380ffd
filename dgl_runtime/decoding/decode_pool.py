"""A pool of processes that decode videos: it hands them out, and fails one whose process is lost.

What they have read waits in their sockets until it is taken, so memory is bounded by their number.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.decoding.decode_process import Limits, LostWorkerError
from dgl_runtime.decoding.read_video import (
    Choose,
    Clips,
    Done,
    Found,
    IsKnown,
    Job,
    Seen,
    every_clip,
)
from dgl_runtime.decoding.workers import Worker, Workers
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.media.windows import Span

__all__ = ["Clips", "DecodePool", "Done", "Found", "Job", "Limits", "Seen"]


@dataclass
class _Look:
    """A video that a worker looks into."""

    job: Job
    content: str | None
    seen: Seen | None = None


class DecodePool:
    """Look into videos with some processes. Use as a context; one thread at a time."""

    def __init__(
        self,
        segmentation: Segmentation,
        frame_spec: FrameSpec | None,
        *,
        jobs: int,
        limits: Limits | None = None,
    ) -> None:
        """Prepare; processes start when they are needed.

        Args:
            segmentation: How videos are cut into clips.
            frame_spec: As of ``read_video``.
            jobs: Processes, 1 or more.
            limits: Of one video.
        """
        self._segmentation, self._frame_spec = segmentation, frame_spec
        self._workers = Workers[_Look](jobs, limits or Limits())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.__exit__()

    def stop(self) -> None:
        """End the processes, and so a :meth:`read` in another thread."""
        self._workers.stop()

    def read(
        self, jobs: Iterable[Job], choose: Choose = every_clip, is_known: IsKnown | None = None
    ) -> Iterator[Found]:
        """Look into videos side by side, each as ``read_video`` does.

        Args:
            jobs: The videos; taken one by one as processes come free.
            choose: As of ``read_video``; called in the thread that takes what is found.
            is_known: As of ``read_video``; called as ``choose``.

        Raises:
            MediaError: No process can be started.
        """
        waiting = iter(jobs)
        while not self._workers.is_stopped:
            while self._workers.have_room and (job := next(waiting, None)) is not None:
                self._begin(job, asks=is_known is not None)
            if not self._workers.are_busy:
                return
            for worker in self._workers.speaking():
                if (found := self._hear(worker, choose, is_known)) is not None:
                    yield found

    def _begin(self, job: Job, *, asks: bool) -> None:
        asked = {
            "path": str(job.path),
            "content": job.content,
            "segmentation": str(self._segmentation),
        }
        look = _Look(job, job.content)
        spec = self._frame_spec and asdict(self._frame_spec)
        self._workers.begin(look, {**asked, "frames": spec, "asks": asks})

    def _hear(
        self, worker: Worker[_Look], choose: Choose, is_known: IsKnown | None
    ) -> Found | None:
        look, process, path = worker.task, worker.process, worker.task.job.path
        try:
            message = process.receive()
            if "clips" in message:
                assert look.seen is not None
                numbers = tuple(message["clips"])
                return Clips(
                    look.seen, numbers, self._pixels(process.receive_bytes(), len(numbers))
                )
        except LostWorkerError as loss:
            self._workers.dismiss(worker)
            fault = f"{path} {loss}. {loss.remedy}"
            return Done(path, look.content, look.seen, fault, loss=loss)
        if "hashed" in message:
            assert is_known is not None
            look.content = message["hashed"]
            process.send(is_known(message["hashed"]))
        elif "content" in message:
            spans = tuple(Span(start_s, end_s) for start_s, end_s in message["spans"])
            look.content, duration_s = message["content"], message["duration_s"]
            look.seen = Seen(path, message["content"], duration_s, spans, tuple(message["remarks"]))
            process.send(list(choose(look.seen)))
            return look.seen
        elif "done" in message:
            self._workers.release(worker)
            fault, is_unreadable = message["done"], message["unreadable"]
            return Done(path, look.content, look.seen, fault, is_unreadable)
        return None  # a sign of life, or its question

    def _pixels(self, data: bytes, count: int) -> NDArray[np.uint8]:
        assert self._frame_spec is not None
        num_frames, size = self._frame_spec.num_frames, self._frame_spec.size
        return np.frombuffer(data, np.uint8).reshape(count, num_frames, 3, size, size)

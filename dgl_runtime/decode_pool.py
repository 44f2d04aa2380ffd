"""Worker processes that look into videos side by side; one that crashes or hangs costs its video alone.

What they have read waits in their sockets until it is taken, so memory is bounded by their number.
"""

import json
import math
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.cutting import Cutting
from dgl_runtime.errors import EngineError
from dgl_runtime.windows import Span


@dataclass(frozen=True)
class Limits:
    """What one video may cost: bytes of memory, and seconds without a sign of life."""

    most_bytes: int = 6 * 2**30
    silent_s: float = 300.0


@dataclass(frozen=True)
class Job:
    """A video to look into; ``content`` is its sha256, if that is known."""

    path: Path
    content: str | None = None


@dataclass(frozen=True)
class Seen:
    """What a video holds, before any of it is decoded."""

    job: Job
    content: str
    duration_s: float
    spans: tuple[Span, ...]


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


Found = Seen | Clips | Done
Choose = Callable[[Seen], Sequence[int]]  # which spans to read


@dataclass
class _Worker:
    """One process, its socket, and the video it looks into."""

    process: subprocess.Popen[bytes]
    line: Connection
    job: Job | None = None
    seen: Seen | None = None
    heard_at: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, limits: Limits) -> Self:
        ours, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-m", "dgl_runtime.decode_worker"]
            command += [str(theirs.fileno()), str(limits.most_bytes)]
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        return cls(process, ours)

    def say(self, message: object) -> None:
        """Send, if it is still there; that it is not shows when it is heard."""
        with suppress(OSError):
            self.line.send_bytes(json.dumps(message).encode())

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.line.close()


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
            worker.close()
        self._workers.clear()

    def stop(self) -> None:
        """End the processes, and so a :meth:`read` in another thread."""
        self._is_stopped = True
        for worker in self._workers:
            worker.process.kill()

    def read(self, jobs: Iterable[Job], choose: Choose) -> Iterator[Found]:
        """Look into videos; of one video ``Seen`` comes first, then ``Clips``, then ``Done``.

        Args:
            jobs: The videos; taken one by one as processes come free.
            choose: Says which clips of a video to read, as numbers of its spans, ascending.
        """
        waiting, busy = iter(jobs), deque[_Worker]()
        while not self._is_stopped:
            while len(busy) < self._jobs and (job := next(waiting, None)) is not None:
                busy.append(self._begin(job, busy))
            if not busy:
                return
            for worker in self._that_speak(busy):
                found = self._hear(worker, choose)
                if found is not None:
                    yield found
                if worker.job is None:
                    busy.remove(worker)

    def _begin(self, job: Job, busy: deque[_Worker]) -> _Worker:
        idle = [worker for worker in self._workers if worker not in busy]
        if not idle:
            idle = [_Worker.start(self._limits)]
            self._workers += idle
        worker = idle[0]
        worker.job, worker.seen, worker.heard_at = job, None, time.monotonic()
        asked = {"path": str(job.path), "content": job.content, "cutting": str(self._cutting)}
        worker.say({**asked, "form": self._form})
        return worker

    def _that_speak(self, busy: deque[_Worker]) -> list[_Worker]:
        """Workers with something to hear, or with nothing for too long."""
        now = time.monotonic()
        patience_s = min(one.heard_at for one in busy) + self._limits.silent_s - now
        ready = wait([one.line for one in busy], timeout=max(patience_s, 0.0))
        now = time.monotonic()
        speaking = [one for one in busy if one.line in ready]
        for one in speaking:
            one.heard_at = now
        silent = [one for one in busy if now - one.heard_at >= self._limits.silent_s]
        return speaking + silent

    def _hear(self, worker: _Worker, choose: Choose) -> Found | None:
        if time.monotonic() - worker.heard_at >= self._limits.silent_s:
            limit = f"{self._limits.silent_s:g} s"
            return self._lost(worker, f"took more than {limit} without any progress")
        try:
            message = json.loads(worker.line.recv_bytes())
            if "clips" in message:
                frames = self._receive(worker, len(message["clips"]))
        except (EOFError, OSError):
            code = worker.process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return self._lost(worker, f"crashed the decoder ({how})")
        job, seen = worker.job, worker.seen
        assert job is not None
        if "clips" in message:
            assert seen is not None
            return Clips(seen, tuple(message["clips"]), frames)
        if "content" in message:
            spans = tuple(Span(start_s, end_s) for start_s, end_s in message["spans"])
            worker.seen = Seen(job, message["content"], message["duration_s"], spans)
            worker.say(list(choose(worker.seen)))
            return worker.seen
        if "done" in message:
            worker.job = None
            return Done(job, seen, message["done"])
        return None

    def _receive(self, worker: _Worker, count: int) -> NDArray[np.uint8]:
        num_frames, size = self._form
        frames = np.empty((count, num_frames, 3, size, size), np.uint8)
        received = worker.line.recv_bytes_into(frames.data.cast("B"))
        if received != math.prod(frames.shape):
            raise EngineError(f"a decoder sent {received} bytes, expected {frames.nbytes}.")
        return frames

    def _lost(self, worker: _Worker, what: str) -> Done:
        """Give up a process and the video it was at."""
        worker.close()
        self._workers.remove(worker)
        job, worker.job = worker.job, None
        assert job is not None
        return Done(job, worker.seen, f"{job.path} {what}. Play it to check, and re-encode it.")

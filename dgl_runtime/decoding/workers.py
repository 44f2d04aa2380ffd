"""Any processes side by side, each behind a socket of its own; for decoding and for training's reading.

Nothing is shared between them: no shared memory, no lock that one could take with it when it is killed.
"""

import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from threading import Lock
from typing import Any, Generic, Self, TypeVar

from dgl_runtime.decoding.decode_process import DecodeProcess, Limits
from dgl_runtime.errors import MediaError, reason_of

Task = TypeVar("Task")


@dataclass(eq=False)
class Worker(Generic[Task]):
    """A process and what it is at."""

    process: DecodeProcess
    task: Task


class Workers(Generic[Task]):
    """Some processes, started when they are needed. Use as a context; one thread at a time."""

    def __init__(
        self, count: int, limits: Limits, program: str = "dgl_runtime.decoding.decode_worker"
    ) -> None:
        """Prepare.

        Args:
            count: Processes at most, 1 or more.
            limits: Of each task.
            program: The module they run, which speaks as ``decode_worker.py`` does.
        """
        self.count = count
        self._limits, self._program = limits, program
        self._busy: list[Worker[Task]] = []
        self._idle: list[DecodeProcess] = []
        self._all: set[DecodeProcess] = set()
        self._lock = Lock()  # of what :meth:`stop` looks at
        self.is_stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in list(self._all):
            self._end(process)
        self._busy.clear()
        self._idle.clear()

    def stop(self) -> None:
        """End all processes; may be called while another thread waits in :meth:`speaking`."""
        with self._lock:
            self.is_stopped = True
            for process in self._all:
                process.process.kill()

    @property
    def are_busy(self) -> bool:
        """Whether any is at work."""
        return bool(self._busy)

    @property
    def have_room(self) -> bool:
        """Whether one more task can begin."""
        return len(self._busy) < self.count and not self.is_stopped

    def begin(self, task: Task, asked: dict[str, Any]) -> None:
        """Ask a process that has nothing to do.

        Raises:
            MediaError: None can be started.
        """
        process = self._free_process()
        self._busy.append(Worker(process, task))
        process.send(asked)

    def speaking(self) -> list[Worker[Task]]:
        """Wait for some to say something; those that have said nothing for too long are among them."""
        silent_s = self._limits.silent_s
        first = min(worker.process.heard_at for worker in self._busy)
        patience_s = max(first + silent_s - time.monotonic(), 0.0)
        ready = wait([worker.process.line for worker in self._busy], timeout=patience_s)
        late = time.monotonic() - silent_s
        return [
            worker
            for worker in self._busy
            if worker.process.line in ready or worker.process.heard_at <= late
        ]

    def release(self, worker: Worker[Task]) -> None:
        """It is done, and may be asked again."""
        self._busy.remove(worker)
        self._idle.append(worker.process)

    def dismiss(self, worker: Worker[Task]) -> None:
        """It is lost; another takes its place when one is needed."""
        self._busy.remove(worker)
        self._end(worker.process)

    def _free_process(self) -> DecodeProcess:
        while self._idle:
            process = self._idle.pop()
            if process.is_running:
                return process
            self._end(process)  # killed while it had nothing to do: no task is to blame
        try:
            process = DecodeProcess.start(self._limits, self._program)
        except OSError as error:
            raise MediaError(
                f"no process that decodes videos can be started: {reason_of(error)}. Let fewer run at "
                "once, or raise the limits on processes, files and memory."
            ) from error
        with self._lock:
            self._all.add(process)
            if self.is_stopped:
                process.process.kill()
        return process

    def _end(self, process: DecodeProcess) -> None:
        process.close()
        with self._lock:
            self._all.discard(process)

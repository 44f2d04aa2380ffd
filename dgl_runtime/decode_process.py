"""One worker process that looks into videos, and the socket to it: what it says, that it crashed or hangs."""

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Self

from dgl_runtime.errors import MediaError


@dataclass(frozen=True)
class Limits:
    """What one video may cost: bytes of memory, and seconds without a sign of life."""

    most_bytes: int = 6 * 2**30
    silent_s: float = 300.0


class LostWorkerError(Exception):
    """The process crashed, or has not been heard for too long; its text says which."""


@dataclass
class DecodeProcess:
    """A running ``decode_worker.py``. Close it after use."""

    process: subprocess.Popen[bytes]
    line: Connection
    limits: Limits
    heard_at: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, limits: Limits) -> Self:
        """Start one."""
        ours, theirs = Pipe()
        with theirs:
            # -P: not what lies in the current folder, which may be one of downloads.
            command = [sys.executable, "-P", "-m", "dgl_runtime.decode_worker"]
            command += [str(theirs.fileno()), str(limits.most_bytes)]
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        return cls(process, ours, limits)

    def say(self, message: object) -> None:
        """Send; that the process is not there any more shows when it is heard."""
        self.heard_at = time.monotonic()
        with suppress(OSError):
            self.line.send_bytes(json.dumps(message).encode())

    def hear(self) -> dict[str, Any]:
        """Wait for the next message; it may be a mere sign of life.

        Raises:
            LostWorkerError: There will be none.
        """
        rest_s = self.heard_at + self.limits.silent_s - time.monotonic()
        if not self.line.poll(max(rest_s, 0.0)):
            limit = f"{self.limits.silent_s:g} s"
            raise LostWorkerError(f"took more than {limit} without any progress")
        message: dict[str, Any] = json.loads(self.receive())
        self.heard_at = time.monotonic()
        return message

    def receive(self) -> bytes:
        """The bytes that follow a message.

        Raises:
            LostWorkerError: There are none.
        """
        try:
            return self.line.recv_bytes()
        except (EOFError, OSError) as error:
            raise self.lost() from error

    def lost(self) -> LostWorkerError:
        """What became of a process that hung up."""
        code = self.process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return LostWorkerError(f"crashed the decoder ({how})")

    def make(self, job: dict[str, Any]) -> bytes | None:
        """Let it do one job that asks nothing in between; what bytes came of it, if any.

        Raises:
            LostWorkerError: It has to be closed.
            MediaError: The video's fault.
        """
        self.say(job)
        made = None
        while "done" not in (message := self.hear()):
            if "bytes" in message:
                made = self.receive()
        if message["done"] is not None:
            raise MediaError(message["done"])
        return made

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.line.close()

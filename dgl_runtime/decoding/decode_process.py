"""A decode process seen from its parent: messages, time limits, and the notice that it crashed or hangs."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from dgl_runtime.errors import MediaError


@dataclass(frozen=True)
class Limits:
    """What one video may cost: bytes of memory, and seconds without a sign of life, which reading is one of."""

    most_bytes: int = 6 * 2**30
    silent_s: float = 300.0


# What a program gets for what it does itself; others are sent to it, SIGKILL also for want of memory.
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
_HERE = Path(__file__).parents[2]
_READ_AGAIN = 4  # times its size: what a video may cost in reading before anything comes of it
_READ_AT_LEAST = 2**24
_HANG_UP_S = 10.0  # for a process that has closed its end of the socket to end


_REENCODE = "Play it to check, and re-encode it."


class LostWorkerError(Exception):
    """The process crashed, was ended, or has not been heard for too long; its text says which.

    Attributes:
        is_videos_fault: What it looked into did it, as far as can be told.
        remedy: What a person can do.
    """

    def __init__(self, what: str, remedy: str = _REENCODE, *, is_videos_fault: bool = True) -> None:
        super().__init__(what)
        self.is_videos_fault, self.remedy = is_videos_fault, remedy


@dataclass(eq=False)
class DecodeProcess:
    """A running ``decode_worker.py``, or a program that speaks as it does. Close it after use."""

    process: subprocess.Popen[bytes]
    line: Connection
    limits: Limits
    heard_at: float = field(default_factory=time.monotonic)
    _size: int = 0  # bytes of the video
    _read: int = 0  # bytes by this process, when it was heard last
    _read_since: int = 0

    @classmethod
    def start(cls, limits: Limits, program: str = "dgl_runtime.decoding.decode_worker") -> Self:
        """Start one; ``program`` is the module that it runs.

        Raises:
            OSError: There is no room for one more process.
        """
        ours, theirs = Pipe()
        _give_up_after(limits.silent_s, ours)
        with theirs:
            # -P: not what lies in the current folder, which may be one of downloads.
            command = [sys.executable, "-P", "-m", program]
            command += [str(theirs.fileno()), str(limits.most_bytes)]
            try:
                process = subprocess.Popen(
                    command,
                    env={**os.environ, "PYTHONPATH": _python_path()},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, ours, limits)

    @property
    def is_running(self) -> bool:
        """Whether it was not ended by somebody while it had nothing to do."""
        return self.process.poll() is None

    def send(self, message: object) -> None:
        """Send; that the process is not there any more shows when it is heard."""
        self._is_heard()
        if isinstance(message, dict) and "path" in message:
            with suppress(OSError, ValueError):
                self._size = Path(message["path"]).stat().st_size
        with suppress(OSError):
            self.line.send_bytes(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        """Wait for the next message; it may be a mere sign of life.

        Raises:
            LostWorkerError: There will be none.
        """
        rest_s = self.heard_at + self.limits.silent_s - time.monotonic()
        if not self.line.poll(max(rest_s, 0.0)):
            if not self._reads_on():
                raise self._late()
            return {"alive": True}
        message: dict[str, Any] = json.loads(self.receive_bytes())
        self._is_heard()
        return message

    def _is_heard(self) -> None:
        self.heard_at = time.monotonic()
        self._read, self._read_since = _bytes_read_by(self.process.pid), 0

    def _reads_on(self) -> bool:
        """Whether it says nothing because it reads: 40 GB on a slow share take hours.

        What reads the same bytes again and again hangs.
        """
        before, self._read = self._read, _bytes_read_by(self.process.pid)
        self._read_since += self._read - before
        self.heard_at = time.monotonic()
        most = max(_READ_AGAIN * self._size, _READ_AT_LEAST)
        return before < self._read and self._read_since <= most

    def receive_bytes(self) -> bytes:
        """The bytes that follow a message.

        Raises:
            LostWorkerError: There are none.
        """
        try:
            return self.line.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._lost(error) from error

    def receive_into(self, room: memoryview) -> None:
        """Fill ``room``, bytes, with what follows a message: no copy on the way.

        Raises:
            LostWorkerError: It does not come.
        """
        try:
            while room:
                if not (count := os.readv(self.line.fileno(), [room])):
                    raise EOFError
                room = room[count:]
        except (EOFError, OSError) as error:
            raise self._lost(error) from error

    def _late(self) -> LostWorkerError:
        limit = f"{self.limits.silent_s:g} s"
        return LostWorkerError(
            f"took more than {limit} without any progress: nothing read, nothing shown",
            "Play it to check, and look at the disk or share it lies on.",
        )

    def _lost(self, error: Exception) -> LostWorkerError:
        """What became of a process that broke off."""
        if isinstance(error, BlockingIOError):  # in the middle of a message
            return self._late()
        try:
            code = self.process.wait(_HANG_UP_S)
        except subprocess.TimeoutExpired:
            return LostWorkerError("made its decoder hang up")
        if -code in _CRASHES:
            return LostWorkerError(f"crashed the decoder ({signal.Signals(-code).name})")
        return LostWorkerError(
            f"lost its decoder ({_how_it_ended(code)})",
            "Try it again, with more memory or fewer processes.",
            is_videos_fault=False,
        )

    def make(self, job: dict[str, Any]) -> bytes | None:
        """Let it do one job that asks nothing in between; what bytes came of it, if any.

        Raises:
            LostWorkerError: It has to be closed.
            MediaError: The video's fault.
        """
        self.send(job)
        made = None
        while "done" not in (message := self.receive()):
            if "bytes" in message:
                made = self.receive_bytes()
        if message["done"] is not None:
            raise MediaError(message["done"])
        return made

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.line.close()


def _give_up_after(seconds: float, line: Connection) -> None:
    """Let no read or write wait for longer: a process may stop in the middle of a message."""
    # The limit is of the socket itself, whatever object reads from it.
    with socket.socket(fileno=os.dup(line.fileno())) as same:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
            same.setsockopt(socket.SOL_SOCKET, option, limit)


def _bytes_read_by(pid: int) -> int:
    """Bytes that a process has read so far; 0 where the system does not tell."""
    try:
        told = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return 0
    return int(told.split()[1])  # rchar: by whatever call, from wherever


def _python_path() -> str:
    """Where a process finds the very packages that run here, also those of a checkout."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(_HERE), *([given] if given else [])])


def _how_it_ended(code: int) -> str:
    """The name of a signal (-code), or the exit code."""
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):  # realtime signals have no names
        return signal.Signals(-code).name
    return f"signal {-code}"

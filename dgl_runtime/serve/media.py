"""Pictures and playable pieces of the videos that a gallery lists, made in processes with limits."""

import tempfile
import time
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

from dgl_runtime.decoding.decode_process import DecodeProcess, Limits, LostWorkerError
from dgl_runtime.errors import MediaError

_LIMITS = Limits(most_bytes=4 * 2**30, silent_s=30.0)
_PICTURE_BYTES = 64 * 2**20  # of pictures that are kept
_PREVIEWS_KEPT = 64
_FORGIVE_S = 60.0  # until a picture that could not be made is tried again
_FAILURES_KEPT = 1000
VIDEO_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".ogv": "video/ogg",
    ".avi": "video/x-msvideo",
    ".mpg": "video/mpeg",
    ".mpeg": "video/mpeg",
}


def video_type(path: Path) -> str:
    """The media type of a file, by its name."""
    return VIDEO_TYPES.get(path.suffix.lower(), "application/octet-stream")


class MediaMaker:
    """Makes pictures and previews, some at a time, and keeps the last ones. Threads share it."""

    def __init__(self, jobs: int) -> None:
        """Prepare.

        Args:
            jobs: Processes for pictures, 1 or more; each starts when it is first needed.
        """
        # Apart, so that pictures need not wait for previews, which take seconds.
        self._pictures_by = _Processes(jobs)
        self._previews_by = _Processes(1)
        self._lock = Lock()
        self._pictures: OrderedDict[Hashable, bytes] = OrderedDict()
        self._bytes = 0
        self._failed: OrderedDict[Hashable, tuple[float, str]] = OrderedDict()
        self._folder = tempfile.TemporaryDirectory(prefix="dgl-serve-")
        self._previews: OrderedDict[Hashable, Path] = OrderedDict()

    def picture(self, path: Path, content: str, second: float, side: int) -> bytes:
        """A JPEG of one frame.

        Raises:
            MediaError: It cannot be made.
        """
        key = content, second, side
        with self._lock:
            if (kept := self._pictures.get(key)) is not None:
                self._pictures.move_to_end(key)
                return kept
            failed_at, said = self._failed.get(key, (0.0, ""))
        if failed_at and time.monotonic() - failed_at < _FORGIVE_S:
            raise MediaError(said)
        job = {"path": str(path), "picture": {"second": second, "side": side}}
        try:
            made = self._pictures_by.make(job)
            if made is None:
                raise MediaError(f"{path} gave no picture.")
        except MediaError as error:
            with self._lock:
                self._failed[key] = time.monotonic(), str(error)
                while len(self._failed) > _FAILURES_KEPT:
                    self._failed.popitem(last=False)
            raise
        with self._lock:  # somebody else may have made it meanwhile
            self._bytes += len(made) - len(self._pictures.pop(key, b""))
            self._pictures[key] = made
            while self._bytes > _PICTURE_BYTES:
                self._bytes -= len(self._pictures.popitem(last=False)[1])
        return made

    def preview(self, path: Path, content: str, start_s: float, end_s: float) -> Path:
        """A file with the moment in MP4.

        Raises:
            MediaError: It cannot be made.
        """
        key = content, start_s, end_s
        with self._lock:
            if (kept := self._previews.get(key)) is not None and kept.exists():
                self._previews.move_to_end(key)
                return kept
        with tempfile.NamedTemporaryFile(
            dir=self._folder.name, suffix=".mp4", delete=False
        ) as file:
            out = Path(file.name)
        span = {"start_s": start_s, "end_s": end_s}
        try:
            self._previews_by.make({"path": str(path), "preview": {**span, "out": str(out)}})
        except BaseException:
            out.unlink(missing_ok=True)
            raise
        with self._lock:
            if (kept := self._previews.get(key)) is not None and kept.exists():
                out.unlink()  # somebody else has made it meanwhile
                return kept
            self._previews[key] = out
            while len(self._previews) > _PREVIEWS_KEPT:
                self._previews.popitem(last=False)[1].unlink(missing_ok=True)
        return out

    def close(self) -> None:
        """End the processes and drop what was made; to be called when nobody waits."""
        self._pictures_by.close()
        self._previews_by.close()
        self._folder.cleanup()


class _Processes:
    """Some processes, each lent to one thread at a time."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free: SimpleQueue[DecodeProcess | None] = SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def make(self, job: dict[str, Any]) -> bytes | None:
        """Wait for a process and let it do a job; one that is lost is replaced by the next."""
        process = self._free.get()
        try:
            if process is not None and not process.is_running:  # killed while nobody asked
                process.close()
                process = None
            process = process or DecodeProcess.start(_LIMITS)
            return process.make(job)
        except MediaError:
            raise
        except BaseException as error:
            if process is not None:
                process.close()
                process = None
            if isinstance(error, LostWorkerError):
                raise MediaError(f"the video {error}.") from error
            raise
        finally:
            self._free.put(process)

    def close(self) -> None:
        """End them, when they have been given back."""
        for _ in range(self._count):
            if (process := self._free.get()) is not None:
                process.close()

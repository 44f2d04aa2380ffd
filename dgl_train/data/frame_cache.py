"""Decoded frames on disk, so that only the first epoch waits for the video decoder.

One file a clip. Nothing but the folder is shared: any number of processes may read and write it at
once, and one that is killed leaves at most an unfinished file under a name that is never read.
"""

import hashlib
import secrets
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import click
import numpy as np
import PIL
from numpy.typing import NDArray

from dgl_runtime.errors import reason_of
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.media.video import Span

_FORMAT = 2  # of the files; another number: none of the old ones is found
_SUM_BYTES = 4
_UNFINISHED = ".part"
_STALE_S = 3600.0  # an unfinished file this old belongs to a process that was killed
_LOOK_AGAIN = 0.002  # of the limit: what a process writes before it measures the folder again


def clip_key(video: Path, span: Span, frames: FrameSpec) -> str:
    """Name all that a clip's frames depend on, 64 hexadecimal digits.

    A video that has another size or time of change is another video. One that is missing has a
    key like any other: it is the reader's to say what is wrong with it.
    """
    try:
        state = video.stat()
        content = (str(video.resolve()), state.st_size, state.st_mtime_ns)
    except (OSError, ValueError):
        content = (str(video), 0, 0)
    versions = (_FORMAT, av.__version__, PIL.__version__)  # Pillow resizes
    seen = (content, float(span.start_s), float(span.end_s), frames, versions)
    return hashlib.sha256(repr(seen).encode()).hexdigest()


class FrameCache:
    """A folder of clips' frames, up to a size.

    A folder that has reached its limit takes no more clips, and keeps those it has: training reads
    all clips in turn, and to drop the oldest for the newest would drop each just before its use.
    Several processes may exceed the limit by 0.2 % each, as they count only their own writes
    between two looks at the folder. Clips of videos that have changed stay until the folder is
    deleted, which is safe at any time.

    Attributes:
        folder: Where the files are; made when there is something to store.
        limit_gb: Most that may lie there, 1e9 bytes.

    ``tell`` takes warnings; None: they go to stderr.
    """

    def __init__(
        self, folder: Path, limit_gb: float, *, tell: Callable[[str], None] | None = None
    ) -> None:
        self.folder = folder
        self.limit_gb = limit_gb
        self._tell = tell or _warn
        self._takes_more = True
        self._used: float | None = None  # bytes, as far as this process knows
        self._written = 0  # bytes since it last looked

    def get(self, key: str, rows: NDArray[np.int64], frame_size: int) -> NDArray[np.uint8] | None:
        """Some frames of a clip; the others are not read.

        Args:
            key: The clip, a ``clip_key``.
            rows: Which of the frames stored, int64 [F].
            frame_size: Their height and width, S.

        Returns:
            uint8 [F, 3, S, S]; None: not stored, or the file is damaged.
        """
        frames = np.empty((len(rows), 3, frame_size, frame_size), np.uint8)
        try:
            with self._path(key).open("rb") as file:
                for row, frame in zip(rows.tolist(), frames, strict=True):
                    file.seek(row * (_SUM_BYTES + frame.nbytes))
                    stored_sum = file.read(_SUM_BYTES)
                    is_whole = file.readinto(frame.data) == frame.nbytes
                    if not is_whole or stored_sum != _sum_of(frame.data):
                        return None
        except OSError:
            return None
        return frames

    def put(self, key: str, frames: NDArray[np.uint8]) -> None:
        """Store all frames of a clip, if there is room; a damaged file is replaced.

        A disk that is full or fails costs a warning, and this process stores no more.

        Args:
            key: The clip, a ``clip_key``.
            frames: uint8 [N, 3, S, S].
        """
        path = self._path(key)
        try:
            if self._takes_more and (self._has_room(frames.nbytes) or path.exists()):
                each = map(np.ndarray.tobytes, frames)
                data = b"".join(_sum_of(pixels) + pixels for pixels in each)
                _write(path, data)
                self._written += len(data)
        except OSError as error:
            self._takes_more = False
            self._tell(
                f"Warning: frames cannot be kept in {self.folder} ({reason_of(error)}), so their "
                "videos are decoded again each epoch. Free some space, or lower frame_cache_gb."
            )

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]

    def _has_room(self, num_bytes: int) -> bool:
        limit = self.limit_gb * 1e9
        if self._used is None or self._written >= _LOOK_AGAIN * limit:
            self._used, self._written = _measure(self.folder), 0
        return self._used + self._written + num_bytes <= limit


def _warn(text: str) -> None:
    click.echo(text, err=True)


def _sum_of(pixels: bytes | memoryview) -> bytes:
    return zlib.crc32(pixels).to_bytes(_SUM_BYTES, "little")


def _write(path: Path, data: bytes) -> None:
    """Write under another name and rename, so that a file has all of its bytes or is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    making = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        making.write_bytes(data)
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)


def _measure(folder: Path) -> int:
    """Bytes in the files of a folder; unfinished files of killed processes are deleted."""
    used = 0
    for path in folder.glob("*/*"):
        try:
            state = path.stat()
        except FileNotFoundError:  # another process has given it its name
            continue
        if path.suffix == _UNFINISHED and time.time() - state.st_mtime > _STALE_S:
            path.unlink(missing_ok=True)
        else:
            used += state.st_size
    return used

"""The clips of a gallery: where each row of ``clips.jsonl`` ends is known, what it says is not.

A million rows as objects are a gigabyte and seconds of parsing; their ends are 8 MB. So opening a
gallery counts the rows, and a row is parsed when it is asked for. A row that is no clip is refused
then.
"""

import json
import mmap
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import overload

import numpy as np

from dgl_runtime.errors import GalleryError

_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Clip:
    """A segment of a video: one row of a gallery. ``duration_s`` is that of the whole video.

    Raises:
        ValueError: If not ``0 <= start_s < end_s``, a time is not finite, or a text is empty.
    """

    video: str
    content_sha256: str
    start_s: float
    end_s: float
    duration_s: float

    def __post_init__(self) -> None:
        for text in (self.video, self.content_sha256):
            if not isinstance(text, str) or not text:
                raise ValueError(f"a clip needs video and content_sha256 as texts, got {text!r}.")
        if not (0 <= self.start_s < self.end_s < np.inf and 0 < self.duration_s < np.inf):
            raise ValueError(
                f"clip of {self.video!r} spans {self.start_s} to {self.end_s} s of a video of "
                f"{self.duration_s} s; expected 0 <= start_s < end_s and a duration_s above 0."
            )

    @property
    def key(self) -> tuple[str, float, float]:
        """What makes a clip the same clip: content and span; the path of the video may change."""
        return self.content_sha256, float(self.start_s), float(self.end_s)


class ClipRows(Sequence[Clip]):
    """The first clips of a ``clips.jsonl``; rows appended to the file later are not seen.

    Args:
        path: The file.
        num_clips: How many of its rows belong to the gallery.

    Raises:
        GalleryError: The file has fewer whole lines; or, from an access, a row is no clip.
    """

    def __init__(self, path: Path, num_clips: int) -> None:
        self._path = path
        self._ends = _line_ends(path, num_clips)
        self._contents: mmap.mmap | None = None

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._ends)

    @property
    def num_bytes(self) -> int:
        """The bytes of the file that belong to these clips."""
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, row: int) -> Clip: ...
    @overload
    def __getitem__(self, row: slice) -> list[Clip]: ...
    def __getitem__(self, row: int | slice) -> Clip | list[Clip]:
        """Parse one row, or several."""
        rows = range(len(self))[row]
        return [self._parse(one) for one in rows] if isinstance(rows, range) else self._parse(rows)

    def __iter__(self) -> Iterator[Clip]:
        """Parse all rows, one after another."""
        return map(self._parse, range(len(self)))

    def extend(self, lines: Sequence[bytes]) -> None:
        """Count lines that were appended to the file."""
        for line in lines:
            self._ends.append(self.num_bytes + len(line))
        self._contents = None

    def _parse(self, row: int) -> Clip:
        line = self._mapped()[self._ends[row - 1] if row else 0 : self._ends[row]]
        try:
            return Clip(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise damaged(self._path, f"line {row + 1} is no clip ({error})") from error

    def _mapped(self) -> mmap.mmap:
        contents = self._contents
        if contents is None:
            with self._path.open("rb") as file:
                contents = mmap.mmap(file.fileno(), self.num_bytes, access=mmap.ACCESS_READ)
            self._contents = contents
        return contents


def encode_clip(clip: Clip) -> bytes:
    """Return a row of ``clips.jsonl``."""
    # default: times may be NumPy numbers
    return json.dumps(asdict(clip), default=float).encode() + b"\n"


def damaged(path: Path, reason: str) -> GalleryError:
    """Return the error for a file of a gallery that cannot be what was written."""
    return GalleryError(
        f"{path} is damaged: {reason}. "
        "Restore it from a copy, or index the videos into a new folder."
    )


def _line_ends(path: Path, num_lines: int) -> "array[int]":
    """Find where each of the first lines ends; a read, not a map, so that no page stays resident."""
    ends = array("q")
    first = 0
    with path.open("rb") as file:
        while len(ends) < num_lines and (block := file.read(_BLOCK_BYTES)):
            found = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            ends.frombytes((found[: num_lines - len(ends)] + (first + 1)).astype("q").tobytes())
            first += len(block)
    if len(ends) < num_lines:
        raise damaged(path, f"it holds {len(ends)} whole lines, gallery.json says {num_lines}")
    return ends

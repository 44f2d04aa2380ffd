"""The values that go into and out of a gallery: Clip, FileState, Found, Video."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Value = str | int | float | None
"""What a cell of the metadata holds."""


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


@dataclass(frozen=True)
class Header:
    """What a gallery is of, and how many rows its vector files hold."""

    bundle_id: str
    bundle_path: str
    embed_dim: int
    num_frames: int
    num_rows: int
    generation: int = 0  # of the vector files: compacting writes new ones
    version: int = 0  # grows with every change


@dataclass(frozen=True)
class FileState:
    """A file as the system tells it; while these stay the same, its content is taken to be the same.

    ``size`` and ``mtime_ns`` are None for a file that clips came from and that was never looked at.
    """

    path: str
    size: int | None
    mtime_ns: int | None

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """Ask the system.

        Raises:
            OSError: The file is not there, or may not be looked at.
        """
        found = path.stat()
        return cls(str(path), found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class Known:
    """What a gallery knows of a file; nothing, if it is new or has changed."""

    content_sha256: str | None = None
    num_clips: int = 0
    is_complete: bool = False  # indexed to its end with the segmentation that was asked for


@dataclass(frozen=True)
class Video:
    """All that a gallery knows of a video but the clips themselves, of which it has the rows."""

    number: int
    content_sha256: str
    duration_s: float
    files: tuple[FileState, ...]
    segmentations: tuple[str, ...]  # with which it was indexed to its end
    metadata: Mapping[str, Value]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """What a gallery knows of a row: its clip, the number of its video, and what is said of that."""

    clip: Clip
    video_id: int
    metadata: Mapping[str, Value]
    frame_weights: NDArray[np.float32]  # [F], how much the read-out attended to each frame

"""The facts of a gallery: its bundle, its dimensions, and how much it holds."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, Self

from dgl_runtime.gallery.clips import Header
from dgl_runtime.gallery.filters import COLUMNS


class Counted(Protocol):
    """Records that can be counted."""

    def count_videos(self) -> int:
        """How many videos have been looked into."""

    def typical_length_s(self) -> float | None:
        """How long the clips are that were added last, seconds; None: there are none."""

    def metadata_columns(self) -> list[str]:
        """What is known of videos beside the files."""


@dataclass(frozen=True)
class Facts:
    """Facts of a gallery in one state; what must be counted is counted when it is first asked for.

    Attributes:
        bundle_id: The bundle whose embeddings these are.
        bundle_path: Where that bundle lay when the gallery was made.
        embed_dim: E, the width of an embedding.
        num_frames: F, the number of frame weights of a clip.
        version: Grows with every change.
        num_clips: N.
        num_rows: Clips have rows below it; a row may be of no clip.
    """

    bundle_id: str
    bundle_path: str
    embed_dim: int
    num_frames: int
    version: int
    num_clips: int
    num_rows: int
    _records: Counted = field(repr=False, compare=False)

    @classmethod
    def of(cls, header: Header, num_clips: int, records: Counted) -> Self:
        """Facts of the state that the records are in."""
        return cls(
            header.bundle_id,
            header.bundle_path,
            header.embed_dim,
            header.num_frames,
            header.version,
            num_clips,
            header.num_rows,
            records,
        )

    @cached_property
    def num_videos(self) -> int:
        """How many videos have been looked into."""
        return self._records.count_videos()

    @cached_property
    def typical_length_s(self) -> float | None:
        """How long the clips are that were added last, seconds; None: there are none."""
        return self._records.typical_length_s()

    @cached_property
    def metadata_columns(self) -> list[str]:
        """What is known of videos beside the files."""
        return self._records.metadata_columns()

    @cached_property
    def columns(self) -> list[str]:
        """What a condition of a search may name."""
        return [*COLUMNS, *self.metadata_columns]

"""What a gallery is to those who use it: its verbs, whatever keeps its clips.

A gallery in a folder has one writer, and its readers look at one state. A gallery in an engine has any
number of writers, and its readers see what has been committed last.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from dgl_runtime.gallery.clips import Clip, FileState, Found, Known, Value, Video
from dgl_runtime.gallery.facts import Facts
from dgl_runtime.gallery.vector_store import Float32, Int64

if TYPE_CHECKING:
    from dgl_runtime.gallery.metadata import MetadataReport

Selected = TypeVar("Selected")
"""What a kind of gallery makes of a condition, for its own searches."""


class GalleryVerbs(Protocol[Selected]):
    """A gallery that is open. Threads may share it.

    Raises (every verb):
        GalleryError: It is closed or damaged, or its engine refused.
        GalleryAwayError: Its engine cannot be reached.
    """

    @property
    def address(self) -> str:
        """How messages name it; holds no password."""

    @property
    def is_local(self) -> bool:
        """Whether all embeddings lie on this machine, to be read at little cost."""

    @property
    def facts(self) -> Facts:
        """What it is of and how much it holds, in the state that is read."""

    def __len__(self) -> int:
        """Return N, the number of clips."""

    def is_newest(self) -> bool:
        """Whether a reader that opens it now would see the same state."""

    def plan(self, files: Iterable[FileState], segmentation: str) -> list[Known]:
        """What is known of files, as they are now; those that are complete need not be opened."""

    def missing(self, clips: Sequence[Clip]) -> list[int]:
        """Numbers of the clips that are not there; clips are the same if content and span are."""

    def files(self, video: int | str | None = None) -> list[FileState]:
        """Files as they were placed: all, or those of a video by its number or its content's sha256."""

    def videos(self, after: int, count: int) -> list[Video]:
        """Up to ``count`` videos whose numbers lie above ``after``, in their order."""

    def look_up(self, rows: Iterable[int]) -> dict[int, Found]:
        """What is known of some rows; where others write, those that went meanwhile are left out.

        Raises:
            IndexError: A row belongs to no clip, where no others write.
        """

    def embeddings(self, rows: slice | Int64) -> Float32:
        """Unit-norm embeddings of rows, float32 [rows, E]; some may be of no clip."""

    def search(
        self, queries: Float32, top_k: int, where: str | Selected | None = None
    ) -> tuple[Int64, Float32]:
        """Find the most similar clips: similarity descending, ties by row number.

        Args:
            queries: Unit-norm, float32 [Q, E].
            top_k: Hits per query, at least 1; fewer clips give them all.
            where: A condition in SQL, or what :meth:`select` made of one; None: all clips.

        Returns:
            Rows int64 [Q, k] and exact cosine similarities float32 [Q, k].

        Raises:
            ValueError: The queries do not fit, or top_k is below 1.
            GalleryError: The condition does not work.
        """

    def select(self, where: str) -> Selected:
        """Prepare a condition in SQL for several searches.

        Raises:
            GalleryError: It does not work.
        """

    def warm(self) -> None:
        """Do now what the first search would."""

    def upsert(self, file: FileState, content_sha256: str, duration_s: float) -> None:
        """Insert a file or update it: which content it holds now.

        Clips of a content that is in no file are dropped.
        """

    def ingest(self, clips: Sequence[Clip], embeddings: Float32, frame_weights: Float32) -> None:
        """Add clips in one atomic, durable step.

        Args:
            clips: N clips. One that is there stays as it is; where there is one writer it is refused.
            embeddings: Unit-norm, float32 [N, E].
            frame_weights: Float32 [N, F].

        Raises:
            ValueError: A shape, dtype or value does not fit, or the one writer adds a clip twice.
        """

    def finish(self, content_sha256: str, segmentation: str) -> None:
        """Say that a video was indexed to its end with this segmentation."""

    def remove(self, paths: Iterable[str]) -> None:
        """Drop files that are not there any more, and clips of contents that were in no other."""

    def upsert_metadata(self, path: Path, tell: Callable[[str], None]) -> "MetadataReport":
        """Take a table into the gallery; a video it names loses what was known of it before.

        Raises:
            ConfigError: It is no such table, or with it the gallery would have too many columns.
        """

    def write_metadata(self, columns: Sequence[str], values: Mapping[str, Sequence[Value]]) -> None:
        """Take in what is said of videos, by their content's sha256: a value for each column.

        A video that is named loses what was known of it before.

        Raises:
            ConfigError: With it the gallery would have too many columns.
        """

    def compact(self) -> None:
        """Reclaim room, where that pays, and prepare a large gallery for searches."""

    def close(self) -> None:
        """Let go of files and connections. Closing twice does no harm."""

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(self, *_: object) -> None:
        """Close it."""


AnyGallery = GalleryVerbs[Any]
"""A gallery of any kind; what its ``select`` gives is for its own ``search``."""

"""A gallery: clip embeddings and the clip each belongs to, in a folder that survives a crash.

A writer asks what is known (``plan``), says which file holds which video (``upsert``), asks which clips are
``missing``, adds these (``ingest``) and says that a video is through (``finish``).
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.clips import Clip, FileState, Found, Header, Known, Value, Video
from dgl_runtime.gallery.facts import Facts
from dgl_runtime.gallery.filters import select_rows
from dgl_runtime.gallery.folder import RECORDS, require_unused, sync_folder, writer_lock
from dgl_runtime.gallery.local_vector_store import LocalVectors
from dgl_runtime.gallery.records import Records
from dgl_runtime.gallery.vector_store import (
    Float32,
    Int64,
    Mask,
    OpenStore,
    VectorStore,
    require_matrix,
)

if TYPE_CHECKING:
    from dgl_runtime.gallery.metadata import MetadataReport

__all__ = ["Clip", "Facts", "FileState", "Found", "Gallery", "Known"]


class Gallery:
    """Clip embeddings of one bundle. Use :meth:`create` or :meth:`open`, and close it after use.

    A gallery opened for reading is a snapshot: it does not see what a writer changes later. There
    is one writer at a time; readers are never blocked. Threads may share a gallery.
    """

    is_local = True
    _held: contextlib.ExitStack  # what to let go: vectors, records and, of a writer, the lock

    def __init__(
        self, folder: Path, records: Records, store: VectorStore, *, is_writable: bool
    ) -> None:
        self.folder, self.address = folder, str(folder)
        self._records, self._store = records, store
        self._is_writable, self._is_closed = is_writable, False
        self._changing = threading.RLock()
        self._take_in(clean=is_writable)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        bundle_id: str,
        bundle_path: str | Path,
        embed_dim: int,
        num_frames: int,
        store: OpenStore = LocalVectors,
    ) -> Self:
        """Make an empty gallery and open it for writing.

        Args:
            folder: A new or empty folder.
            bundle_id: Names the bundle whose embeddings it will hold.
            bundle_path: Where that bundle lies, to find it again.
            embed_dim: E, the width of an embedding.
            num_frames: F, the number of frame weights of a clip.
            store: Keeps the vectors.

        Raises:
            ValueError: A size is below 1, or the bundle_id is empty.
            GalleryError: The folder is in use or cannot be written.
        """
        if not bundle_id or embed_dim < 1 or num_frames < 1:
            raise ValueError(
                f"got bundle_id {bundle_id!r}, embed_dim {embed_dim}, num_frames {num_frames}; "
                "expected a text and two numbers above 0."
            )
        folder = Path(folder)
        header = Header(bundle_id, str(bundle_path), embed_dim, num_frames, 0)
        with contextlib.ExitStack() as held:
            try:
                require_unused(folder)
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(writer_lock(folder))
                require_unused(folder)
                vectors = store(folder)
                held.callback(vectors.close)
                vectors.sync(header, clean=True)
                records = Records.create(folder, header)
                held.callback(records.close)
                sync_folder(folder)
            except OSError as error:
                raise GalleryError(f"gallery {folder} cannot be made: {error}.") from error
            gallery = cls(folder, records, vectors, is_writable=True)
            gallery._held = held.pop_all()
        return gallery

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        bundle_id: str | None = None,
        writable: bool = False,
        store: OpenStore = LocalVectors,
    ) -> Self:
        """Open a gallery; a writer also cuts off what a killed one left behind the last commit.

        Args:
            folder: The gallery's folder.
            bundle_id: The bundle to search or ingest with; None accepts any.
            writable: Become the one writer, whose changes are taken.
            store: Keeps the vectors.

        Raises:
            GalleryError: Missing, damaged, of another bundle or version, or written by another.
        """
        folder = Path(folder)
        for tries_left in (2, 1, 0):
            try:
                return cls._open(folder, bundle_id, store, writable=writable)
            except FileNotFoundError as error:
                # A writer may have compacted between a reader's look at the records and at the vectors.
                if writable or not tries_left:
                    raise GalleryError(f"gallery {folder} cannot be opened: {error}.") from error
            except OSError as error:
                raise GalleryError(f"gallery {folder} cannot be opened: {error}.") from error
        raise AssertionError

    @classmethod
    def _open(
        cls, folder: Path, bundle_id: str | None, store: OpenStore, *, writable: bool
    ) -> Self:
        with contextlib.ExitStack() as held:
            if writable and cls.is_at(folder):
                held.enter_context(writer_lock(folder))
            records = Records.open(folder, writable=writable)
            held.callback(records.close)
            header = records.header()
            if bundle_id is not None and bundle_id != header.bundle_id:
                raise GalleryError(
                    f"gallery {folder} holds embeddings of bundle {header.bundle_id}, not of "
                    f"{bundle_id}. Use that bundle, or index into a new folder."
                )
            vectors = store(folder)
            held.callback(vectors.close)
            gallery = cls(folder, records, vectors, is_writable=writable)
            gallery._held = held.pop_all()
        return gallery

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether a folder holds a gallery; one whose creation was killed is none."""
        return (folder / RECORDS).is_file()

    def close(self) -> None:
        """Release the writer's lock and the files. Closing twice does no harm."""
        self._is_writable, self._is_closed = False, True
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what it is and knows -----------------------------------------------------------------

    def __len__(self) -> int:
        """Return N, the number of clips."""
        return self.facts.num_clips

    @property
    def facts(self) -> Facts:
        """What it is of and how much it holds, in the state that is read."""
        return self._facts

    def is_newest(self) -> bool:
        """See ``GalleryVerbs``."""
        return self._records.newest_version() == self.facts.version

    def plan(self, files: Iterable[FileState], segmentation: str) -> list[Known]:
        """See ``GalleryVerbs``; ``segmentation`` is as :meth:`finish` is told."""
        return [self._records.known(file, segmentation) for file in files]

    def missing(self, clips: Sequence[Clip]) -> list[int]:
        """Numbers of the clips that the gallery lacks; clips are the same if content and span are."""
        return [number for number, clip in enumerate(clips) if not self._records.has(*clip.key)]

    def files(self, video: int | str | None = None) -> list[FileState]:
        """Files as they were placed: all, or those of a video by its number or its content's sha256."""
        return self._records.files(video)

    def videos(self, after: int, count: int) -> list[Video]:
        """Up to ``count`` videos whose numbers lie above ``after``, in their order."""
        return self._records.videos(after, count)

    def look_up(self, rows: Iterable[int]) -> dict[int, Found]:
        """What is known of some rows.

        Raises:
            IndexError: A row belongs to no clip.
            GalleryError: A record is damaged.
        """
        clips = self._records.look_up(map(int, rows))
        videos, names = {video_id for _, video_id in clips.values()}, self.facts.metadata_columns
        metadata = self._records.metadata_of(videos, names)
        weights = self._store.frame_weights(np.fromiter(clips, np.int64, len(clips)))
        return {
            row: Found(clip, video_id, metadata.get(video_id, {}), own)
            for (row, (clip, video_id)), own in zip(clips.items(), weights, strict=True)
        }

    def embeddings(self, rows: slice | Int64 = slice(None)) -> Float32:
        """Unit-norm embeddings of rows, float32 [rows, E], read-only; some may be of no clip."""
        self._require_open()
        return self._store.embeddings(rows)

    # ---- searching ----------------------------------------------------------------------------

    def search(
        self, queries: Float32, top_k: int, where: str | Mask | None = None
    ) -> tuple[Int64, Float32]:
        """Find the most similar clips: similarity descending, ties by row number.

        Of a large gallery a clip may be missed; similarities are exact.

        Args:
            queries: Unit-norm, float32 [Q, E].
            top_k: Hits per query; fewer clips give them all.
            where: A condition in SQL that clips must fulfil (see ``filters.py``), or what :meth:`select`
                made of one; None: all clips.

        Returns:
            Rows int64 [Q, k] and cosine similarities float32 [Q, k], k = min(top_k, clips).

        Raises:
            ValueError: The queries do not fit, or top_k is below 1.
            GalleryError: The condition does not work, or what searches go through is damaged.
        """
        self._require_open()
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1.")
        require_matrix("queries", queries, ("Q", self.facts.embed_dim), is_unit=True)
        among = self.select(where) if isinstance(where, str) else where
        living = self._living if among is None else self._living & among
        return self._store.top_k(queries, top_k, living)

    def select(self, where: str) -> Mask:
        """Which rows fulfil a condition in SQL, bool [rows], for several searches; see ``filters.py``."""
        kept = np.zeros(self.facts.num_rows, np.bool_)
        kept[select_rows(self._records, where)] = True
        return kept

    def warm(self) -> None:
        """Do now what the first search would.

        Raises:
            GalleryError: What searches go through is damaged.
        """
        self._store.warm()

    # ---- writing ------------------------------------------------------------------------------

    def upsert(self, file: FileState, content_sha256: str, duration_s: float) -> None:
        """Insert a file or update it: which content it holds now.

        Clips of a content that is in no file are dropped. A renamed file is a new one; the old is removed.
        """
        self._require_writable()
        with self._changing:
            self._drop(self._records.upsert(file, content_sha256, duration_s))

    def ingest(self, clips: Sequence[Clip], embeddings: Float32, frame_weights: Float32) -> None:
        """Add clips in one atomic, durable step: after a crash all of them are there, or none.

        Args:
            clips: N clips that the gallery does not hold yet.
            embeddings: Unit-norm, float32 [N, E].
            frame_weights: Float32 [N, F].

        Raises:
            ValueError: A shape, dtype or value does not fit, or a clip would be there twice.
            GalleryError: Not open for writing, or the disk refused; the gallery is as before.
        """
        self._require_writable()
        shape = len(clips), self.facts.embed_dim
        require_matrix("embeddings", embeddings, shape, is_unit=True)
        require_matrix("frame_weights", frame_weights, (len(clips), self.facts.num_frames))
        if not clips:
            return
        with self._changing:
            first = self.facts.num_rows
            rows = np.arange(first, first + len(clips))
            try:
                self._store.upsert(rows, embeddings, frame_weights)
                self._records.append(clips, first)
            except BaseException as error:
                self._settle()
                if not isinstance(error, OSError):
                    raise
                raise GalleryError(
                    f"gallery {self.folder} could not take {len(clips)} clips: {error}. "
                    f"It keeps the {len(self)} it had; make room, then ingest again."
                ) from error
            self._take_in(has_dropped=False)

    def finish(self, content_sha256: str, segmentation: str) -> None:
        """Say that a video was indexed to its end with this segmentation."""
        self._require_writable()
        with self._changing:
            self._records.finish(content_sha256, segmentation)
            self._take_in(has_dropped=False)

    def remove(self, paths: Iterable[str]) -> None:
        """Drop files that are not there any more, and clips of contents that were in no other."""
        self._require_writable()
        with self._changing:
            self._drop(self._records.remove(paths))

    def upsert_metadata(self, path: Path, tell: Callable[[str], None]) -> "MetadataReport":
        """See ``GalleryVerbs``, and ``parse_metadata`` for what ``tell`` takes."""
        from dgl_runtime.gallery.metadata import read_metadata

        self._require_writable()
        with self._changing:
            report = read_metadata(self._records, path, tell)
            self._take_in(has_dropped=False)
        return report

    def write_metadata(self, columns: Sequence[str], values: Mapping[str, Sequence[Value]]) -> None:
        """See ``GalleryVerbs``."""
        from dgl_runtime.gallery.metadata import write_values

        self._require_writable()
        with self._changing:
            numbers = self._records.numbers_of(values)
            found = {numbers[one]: row for one, row in values.items() if one in numbers}
            write_values(self._records, columns, found, "them")
            self._take_in(has_dropped=False)

    def compact(self) -> None:
        """Reclaim the space of dropped clips, where that pays, and prepare a large gallery for searches.

        Raises:
            GalleryError: Not open for writing, or the disk refused; the gallery is as before.
        """
        self._require_writable()
        with self._changing:
            header = self._records.header()
            try:
                generation = self._store.compact(self._living)
                if generation != header.generation:
                    self._records.renumber(generation)
            except OSError as error:
                raise GalleryError(
                    f"gallery {self.folder} could not be compacted: {error}. It works as it is; make room."
                ) from error
            finally:
                self._settle()
            self._store.optimize()

    def _take_in(self, *, has_dropped: bool = True, clean: bool = False) -> None:
        """Take in what the records say now; ``has_dropped``: clips may have gone."""
        header = self._records.header()
        self._store.sync(header, clean=clean)
        if has_dropped:
            self._dead = self._records.dead_rows()
        self._living: Mask = np.ones(header.num_rows, np.bool_)
        self._living[self._dead] = False
        self._facts = Facts.of(header, header.num_rows - len(self._dead), self._records)

    def _drop(self, rows: Sequence[int]) -> None:
        """Follow the records, which have dropped the clips of some rows."""
        self._take_in(has_dropped=bool(rows))
        if rows:
            self._store.remove(np.array(rows, np.int64))

    def _settle(self) -> None:
        """Take in what the records say, whatever stopped a change, and drop what they do not know."""
        with contextlib.suppress(OSError, GalleryError):  # the next change does it in any case
            self._take_in(clean=True)

    def _require_open(self) -> None:
        if self._is_closed:
            raise GalleryError(f"gallery {self.folder} is closed. Open it again.")

    def _require_writable(self) -> None:
        if not self._is_writable:
            raise GalleryError(
                f"gallery {self.folder} is not open for writing. Open it with writable=True."
            )

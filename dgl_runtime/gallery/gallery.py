"""A gallery: clip embeddings and the clip each belongs to, in a folder that survives a crash.

Which clip a row is, and what else is known of its video: ``records.py``. The vectors on disk:
``vectors.py``. How a search works: ``nearest.py``.
"""

import contextlib
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery import vectors
from dgl_runtime.gallery.clips import Clip, FileState, Header
from dgl_runtime.gallery.filters import select_rows
from dgl_runtime.gallery.nearest import (
    APPROXIMATE_PAYS_FROM,
    ApproximateIndex,
    NewerIndexError,
    exact_top_k,
)
from dgl_runtime.gallery.records import Records
from dgl_runtime.gallery.sqlite import RECORDS
from dgl_runtime.gallery.vectors import EMBEDDINGS, INDEX

__all__ = ["APPROXIMATE_PAYS_FROM", "Clip", "FileState", "Gallery"]

Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

_APPROXIMATE_SHARE = 0.9  # of the rows; among fewer the graph would miss too many
_COMPACT_FROM = 0.25  # dead rows, as a share of all


class Gallery:
    """Clip embeddings of one bundle. Use :meth:`create` or :meth:`open`, and close it after use.

    A gallery opened for reading is a snapshot: it does not see what a writer changes later. There
    is one writer at a time; readers are never blocked. Threads may share a gallery.
    """

    def __init__(self, folder: Path, records: Records, held: contextlib.ExitStack) -> None:
        self._folder = folder
        self.records = records  # videos, files and clips
        self._held = held  # what to let go at the end: the records and, of a writer, the lock
        self._is_writable = self._is_closed = False
        self._changing = threading.RLock()
        self._index: ApproximateIndex | None = None
        self._look()

    def _look(self, *, has_dropped: bool = True) -> None:
        """Take in what the records say now; ``has_dropped``: clips may have gone."""
        self._header: Header = self.records.header()
        self._embeddings, self._frame_weights = vectors.map_vectors(self._folder, self._header)
        if has_dropped:
            self._dead = self.records.dead_rows()
        self._living: Mask = np.ones(self._header.num_rows, np.bool_)
        self._living[self._dead] = False
        self._num_clips = self._header.num_rows - len(self._dead)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        bundle_id: str,
        bundle_path: str | Path,
        embed_dim: int,
        num_frames: int,
    ) -> Self:
        """Make an empty gallery and open it for writing.

        Args:
            folder: A new or empty folder.
            bundle_id: Names the bundle whose embeddings it will hold.
            bundle_path: Where that bundle lies, to find it again.
            embed_dim: E, the width of an embedding.
            num_frames: F, the number of frame weights of a clip.

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
                vectors.require_unused(folder, RECORDS)
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(vectors.writer_lock(folder))
                vectors.require_unused(folder, RECORDS)
                vectors.create_vectors(folder, header.generation)
                records = Records.create(folder, header)
                held.callback(records.close)
                vectors.sync_folder(folder)
            except OSError as error:
                raise GalleryError(f"gallery {folder} cannot be made: {error}.") from error
            gallery = cls(folder, records, held)
            gallery._is_writable = True
            gallery._held = held.pop_all()
        return gallery

    @classmethod
    def open(
        cls, folder: str | Path, *, bundle_id: str | None = None, writable: bool = False
    ) -> Self:
        """Open a gallery; a writer also cuts off what a killed one left behind the last commit.

        Args:
            folder: The gallery's folder.
            bundle_id: The bundle to search or append with; None accepts any.
            writable: Become the one writer, so that :meth:`append` works.

        Raises:
            GalleryError: Missing, damaged, of another bundle or version, or written by another.
        """
        folder = Path(folder)
        for tries_left in (2, 1, 0):
            try:
                return cls._open(folder, bundle_id, writable=writable)
            except FileNotFoundError as error:
                # A writer may have compacted between a reader's look at the records and at the vectors.
                if writable or not tries_left:
                    raise GalleryError(f"gallery {folder} cannot be opened: {error}.") from error
            except OSError as error:
                raise GalleryError(f"gallery {folder} cannot be opened: {error}.") from error
        raise AssertionError

    @classmethod
    def _open(cls, folder: Path, bundle_id: str | None, *, writable: bool) -> Self:
        with contextlib.ExitStack() as held:
            if writable and (folder / RECORDS).is_file():
                held.enter_context(vectors.writer_lock(folder))
            records = Records.open(folder, writable=writable)
            held.callback(records.close)
            header = records.header()
            if bundle_id is not None and bundle_id != header.bundle_id:
                raise GalleryError(
                    f"gallery {folder} holds embeddings of bundle {header.bundle_id}, not of "
                    f"{bundle_id}. Use that bundle, or index into a new folder."
                )
            gallery = cls(folder, records, held)
            if writable:
                vectors.cut_vectors(folder, header)
            gallery._is_writable = writable
            gallery._held = held.pop_all()
        return gallery

    def close(self) -> None:
        """Release the writer's lock and the files. Closing twice does no harm."""
        self._is_writable, self._is_closed, self._index = False, True, None
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Return N, the number of clips."""
        return self._num_clips

    @property
    def bundle_id(self) -> str:
        """The bundle whose embeddings these are."""
        return self._header.bundle_id

    @property
    def bundle_path(self) -> str:
        """Where that bundle lay when the gallery was made."""
        return self._header.bundle_path

    @property
    def version(self) -> int:
        """Grows with every change; of a snapshot it stays, while ``records.newest_version`` grows."""
        return self._header.version

    @property
    def embed_dim(self) -> int:
        """E, the width of an embedding."""
        return self._header.embed_dim

    @property
    def num_frames(self) -> int:
        """F, the number of frame weights of a clip."""
        return self._header.num_frames

    @property
    def embeddings(self) -> Float32:
        """Unit-norm embeddings, float32 [rows, E], mapped and read-only; some rows may be of no clip."""
        self._require_open()
        return self._embeddings

    @property
    def frame_weights(self) -> Float32:
        """How much the read-out attended to each frame, float32 [rows, F], mapped and read-only."""
        return self._frame_weights

    @property
    def embeddings_file(self) -> Path:
        """The file of the embeddings, raw little-endian float32."""
        return vectors.path_of(self._folder, EMBEDDINGS, self._header.generation)

    @property
    def index_file(self) -> Path:
        """The file of the approximate index, if one was built."""
        return vectors.path_of(self._folder, INDEX, self._header.generation)

    def clip(self, row: int) -> Clip:
        """The clip of a row of the embeddings.

        Raises:
            IndexError: The row belongs to no clip.
            GalleryError: The record is damaged.
        """
        return self.records.clip(row)

    def append(self, clips: Sequence[Clip], embeddings: Float32, frame_weights: Float32) -> None:
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
        vectors.require_matrix("embeddings", embeddings, (len(clips), self.embed_dim), is_unit=True)
        vectors.require_matrix("frame_weights", frame_weights, (len(clips), self.num_frames))
        if not clips:
            return
        with self._changing:
            try:
                vectors.append_vectors(self._folder, self._header, embeddings, frame_weights)
                self.records.append(clips, self._header.num_rows)
            except BaseException as error:
                self._settle()
                if not isinstance(error, OSError):
                    raise
                raise GalleryError(
                    f"gallery {self._folder} could not take {len(clips)} clips: {error}. "
                    f"It keeps the {len(self)} it had; make room, then append again."
                ) from error
            self._look(has_dropped=False)

    def _settle(self) -> None:
        """Take in what the records say, whatever stopped a change, and drop what they do not know."""
        with contextlib.suppress(OSError, GalleryError):  # the next change does it in any case
            vectors.cut_vectors(self._folder, self.records.header())
            self._look()

    def place(self, state: FileState, content_sha256: str, duration_s: float) -> None:
        """Say which content a file holds now; clips of a content that is in no file are dropped."""
        self._require_writable()
        with self._changing:
            self._look(has_dropped=self.records.place(state, content_sha256, duration_s))

    def forget(self, paths: Iterable[str]) -> None:
        """Drop files that are not there any more, and clips of contents that were in no other."""
        self._require_writable()
        with self._changing:
            self.records.forget(paths)
            self._look()

    def compact(self) -> None:
        """Take the room of dropped clips back, if it is a quarter or more of all.

        Raises:
            GalleryError: Not open for writing, or the disk refused; the gallery is as before.
        """
        self._require_writable()
        header = self._header
        if header.num_rows - len(self) < max(1, _COMPACT_FROM * header.num_rows):
            return
        self._index = None
        try:
            vectors.compact_vectors(self._folder, header, self._living)
            self.records.renumber(header.generation + 1)
        except OSError as error:
            raise GalleryError(
                f"gallery {self._folder} could not be compacted: {error}. It works as it is; make room."
            ) from error
        finally:
            self._settle()

    def select(self, where: str) -> Mask:
        """Which rows a filter keeps, bool [rows]; see ``filters.py``."""
        rows = select_rows(self.records, where)
        kept = np.zeros(self._header.num_rows, np.bool_)
        kept[rows] = True
        return kept

    def search(
        self,
        queries: Float32,
        top_k: int,
        *,
        approximate: bool = False,
        among: Mask | None = None,
    ) -> tuple[NDArray[np.int64], Float32]:
        """Find the most similar clips: similarity descending, ties by row number.

        Args:
            queries: Unit-norm, float32 [Q, E].
            top_k: Hits per query; fewer clips give them all.
            approximate: Use the index of :meth:`build_approximate_index`, if there is one; without
                it the search is exact. A clip may be missed; similarities are exact.
            among: Rows to choose from, bool [rows]; None: all.

        Returns:
            Rows int64 [Q, k] and cosine similarities float32 [Q, k], k = min(top_k, clips).

        Raises:
            ValueError: The queries do not fit, or top_k is below 1.
            GalleryError: The approximate index is damaged or belongs to other embeddings.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1.")
        vectors.require_matrix("queries", queries, ("Q", self.embed_dim), is_unit=True)
        rows = self._living if among is None else self._living & among
        if approximate and rows.sum() >= _APPROXIMATE_SHARE * len(rows):
            if self._index is None:
                self.open_approximate_index()
            if self._index is not None:
                return self._index.top_k(self.embeddings, queries, top_k, rows)
        return exact_top_k(self.embeddings, queries, top_k, rows)

    def open_approximate_index(self, *, breadth: int | None = None) -> None:
        """Open the index, if there is one, now instead of at the first approximate search.

        Args:
            breadth: Clips that a search keeps in view: more finds more and takes longer; None:
                ``dgl_runtime.gallery.nearest.breadth_for`` the gallery.

        Raises:
            GalleryError: The index is damaged or belongs to other embeddings.
        """
        if not self.index_file.exists():
            return
        try:
            self._index = ApproximateIndex.open(self.index_file, self.embeddings, breadth=breadth)
        except NewerIndexError:  # of clips that a snapshot does not have; a writer has all
            if self._is_writable:
                raise

    def count_unindexed(self) -> int:
        """Rows that the approximate index does not cover; raises as :meth:`open_approximate_index`."""
        self.open_approximate_index()
        return self._header.num_rows - (len(self._index) if self._index is not None else 0)

    def build_approximate_index(self, *, threads: int = 0) -> None:
        """Write the index for approximate search over all clips, or extend the one that is there.

        It pays from ``APPROXIMATE_PAYS_FROM`` clips. Clips appended later are searched exactly
        until the next call. An index that is damaged or of other embeddings is built anew.

        Args:
            threads: 0 for all cores; with more than one the graph is not the same every time.

        Raises:
            GalleryError: Not open for writing, or the disk refused.
        """
        self._require_writable()
        index = ApproximateIndex.empty(self.embed_dim)
        with contextlib.suppress(GalleryError):
            if self.index_file.exists():
                index = ApproximateIndex.open(self.index_file, self.embeddings, extend=True)
        index.add(self.embeddings, threads=threads)
        try:
            index.save(self.index_file, self.embeddings)
        except (OSError, RuntimeError) as error:  # RuntimeError: USearch could not write
            raise GalleryError(
                f"approximate index {self.index_file} cannot be written: {error}. "
                "Make room and build it again; exact search needs none."
            ) from error
        self._index = None

    def _require_open(self) -> None:
        if self._is_closed:
            raise GalleryError(f"gallery {self._folder} is closed. Open it again.")

    def _require_writable(self) -> None:
        if not self._is_writable:
            raise GalleryError(
                f"gallery {self._folder} is not open for writing. Open it with writable=True."
            )

"""A gallery: clip embeddings and the clip each belongs to, in a folder that survives a crash.

What is on disk, and why a killed writer does no harm: ``gallery_files.py``. How a search works:
``nearest.py``.
"""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dgl_runtime import gallery_files as files
from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery_clips import Clip, ClipRows, encode_clip
from dgl_runtime.gallery_files import Header
from dgl_runtime.nearest import APPROXIMATE_PAYS_FROM, ApproximateIndex, exact_top_k

__all__ = ["APPROXIMATE_PAYS_FROM", "Clip", "Gallery"]

Float32 = NDArray[np.float32]


class Gallery:
    """Clip embeddings of one bundle. Use :meth:`create` or :meth:`open`, and close it after use.

    A gallery opened for reading is a snapshot: it does not see what a writer appends later. There
    is one writer at a time; readers are never blocked.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self._folder = folder
        self._header = header
        self._clips = ClipRows(folder / files.CLIPS, header.num_clips)
        self._keys: set[tuple[str, float, float]] | None = None  # until has() or append()
        self._lock: contextlib.ExitStack | None = None  # held while writable
        self._is_closed = False
        self._maps: dict[str, Float32] = {}
        self._index: ApproximateIndex | None = None

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
        header = Header(files.SCHEMA_VERSION, bundle_id, str(bundle_path), embed_dim, num_frames, 0)
        with contextlib.ExitStack() as lock:
            try:
                files.require_unused(folder)
                folder.mkdir(parents=True, exist_ok=True)
                lock.enter_context(files.writer_lock(folder))
                files.require_unused(folder)
                files.create_files(folder, header)
                gallery = cls(folder, header)
            except OSError as error:
                raise GalleryError(f"gallery {folder} cannot be made: {error}.") from error
            gallery._lock = lock.pop_all()
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
        with contextlib.ExitStack() as lock:
            try:
                header = files.read_header(folder)
                if bundle_id is not None and bundle_id != header.bundle_id:
                    raise GalleryError(
                        f"gallery {folder} holds embeddings of bundle {header.bundle_id}, not of "
                        f"{bundle_id}. Use that bundle, or index into a new folder."
                    )
                if writable:
                    lock.enter_context(files.writer_lock(folder))
                    header = files.read_header(folder)  # a writer may have finished meanwhile
                gallery = cls(folder, header)
                sizes = header.data_sizes(gallery._clips.num_bytes)
                files.require_sizes(folder, sizes)
                if writable:
                    files.cut(folder, sizes)
                    gallery._lock = lock.pop_all()
            except OSError as error:
                raise GalleryError(f"gallery {folder} cannot be opened: {error}.") from error
        return gallery

    def close(self) -> None:
        """Release the writer's lock and the mapped files. Closing twice does no harm."""
        self._is_closed = True
        self._maps.clear()
        self._index = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Return N, the number of clips."""
        return self._header.num_clips

    @property
    def bundle_id(self) -> str:
        """The bundle whose embeddings these are."""
        return self._header.bundle_id

    @property
    def bundle_path(self) -> str:
        """Where that bundle lay when the gallery was made."""
        return self._header.bundle_path

    @property
    def embed_dim(self) -> int:
        """E, the width of an embedding."""
        return self._header.embed_dim

    @property
    def num_frames(self) -> int:
        """F, the number of frame weights of a clip."""
        return self._header.num_frames

    @property
    def clips(self) -> Sequence[Clip]:
        """The clips, row by row; a row is read from the file when it is asked for."""
        return self._clips

    @property
    def embeddings(self) -> Float32:
        """Unit-norm embeddings, float32 [N, E], mapped from the file and read-only."""
        return self._mapped(files.EMBEDDINGS, self.embed_dim)

    @property
    def frame_weights(self) -> Float32:
        """How much the read-out attended to each frame, float32 [N, F], mapped and read-only."""
        return self._mapped(files.FRAME_WEIGHTS, self.num_frames)

    def has(self, content_sha256: str, start_s: float, end_s: float) -> bool:
        """Whether this span of a video with this content is in the gallery, to the last bit.

        The first call reads every clip.
        """
        return (content_sha256, float(start_s), float(end_s)) in self._known_keys()

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
        files.require_matrix("embeddings", embeddings, (len(clips), self.embed_dim), is_unit=True)
        files.require_matrix("frame_weights", frame_weights, (len(clips), self.num_frames))
        self._require_new(clips)
        if not clips:
            return
        header = replace(self._header, num_clips=len(self) + len(clips))
        lines = [encode_clip(clip) for clip in clips]
        try:
            files.append_rows(
                self._folder,
                committed=(self._header, self._clips.num_bytes),
                header=header,
                rows=(embeddings, frame_weights, b"".join(lines)),
            )
        except OSError as error:
            raise GalleryError(
                f"gallery {self._folder} could not take {len(clips)} clips: {error}. "
                f"It keeps the {len(self)} it had; make room, then append again."
            ) from error
        self._header = header
        self._clips.extend(lines)
        self._known_keys().update(clip.key for clip in clips)
        self._maps.clear()
        files.sync_folder(self._folder)

    def search(
        self, queries: Float32, top_k: int, *, approximate: bool = False
    ) -> tuple[NDArray[np.int64], Float32]:
        """Find the most similar clips: similarity descending, ties by row number.

        Args:
            queries: Unit-norm, float32 [Q, E].
            top_k: Hits per query; a gallery of fewer clips gives them all.
            approximate: Use the index of :meth:`build_approximate_index`, if there is one; without
                it the search is exact. A clip may be missed; similarities are exact.

        Returns:
            Rows int64 [Q, k] and cosine similarities float32 [Q, k], k = min(top_k, N).

        Raises:
            ValueError: The queries do not fit, or top_k is below 1.
            GalleryError: The approximate index is damaged or belongs to other embeddings.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1.")
        files.require_matrix("queries", queries, ("Q", self.embed_dim), is_unit=True)
        embeddings = self.embeddings
        if approximate and self._index is None:
            self.open_approximate_index()
        if approximate and self._index is not None:
            return self._index.top_k(embeddings, queries, top_k)
        return exact_top_k(embeddings, queries, top_k)

    def open_approximate_index(self, *, breadth: int | None = None) -> None:
        """Open the index, if there is one, now instead of at the first approximate search.

        Args:
            breadth: Clips that a search keeps in view: more finds more and takes longer; None:
                ``dgl_runtime.nearest.breadth_for`` the gallery.

        Raises:
            GalleryError: The index is damaged or belongs to other embeddings.
        """
        if self._index_path.exists():
            self._index = ApproximateIndex.open(self._index_path, self.embeddings, breadth=breadth)

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
            if self._index_path.exists():
                index = ApproximateIndex.open(self._index_path, self.embeddings, extend=True)
        index.add(self.embeddings, threads=threads)
        try:
            index.save(self._index_path, self.embeddings)
        except (OSError, RuntimeError) as error:  # RuntimeError: USearch could not write
            raise GalleryError(
                f"approximate index {self._index_path} cannot be written: {error}. "
                "Make room and build it again; exact search needs none."
            ) from error
        self._index = None

    @property
    def _index_path(self) -> Path:
        return self._folder / files.INDEX

    def _mapped(self, name: str, width: int) -> Float32:
        if self._is_closed:
            raise GalleryError(f"gallery {self._folder} is closed. Open it again.")
        if name not in self._maps:
            self._maps[name] = files.map_rows(self._folder / name, (len(self), width))
        return self._maps[name]

    def _require_writable(self) -> None:
        if self._lock is None:
            raise GalleryError(
                f"gallery {self._folder} is not open for writing. Open it with writable=True."
            )

    def _known_keys(self) -> set[tuple[str, float, float]]:
        if self._keys is None:
            # interned, because the clips of a video have the same text
            self._keys = {(sys.intern(key[0]), *key[1:]) for key in (c.key for c in self._clips)}
        return self._keys

    def _require_new(self, clips: Sequence[Clip]) -> None:
        keys, seen = self._known_keys(), set()
        for clip in clips:
            if clip.key in keys or clip.key in seen:
                raise ValueError(
                    f"clip {clip.start_s} to {clip.end_s} s of {clip.video!r} would be in gallery "
                    f"{self._folder} twice. Ask has() before you append."
                )
            seen.add(clip.key)

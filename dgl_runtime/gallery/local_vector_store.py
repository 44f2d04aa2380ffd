"""The local vector store: float32 files, mapped. It decides between exact and approximate search.

Rows are written and synced behind the last one that counts. Compacting writes files of the next
generation; those of another generation than the records' are remains. The store decides alone whether a
search compares every row or goes through a graph (``nearest.py``).
"""

import os
import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.clips import Header
from dgl_runtime.gallery.folder import (
    EMBEDDINGS,
    FRAME_WEIGHTS,
    GRAPH,
    SUFFIXES,
    path_of,
    sync_folder,
)
from dgl_runtime.gallery.nearest import (
    APPROXIMATE_PAYS_FROM,
    ApproximateIndex,
    NewerIndexError,
    exact_top_k,
)
from dgl_runtime.gallery.sqlite import damaged
from dgl_runtime.gallery.vector_store import Float32, Int64, Mask

_APPROXIMATE_SHARE = 0.9  # of the rows; among fewer the graph would miss too many
_UNINDEXED_SHARE = 0.02  # of the rows; so many are searched exactly, at less cost than a new graph
_COMPACT_SHARE = 0.25  # dead rows, of all
_ROWS_AT_ONCE = 16_384


class LocalVectors:
    """The files of one gallery; a ``VectorStore``."""

    def __init__(
        self,
        folder: Path,
        *,
        approximate_from: int | None = None,
        breadth: int | None = None,
        threads: int = 0,
    ) -> None:
        """Take nothing in yet.

        Args:
            folder: The gallery's.
            approximate_from: Rows from which on searches go through the graph, if there is one; None:
                ``nearest.APPROXIMATE_PAYS_FROM``.
            breadth: Clips that a search of the graph keeps in view; None: ``nearest.breadth_for`` the gallery.
            threads: That build the graph; 0: all cores. With more than one it is not the same every time.
        """
        self._folder = folder
        self._approximate_from = (
            APPROXIMATE_PAYS_FROM if approximate_from is None else approximate_from
        )
        self._breadth, self._threads = breadth, threads
        self._header: Header | None = None
        self._graph: ApproximateIndex | None = None
        self._is_writer = False

    # ---- what counts --------------------------------------------------------------------------

    def sync(self, header: Header, *, clean: bool = False) -> None:
        """Map the rows that count, and as the writer cut off what does not; see ``VectorStore``."""
        if clean and not header.num_rows:
            for name in (EMBEDDINGS, FRAME_WEIGHTS):
                _write_at(path_of(self._folder, name, header.generation), 0, b"")
        if self._header is None or header.generation != self._header.generation:
            self._graph = None
        self._embeddings, self._frame_weights = (
            _map(path_of(self._folder, name, header.generation), (header.num_rows, width))
            for name, width in _widths(header)
        )
        self._header = header
        if clean:
            self._is_writer = True
            self._cut(header)

    def _cut(self, header: Header) -> None:
        """Drop rows that the records do not know, and files of other generations."""
        for name, width in _widths(header):
            path = path_of(self._folder, name, header.generation)
            os.truncate(path, 4 * header.num_rows * width)
        for name, suffix in SUFFIXES.items():
            ours = re.compile(rf"{name}\.\d+\.{suffix}(\.tmp)?")
            for path in self._folder.glob(f"{name}.*"):
                is_now = path == path_of(self._folder, name, header.generation)
                if ours.fullmatch(path.name) and not is_now:
                    path.unlink()

    @property
    def _now(self) -> Header:
        assert self._header is not None, "sync first"
        return self._header

    def close(self) -> None:
        """Let go of the graph; rows that somebody still looks at stay mapped."""
        self._graph = None

    # ---- writing ------------------------------------------------------------------------------

    def upsert(self, keys: Int64, embeddings: Float32, frame_weights: Float32) -> None:
        """Write and sync rows behind those that count."""
        header, first = self._now, int(keys[0])
        assert first >= header.num_rows, f"row {first} counts already"
        for (name, width), rows in zip(_widths(header), (embeddings, frame_weights), strict=True):
            path = path_of(self._folder, name, header.generation)
            _write_at(path, 4 * first * width, rows.astype("<f4").tobytes())

    def remove(self, keys: Int64) -> None:
        """Nothing: rows are taken back together, by :meth:`compact`."""

    def compact(self, living: Mask) -> int:
        """Write the living rows into files of the next generation, if a quarter or more are dead."""
        header = self._now
        num_dead = len(living) - np.count_nonzero(living)
        if num_dead < max(1, _COMPACT_SHARE * len(living)):
            return header.generation
        for (name, _), rows in zip(
            _widths(header), (self._embeddings, self._frame_weights), strict=True
        ):
            with path_of(self._folder, name, header.generation + 1).open("wb") as file:
                for first in range(0, len(rows), _ROWS_AT_ONCE):
                    part = slice(first, first + _ROWS_AT_ONCE)
                    file.write(rows[part][living[part]].astype("<f4").tobytes())
                file.flush()
                os.fsync(file.fileno())
        sync_folder(self._folder)
        return header.generation + 1

    # ---- searching ----------------------------------------------------------------------------

    def top_k(self, queries: Float32, top_k: int, among: Mask) -> tuple[Int64, Float32]:
        """Compare every row or, of many rows that are nearly all wanted, those the graph leads to."""
        embeddings = self._embeddings[: len(among)]
        if len(among) >= self._approximate_from:
            if np.count_nonzero(among) >= _APPROXIMATE_SHARE * len(among):
                if (graph := self._opened_graph()) is not None:
                    return graph.top_k(embeddings, queries, top_k, among)
        return exact_top_k(embeddings, queries, top_k, among)

    def embeddings(self, keys: slice | Int64) -> Float32:
        """Embeddings float32 [N, E], read-only; of a slice as they are mapped."""
        return self._embeddings[keys]

    def frame_weights(self, keys: slice | Int64) -> Float32:
        """Frame weights float32 [N, F], read-only; of a slice as they are mapped."""
        return self._frame_weights[keys]

    # ---- the graph ----------------------------------------------------------------------------

    @property
    def _graph_file(self) -> Path:
        return path_of(self._folder, GRAPH, self._now.generation)

    def warm(self) -> None:
        """Open the graph, if searches go through one."""
        if self._now.num_rows >= self._approximate_from:
            self._opened_graph()

    def _opened_graph(self) -> ApproximateIndex | None:
        if self._graph is None and self._graph_file.exists():
            try:
                self._graph = ApproximateIndex.open(
                    self._graph_file, self._embeddings, breadth=self._breadth
                )
            except NewerIndexError:  # of clips that a snapshot does not have; a writer has all
                if self._is_writer:
                    raise
        return self._graph

    def optimize(self) -> None:
        """Build the graph of a large gallery, or extend it, if the extra ``large`` is installed."""
        num_rows = self._now.num_rows
        if num_rows < self._approximate_from or not find_spec("usearch"):
            return
        with suppress(GalleryError):  # a damaged one is built anew
            covered = len(graph) if (graph := self._opened_graph()) is not None else 0
            if num_rows - covered <= _UNINDEXED_SHARE * num_rows:
                return
        self._build_graph()

    def _build_graph(self) -> None:
        path = self._graph_file
        graph = ApproximateIndex.empty(self._now.embed_dim)
        with suppress(GalleryError):  # damaged, or of other embeddings
            if path.exists():
                graph = ApproximateIndex.open(path, self._embeddings, extend=True)
        graph.add(self._embeddings, threads=self._threads)
        try:
            graph.save(path, self._embeddings)
        except (OSError, RuntimeError) as error:  # RuntimeError: USearch could not write
            raise GalleryError(
                f"approximate index {path} cannot be written: {error}. "
                "Make room and build it again; exact search needs none."
            ) from error
        self._graph = None


def _widths(header: Header) -> tuple[tuple[str, int], tuple[str, int]]:
    return (EMBEDDINGS, header.embed_dim), (FRAME_WEIGHTS, header.num_frames)


def _map(path: Path, shape: tuple[int, int]) -> Float32:
    found, needed = path.stat().st_size, 4 * shape[0] * shape[1]
    if found < needed:
        raise damaged(path, f"it holds {found} bytes, its clips need {needed}")
    if not needed:  # an empty file cannot be mapped
        rows = np.zeros(shape, np.float32)
        rows.flags.writeable = False
        return rows
    return np.memmap(path, dtype="<f4", mode="r", shape=shape).view(np.ndarray)


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Write and sync ``data`` at ``offset``; whatever stood from there on is lost."""
    with path.open("r+b" if path.exists() else "xb") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

"""Nearest clips of a query, both ways: exact search, and approximate search by a USearch graph (HNSW).

Both ways end in the same step: the candidates are compared with the query once more in float64,
one by one. So a similarity depends on the two embeddings alone, never on batch, block or way.
"""

import hashlib
import math
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import GalleryError
from dgl_runtime.plain_path import plain_path

if TYPE_CHECKING:
    from usearch.index import Index

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

# From how many clips the approximate index pays: exact search of so many takes several times as long as
# through the graph, and longer than embedding the query (dgl-bench search, dgl-bench encode).
APPROXIMATE_PAYS_FROM = 100_000

_QUERY_BLOCK, _ROW_BLOCK = 256, 16_384  # 16 MB of similarities at a time
# Up to so many queries are multiplied one by one, with rows that stay in the cache: numpy's matrix product
# of few rows takes two to three times as long.
_FEW, _CACHED = 8, 512
# More than a float32 dot product of unit vectors can be off: width * 2^-24 = 5e-5 at 800 numbers.
_ROUNDING = 1e-4
_BREADTH, _BREADTH_UP_TO = 512, 100_000  # that a search keeps in view, up to so many clips
_CANDIDATES = 128  # of them, so many are compared exactly: more than int8 can put out of order

# Of a unit vector's numbers, in units of their root mean square: what is above is cut to it.
_INT8_LIMIT = 6

_DIMENSIONS = struct.Struct("<II")  # begin USearch's file: its vectors' number and width in bytes
_GRAPH = b"usearch"  # follows its vectors
_SEAL = b"dgl-ann2"  # begins the end of the file; then digests: of embeddings, graph and vectors
_SEAL_PARTS = struct.Struct("8s32s64s")
_HASH_BLOCK = 2**20
_SAMPLE = 64  # embeddings that tell whether an index belongs to a gallery


def breadth_for(num_clips: int) -> int:
    """How many clips a search of the graph keeps in view.

    So that recall@10 of texts stays near 0.99, as measured by ``dgl-bench search``: with the square root
    of a gallery's size from 100,000 clips on.
    """
    return round(_BREADTH * math.sqrt(max(1.0, num_clips / _BREADTH_UP_TO)))


def exact_top_k(
    embeddings: Float32, queries: Float32, top_k: int, among: Mask
) -> tuple[Int64, Float32]:
    """Rank clips by cosine similarity; memory is bounded whatever the gallery's size.

    Args:
        embeddings: Unit-norm clip embeddings, float32 [N, E].
        queries: Unit-norm query embeddings, float32 [Q, E].
        top_k: Hits per query, at least 1; fewer if there are not so many clips.
        among: The rows to rank, bool [N].

    Returns:
        Row numbers int64 [Q, k] and similarities float32 [Q, k], best first, ties by row number.
    """
    hits = []
    for first in range(0, len(queries), _QUERY_BLOCK):
        hits += _exact_block(embeddings, queries[first : first + _QUERY_BLOCK], top_k, among)
    return _stacked(hits, min(top_k, int(np.count_nonzero(among))))


def _exact_block(
    embeddings: Float32, queries: Float32, top_k: int, among: Mask
) -> list[tuple[Int64, Float32]]:
    hits = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
    for rows, block in _blocks(embeddings, among):
        similarity = _products(queries, block)
        for number, (query, row) in enumerate(zip(queries, similarity, strict=True)):
            best, best_similarity = hits[number]
            floor = best_similarity[-1] if len(best) == top_k else -np.inf
            if len(row) > top_k:
                floor = max(floor, np.partition(row, -top_k)[-top_k])
            found = rows[row >= floor - _ROUNDING]
            values = np.concatenate([best_similarity, _similarity(embeddings, query, found)])
            hits[number] = _sorted(np.concatenate([best, found]), values, top_k)
    return hits


def _products(queries: Float32, block: Float32) -> Float32:
    """Dot products [Q, N]."""
    if len(queries) > _FEW:
        return queries @ block.T
    parts = [
        np.vecdot(block[first : first + _CACHED, None], queries[None])
        for first in range(0, len(block), _CACHED)
    ]
    return np.concatenate(parts).T


def _blocks(embeddings: Float32, among: Mask) -> Iterator[tuple[Int64, Float32]]:
    """Row numbers and embeddings, block by block; copied only where rows are left out."""
    for first in range(0, len(embeddings), _ROW_BLOCK):
        rows = first + np.flatnonzero(among[first : first + _ROW_BLOCK])
        block = embeddings[first : first + _ROW_BLOCK]
        if len(rows):
            yield rows, block if len(rows) == len(block) else embeddings[rows]


def _similarity(embeddings: Float32, query: Float32, rows: Int64) -> Float32:
    products = np.multiply(embeddings[rows], query, dtype=np.float64)
    similarity: Float32 = products.sum(axis=1).astype(np.float32)
    return similarity


def _sorted(rows: Int64, values: Float32, top_k: int) -> tuple[Int64, Float32]:
    order = np.lexsort((rows, -values))[:top_k]
    return rows[order], values[order]


def _stacked(hits: list[tuple[Int64, Float32]], top_k: int) -> tuple[Int64, Float32]:
    rows = np.empty((len(hits), top_k), np.int64)
    values = np.empty((len(hits), top_k), np.float32)
    for number, (row, value) in enumerate(hits):
        rows[number], values[number] = row, value
    return rows, values


class NewerIndexError(GalleryError):
    """The approximate index covers clips that came after a gallery was opened."""


class ApproximateIndex:
    """A USearch graph (HNSW, inner product, int8) over the first clips of a gallery.

    The file is USearch's own, followed by a seal of three sha256: of the graph, of the vectors, and
    of a sample of the gallery's embeddings. A damaged graph could crash the process, so it is checked
    before USearch sees it: a fifth of the file. Damaged vectors could only make a search miss clips,
    because every candidate is compared with the gallery's own embedding; they are checked before
    they are written again.
    """

    def __init__(self, index: "Index", contents: memoryview | None = None) -> None:
        self._index = index
        self._contents = contents  # the mapped file that ``index`` looks into

    def __len__(self) -> int:
        """Return how many clips, from row 0 on, the graph covers."""
        return len(self._index)

    @classmethod
    def open(
        cls, path: Path, embeddings: Float32, *, extend: bool = False, breadth: int | None = None
    ) -> Self:
        """Map an index file, or load it into memory to ``extend`` it, if it belongs to these clips.

        Args:
            path: The index file.
            embeddings: The gallery's embeddings, float32 [N, E].
            extend: Load a copy that ``add`` can change.
            breadth: Clips that a search keeps in view: more finds more and takes longer; None:
                :func:`breadth_for` the gallery.

        Raises:
            GalleryError: The file is damaged, or was not made of the first rows of ``embeddings``.
        """
        from usearch.index import Index

        contents, clips_digest = _unsealed(path, check_vectors=extend)
        num_clips, embed_dim = embeddings.shape
        breadth = breadth or breadth_for(num_clips)
        try:
            index = Index.restore(
                contents, view=not extend, expansion_search=breadth, enable_key_lookups=False
            )
        except (RuntimeError, ValueError) as error:
            raise _refused(path, f"USearch cannot read it ({error})") from error
        if index is None or index.ndim != embed_dim:
            raise _refused(path, f"its vectors are not {embed_dim} numbers wide")
        if len(index) > num_clips:
            raise NewerIndexError(
                f"{path} covers {len(index)} clips, the gallery opened here {num_clips}. Open it again."
            )
        if clips_digest != _clips_digest(embeddings, len(index)):
            raise _refused(path, "it was made of other embeddings")
        return cls(index, contents)

    @classmethod
    def empty(cls, embed_dim: int) -> Self:
        """Make an index without clips, to ``add`` to."""
        from usearch.index import Index

        # A key is a row: none is looked up, and opening need not read the graph to be able to.
        return cls(Index(ndim=embed_dim, metric="ip", dtype="i8", enable_key_lookups=False))

    def add(self, embeddings: Float32, *, threads: int) -> None:
        """Add the rows of ``embeddings`` [N, E] after those covered; 0 threads = all cores."""
        limit = min(1.0, _INT8_LIMIT / embeddings.shape[1] ** 0.5)
        for first in range(len(self), len(embeddings), _ROW_BLOCK):
            block = _int8(embeddings[first : first + _ROW_BLOCK], limit)
            keys = np.arange(first, first + len(block), dtype=np.uint64)
            self._index.add(keys, block, threads=threads)

    def save(self, path: Path, embeddings: Float32) -> None:
        """Write the file in one step: a crash leaves the old one or the new one.

        Args:
            path: The file.
            embeddings: What was added, float32 [N, E].
        """
        temporary = path.with_name(path.name + ".tmp")
        with plain_path(temporary) as plain:
            self._index.save(plain)
        with temporary.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            start = _graph_start(file, size)
            seal = _SEAL + _clips_digest(embeddings, len(self)) + _graph_digest(file, start, size)
            seal += _digest(file, _DIMENSIONS.size, start)
            file.seek(size)
            file.write(seal)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def top_k(
        self, embeddings: Float32, queries: Float32, top_k: int, among: Mask
    ) -> tuple[Int64, Float32]:
        """As :func:`exact_top_k`, but rows that the graph covers may be missed.

        Rows after those covered are searched exactly, and so is everything for a query to which the
        graph gives too few candidates.
        """
        covered = len(self)
        wanted = max(_CANDIDATES, 2 * top_k)
        tail, _ = exact_top_k(embeddings[covered:], queries, top_k, among[covered:])
        enough = min(top_k, int(np.count_nonzero(among[:covered])))
        hits = []
        for query, after in zip(queries, tail + covered, strict=True):
            matches = self._index.search(_int8(query, np.abs(query).max()), wanted, threads=1)
            found = np.asarray(matches.keys, np.int64)
            found = found[among[found]]
            if len(found) < enough:
                hits += _exact_block(embeddings, query[None], top_k, among)
                continue
            rows = np.concatenate([found, after])
            hits.append(_sorted(rows, _similarity(embeddings, query, rows), top_k))
        return _stacked(hits, min(top_k, int(np.count_nonzero(among))))


def _int8(numbers: Float32, limit: float) -> NDArray[np.int8]:
    """Round to 127 steps up to ``limit``; USearch's own are up to 1, and cut off, not rounded."""
    steps: NDArray[np.int8] = np.rint(np.clip(numbers, -limit, limit) * (127 / limit)).astype(
        np.int8
    )
    return steps


def _unsealed(path: Path, *, check_vectors: bool) -> tuple[memoryview, bytes]:
    """Map a file that is as it was written, and return what it says of the gallery's embeddings.

    For the digests it is read, not mapped, so that it does not become resident.
    """
    try:
        with path.open("rb") as file:
            contents = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            size = max(len(contents) - _SEAL_PARTS.size, 0)
            seal = contents[size:]
            start = _graph_start(file, size)
            found = _graph_digest(file, start, size)
            if check_vectors:
                found += _digest(file, _DIMENSIONS.size, start)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise _refused(path, f"it cannot be read ({error})") from error
    magic, clips_digest, written = _SEAL_PARTS.unpack(seal)
    if magic != _SEAL or not written.startswith(found):
        raise _refused(path, "its checksum differs from its contents")
    return contents[:size], clips_digest


def _graph_start(file: BinaryIO, size: int) -> int:
    """Return where USearch's vectors end, which stand between their dimensions and the graph."""
    file.seek(0)
    head = file.read(_DIMENSIONS.size)
    if len(head) == _DIMENSIONS.size:
        start: int = _DIMENSIONS.size + math.prod(_DIMENSIONS.unpack(head))
        file.seek(min(start, size))
        if file.read(len(_GRAPH)) == _GRAPH:
            return start
    raise ValueError("no vectors and graph as USearch writes them")


def _graph_digest(file: BinaryIO, start: int, size: int) -> bytes:
    return _digest(file, 0, _DIMENSIONS.size, start, size)


def _digest(file: BinaryIO, *spans: int) -> bytes:
    """Hash parts of a file: from the first position to the second, the third to the fourth, ..."""
    digest = hashlib.sha256()
    for first, end in zip(spans[::2], spans[1::2], strict=True):
        file.seek(first)
        for position in range(first, end, _HASH_BLOCK):
            digest.update(file.read(min(_HASH_BLOCK, end - position)))
    return digest.digest()


def _clips_digest(embeddings: Float32, covered: int) -> bytes:
    rows = np.linspace(0, covered - 1, min(covered, _SAMPLE)).astype(np.int64)
    return hashlib.sha256(embeddings[rows].tobytes()).digest()


def _refused(path: Path, reason: str) -> GalleryError:
    return GalleryError(
        f"approximate index {path} does not fit the gallery: {reason}. "
        "Build it again with dgl-index, or delete it to search exactly."
    )

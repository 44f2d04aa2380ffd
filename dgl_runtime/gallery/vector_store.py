"""The interface of a vector store: what a gallery asks of it, and what makes a vector count."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.gallery.clips import Header

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_NORM_TOLERANCE = 1e-3


class VectorStore(Protocol):
    """The embedding and the frame weights of each clip, under its row in the records as the key.

    The records are the truth. A writer first writes vectors, then has the records say that they count; it
    first has the records say that clips are gone, then drops their vectors. It may be killed between any
    two steps, so a store may hold what the records do not know, and must not mind being told twice. One
    process writes at a time, many read; threads may share a store for reading.
    """

    def sync(self, header: Header, *, clean: bool = False) -> None:
        """Let count what the records say: keys below ``num_rows``, of this generation.

        Args:
            header: What they say.
            clean: Also drop what does not count. Asked by the writer alone.

        Raises:
            GalleryError: Vectors that should be there are not.
            OSError: They cannot be read or, to ``clean``, written.
        """

    def upsert(self, keys: Int64, embeddings: Float32, frame_weights: Float32) -> None:
        """Insert vectors, or replace them, such that they survive a power cut.

        Args:
            keys: Ascending by one, int64 [N], none of which counts yet.
            embeddings: Unit-norm, float32 [N, E].
            frame_weights: Float32 [N, F].

        Raises:
            OSError: There is no room, or no way to the store.
        """

    def remove(self, keys: Int64) -> None:
        """Let go of clips that are no more; a store that gets room back dearly may wait to be compacted."""

    def compact(self, living: Mask) -> int:
        """Take back the room of dropped clips, where that pays.

        Args:
            living: The keys to keep, bool [num_rows].

        Returns:
            The generation of what is there now. If it is another than the records', the keys that are kept are
            numbered anew from 0 on, and that counts when the records say so.

        Raises:
            OSError: There is no room.
        """

    def optimize(self) -> None:
        """Build what makes searches fast, if the store is large enough.

        Raises:
            GalleryError: There is no room.
        """

    def warm(self) -> None:
        """Do now what the first search would: open, check, connect.

        Raises:
            GalleryError: What searches go through is damaged.
        """

    def top_k(self, queries: Float32, top_k: int, among: Mask) -> tuple[Int64, Float32]:
        """Find the vectors most similar to each query, exactly or nearly so, as the store chooses.

        Args:
            queries: Unit-norm, float32 [Q, E].
            top_k: Hits per query, at least 1.
            among: The keys to choose from, bool [num_rows].

        Returns:
            Keys int64 [Q, k] and exact cosine similarities float32 [Q, k], best first, ties by key; k is
            ``top_k``, or as many of ``among`` as the store holds.

        Raises:
            GalleryError: What searches go through is damaged.
        """

    def embeddings(self, keys: slice | Int64) -> Float32:
        """Embeddings of keys that count, float32 [N, E]; not copied where a slice needs no copy."""

    def frame_weights(self, keys: slice | Int64) -> Float32:
        """Frame weights of keys that count, float32 [N, F]; not copied where a slice needs no copy."""

    def close(self) -> None:
        """Let go of files and connections; twice does no harm."""


OpenStore = Callable[[Path], VectorStore]
"""Makes the store of the gallery in a folder; it holds nothing before ``sync``."""


def require_matrix(
    name: str, matrix: Float32, shape: tuple[int | str, int], *, is_unit: bool = False
) -> None:
    """Raise ValueError unless a matrix is finite float32 of this shape, and its rows unit-norm.

    A letter as the number of rows stands for any number.
    """
    rows, width = shape
    found = matrix.shape
    is_shape = len(found) == 2 and found[1] == width and (rows == found[0] or isinstance(rows, str))
    if matrix.dtype != np.float32 or not is_shape:
        raise ValueError(
            f"{name} are {matrix.dtype} {list(found)}, expected float32 [{rows}, {width}]."
        )
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} hold a NaN or an infinity. Check what made them.")
    lengths = np.linalg.norm(matrix, axis=1)
    if is_unit and not np.allclose(lengths, 1, rtol=0, atol=_NORM_TOLERANCE):
        worst = int(np.abs(lengths - 1).argmax())
        raise ValueError(
            f"{name}[{worst}] has length {lengths[worst]:.4g}, expected 1. Divide it by its length."
        )

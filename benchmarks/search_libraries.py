"""The ways to search that dgl-bench search compares: build a file, open it, search one query.

Graphs have the same parameters everywhere: 16 links a clip (32 in the lowest layer) and a breadth of 128
while building. All but ours keep float32 vectors, as these libraries do unless told otherwise.
"""

import sys
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.gallery.folder import EMBEDDINGS, GRAPH, path_of
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.gallery.vectors import LocalVectors

if TYPE_CHECKING:
    import faiss
    import hnswlib

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

LINKS, BREADTH_OF_BUILDING = 16, 128  # USearch's defaults
_BLOCK = 10_000  # clips added at once: the vectors need not be in memory twice


class Library(Protocol):
    """One way to search the clips of a gallery on one thread."""

    module: ClassVar[str | None]  # that must be importable
    install: ClassVar[str]  # what pip takes
    is_exact: ClassVar[bool]

    @staticmethod
    def build(gallery: Path, file: Path, threads: int) -> Path:
        """Write what a search needs, with so many threads, and return the file."""

    @classmethod
    def open(cls, gallery: Path, file: Path) -> Self:
        """Open that file."""

    def set_breadth(self, breadth: int) -> None:
        """Set how many clips a search of the graph keeps in view."""

    def search(self, query: Float32, top_k: int) -> Int64:
        """Return the rows of the best clips of one query, float32 [E]."""


class OursExact:
    """A gallery searched exactly."""

    module: ClassVar[str | None] = None
    install: ClassVar[str] = ""
    is_exact: ClassVar[bool] = True

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery

    @staticmethod
    def build(gallery: Path, file: Path, threads: int) -> Path:
        """Nothing: the gallery's own embeddings are searched."""
        return path_of(gallery, EMBEDDINGS, 0)

    @classmethod
    def open(cls, gallery: Path, file: Path) -> Self:
        """Open the gallery."""
        return cls(Gallery.open(gallery, store=partial(LocalVectors, approximate_from=sys.maxsize)))

    def set_breadth(self, breadth: int) -> None:
        """Nothing to set."""

    def search(self, query: Float32, top_k: int) -> Int64:
        """Through the front door, with its checks of the query."""
        rows, _ = self.gallery.search(query[None], top_k)
        found: Int64 = rows[0]
        return found


class OursApproximate(OursExact):
    """A gallery searched through its approximate index."""

    module: ClassVar[str | None] = "usearch"
    install = "dgl-retrieval[large]"
    is_exact = False

    @staticmethod
    def build(gallery: Path, file: Path, threads: int) -> Path:
        """Anew, also where an index is there."""
        path_of(gallery, GRAPH, 0).unlink(missing_ok=True)
        store = partial(LocalVectors, approximate_from=0, threads=threads)
        with Gallery.open(gallery, writable=True, store=store) as opened:
            opened.compact()
        return path_of(gallery, GRAPH, 0)

    @classmethod
    def open(cls, gallery: Path, file: Path) -> Self:
        """Open the gallery and its index."""
        opened = cls(Gallery.open(gallery, store=partial(LocalVectors, approximate_from=0)))
        opened.gallery.warm()
        return opened

    def set_breadth(self, breadth: int) -> None:
        """Open the index again."""
        store = partial(LocalVectors, approximate_from=0, breadth=breadth)
        self.gallery = Gallery.open(self.gallery.folder, store=store)
        self.gallery.warm()


class FaissFlat:
    """FAISS's exact search."""

    module: ClassVar[str | None] = "faiss"
    install: ClassVar[str] = "faiss-cpu"
    is_exact: ClassVar[bool] = True

    def __init__(self, index: "faiss.Index") -> None:
        self.index = index

    @classmethod
    def build(cls, gallery: Path, file: Path, threads: int) -> Path:
        """Add all clips and write the file."""
        import faiss

        faiss.omp_set_num_threads(threads)
        with Gallery.open(gallery) as opened:
            index = cls.empty(opened.facts.embed_dim)
            for first in range(0, len(opened), _BLOCK):
                index.add(opened.embeddings(slice(first, first + _BLOCK)))
        faiss.write_index(index, str(file))
        return file

    @classmethod
    def empty(cls, embed_dim: int) -> "faiss.Index":
        """Make the index that clips are added to."""
        import faiss

        return faiss.IndexFlatIP(embed_dim)

    @classmethod
    def open(cls, gallery: Path, file: Path) -> Self:
        """Read the file into memory."""
        import faiss

        faiss.omp_set_num_threads(1)
        return cls(faiss.read_index(str(file)))

    def set_breadth(self, breadth: int) -> None:
        """Nothing to set."""

    def search(self, query: Float32, top_k: int) -> Int64:
        """One query."""
        rows: Int64 = self.index.search(query[None], top_k)[1][0]
        return rows


class FaissHnsw(FaissFlat):
    """FAISS's graph."""

    is_exact = False

    @classmethod
    def empty(cls, embed_dim: int) -> "faiss.Index":
        """Make the graph that clips are added to."""
        import faiss

        index = faiss.IndexHNSWFlat(embed_dim, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BREADTH_OF_BUILDING
        return index

    def set_breadth(self, breadth: int) -> None:
        """FAISS calls it efSearch."""
        self.index.hnsw.efSearch = breadth


class Hnswlib:
    """The graph of hnswlib."""

    module: ClassVar[str | None] = "hnswlib"
    install: ClassVar[str] = "hnswlib"
    is_exact: ClassVar[bool] = False

    def __init__(self, index: "hnswlib.Index") -> None:
        self.index = index

    @staticmethod
    def build(gallery: Path, file: Path, threads: int) -> Path:
        """Add all clips and write the file."""
        import hnswlib

        with Gallery.open(gallery) as opened:
            index = hnswlib.Index(space="ip", dim=opened.facts.embed_dim)
            index.init_index(len(opened), M=LINKS, ef_construction=BREADTH_OF_BUILDING)
            for first in range(0, len(opened), _BLOCK):
                index.add_items(
                    opened.embeddings(slice(first, first + _BLOCK)), num_threads=threads
                )
        index.save_index(str(file))
        return file

    @classmethod
    def open(cls, gallery: Path, file: Path) -> Self:
        """Read the file into memory."""
        import hnswlib

        with Gallery.open(gallery) as opened:
            index = hnswlib.Index(space="ip", dim=opened.facts.embed_dim)
        index.load_index(str(file))
        return cls(index)

    def set_breadth(self, breadth: int) -> None:
        """Hnswlib calls it ef."""
        self.index.set_ef(breadth)

    def search(self, query: Float32, top_k: int) -> Int64:
        """One query; the breadth must be at least ``top_k``."""
        rows, _ = self.index.knn_query(query[None], k=top_k, num_threads=1)
        return np.asarray(rows[0], np.int64)


OURS_EXACT, OURS_APPROXIMATE = "ours exact", "ours approximate"
LIBRARIES: Mapping[str, type[Library]] = {
    OURS_EXACT: OursExact,
    "FAISS flat": FaissFlat,
    OURS_APPROXIMATE: OursApproximate,
    "FAISS HNSW": FaissHnsw,
    "hnswlib": Hnswlib,
}


def remedy(name: str) -> str | None:
    """How to install a way to search; None if it is there."""
    library = LIBRARIES[name]
    if library.module is None or find_spec(library.module):
        return None
    return f"pip install '{library.install}'"

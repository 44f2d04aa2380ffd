"""Ours, FAISS and hnswlib on the same clips and queries.

    python benchmarks/studies/search_libraries.py

Graphs have the same parameters everywhere: 16 links a clip (32 in the lowest layer) and a breadth of 128
while building. All but ours keep float32 vectors, as these libraries do unless told otherwise.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from dgl_bench.command import benchmark
from dgl_bench.report import Report
from dgl_bench.search import OURS, SIZES, Float32, Int64, Library, Opened, Rounds, Sizes, compare
from dgl_runtime.gallery.gallery import Gallery

LINKS, BREADTH_OF_BUILDING = 16, 128  # USearch's defaults
_BLOCK = 10_000  # clips added at once: the vectors need not be in memory twice


def blocks(gallery: Gallery) -> Iterator[Float32]:
    for first in range(0, len(gallery), _BLOCK):
        yield gallery.embeddings(slice(first, first + _BLOCK))


def build_faiss(gallery: Path, file: Path, threads: int, *, graph: bool) -> Path:
    import faiss

    faiss.omp_set_num_threads(threads)
    with Gallery.open(gallery) as opened:
        if graph:
            index = faiss.IndexHNSWFlat(opened.facts.embed_dim, LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = BREADTH_OF_BUILDING
        else:
            index = faiss.IndexFlatIP(opened.facts.embed_dim)
        for block in blocks(opened):
            index.add(block)
    faiss.write_index(index, str(file))
    return file


def open_faiss(gallery: Path, file: Path) -> Opened:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.read_index(str(file))

    def search(query: Float32, top_k: int) -> Int64:
        rows: Int64 = index.search(query[None], top_k)[1][0]
        return rows

    def set_breadth(breadth: int) -> None:
        if hasattr(index, "hnsw"):
            index.hnsw.efSearch = breadth

    return search, set_breadth


def build_hnswlib(gallery: Path, file: Path, threads: int) -> Path:
    import hnswlib

    with Gallery.open(gallery) as opened:
        index = hnswlib.Index(space="ip", dim=opened.facts.embed_dim)
        index.init_index(len(opened), M=LINKS, ef_construction=BREADTH_OF_BUILDING)
        for block in blocks(opened):
            index.add_items(block, num_threads=threads)
    index.save_index(str(file))
    return file


def open_hnswlib(gallery: Path, file: Path) -> Opened:
    import hnswlib

    with Gallery.open(gallery) as opened:
        index = hnswlib.Index(space="ip", dim=opened.facts.embed_dim)
    index.load_index(str(file))

    def search(query: Float32, top_k: int) -> Int64:
        rows, _ = index.knn_query(query[None], k=top_k, num_threads=1)
        return np.asarray(rows[0], np.int64)

    return search, index.set_ef


LIBRARIES: Mapping[str, Library] = {
    **OURS,
    "FAISS flat": Library(
        "faiss", "faiss-cpu", True, partial(build_faiss, graph=False), open_faiss
    ),
    "FAISS HNSW": Library(
        "faiss", "faiss-cpu", False, partial(build_faiss, graph=True), open_faiss
    ),
    "hnswlib": Library("hnswlib", "hnswlib", False, build_hnswlib, open_hnswlib),
}


@benchmark
def main(sizes: Sizes = SIZES, rounds: Rounds = 300) -> Report:
    """Ours, FAISS and hnswlib on one thread: latency, recall, building, opening, memory.

    A million clips take 10 GB of disk under TMPDIR, 5 GB of memory and an hour or two.

    Example: python benchmarks/studies/search_libraries.py --sizes 10000,100000 --rounds 300
    """
    return compare("search-libraries", LIBRARIES, sizes, rounds)


if __name__ == "__main__":
    main()

"""dgl-bench search: ours, FAISS and hnswlib on the same clips and queries, one thread each.

Every measurement has a fresh process, so that opening is opening, memory is what one library holds, and a
million clips need not be in memory five times. Latencies are paired: each way to search takes turns with
ours, query by query.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks import search_measure as measure
from benchmarks.machine import load_average
from benchmarks.search_libraries import LIBRARIES, OURS_APPROXIMATE, OURS_EXACT, remedy
from benchmarks.search_measure import TEXTS, Built, Opening, Point
from benchmarks.timing import Paired
from dgl_runtime.errors import EngineError
from dgl_runtime.gallery.nearest import breadth_for

P = ParamSpec("P")
R = TypeVar("R")

ENOUGH = 0.99  # recall that a graph's breadth is chosen for
# What the numerical libraries read when they are loaded, in the process to come.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class SearchSettings:
    """What to measure: numbers of clips, timed queries, and the width of an embedding."""

    sizes: tuple[int, ...]
    rounds: int
    embed_dim: int = 512


@dataclass(frozen=True)
class LibraryResult:
    """All about one way to search; ``points`` has one entry for an exact one.

    Attributes:
        built: Building, on all cores.
        file_bytes: Size of the file that is searched.
        opening: In a fresh process.
        points: The sweep of its breadth.
        chosen: The point whose latency was paired.
        paired: Its times and those of the base, texts only.
    """

    built: Built
    file_bytes: int
    opening: Opening
    points: list[Point]
    chosen: Point
    paired: Paired[NDArray[np.int64]]


@dataclass(frozen=True)
class SizeResult:
    """One number of clips; ``missing`` tells how to install what could not be measured."""

    num_clips: int
    base: str
    libraries: dict[str, LibraryResult]
    missing: dict[str, str]


@dataclass(frozen=True)
class SearchResult:
    """Everything measured."""

    settings: SearchSettings
    sizes: list[SizeResult]
    bytes_per_s: float
    load_before: float | None


def bench_search(settings: SearchSettings) -> SearchResult:
    """Measure every size, smallest first.

    Raises:
        EngineError: A process was killed, most likely for want of memory.
        GalleryError: The disk refused.
    """
    load_before = load_average()
    bytes_per_s = _apart(measure.bandwidth)
    sizes = []
    for size in sorted(set(settings.sizes)):
        with tempfile.TemporaryDirectory(prefix="dgl-bench-search-") as folder:
            sizes.append(_bench_size(Path(folder), size, settings))
    return SearchResult(settings, sizes, bytes_per_s, load_before)


def _bench_size(folder: Path, size: int, settings: SearchSettings) -> SizeResult:
    click.echo(f"{size} clips: embeddings and exact answers", err=True)
    _apart(measure.make_gallery, folder, size, settings.embed_dim)
    _apart(measure.make_queries, folder, settings.embed_dim)
    missing = {name: text for name in LIBRARIES if (text := remedy(name))}
    present = [name for name in LIBRARIES if name not in missing]
    base = OURS_APPROXIMATE if OURS_APPROXIMATE in present else OURS_EXACT
    files, built = {}, {}
    for name in present:
        click.echo(f"{size} clips: building {name}", err=True)
        cores = os.cpu_count() or 1
        files[name], built[name] = _apart(measure.build, folder, name, cores)
    results = {}
    for name in present:
        click.echo(f"{size} clips: searching with {name}", err=True)
        opening = _apart(measure.opening, folder, name, files[name])
        shipped = breadth_for(size)
        points = _apart(measure.sweep, folder, name, files[name], shipped)
        chosen = choose(name, points, shipped)
        searched = {name: (files[name], chosen.breadth), base: (files[base], shipped)}
        paired = _apart(measure.pair, folder, searched, settings.rounds)
        size_bytes = files[name].stat().st_size
        results[name] = LibraryResult(built[name], size_bytes, opening, points, chosen, paired)
    return SizeResult(size, base, results, missing)


def choose(name: str, points: Sequence[Point], shipped: int) -> Point:
    """Ours as it ships; of the others the smallest breadth with enough recall, or the largest."""
    if name == OURS_APPROXIMATE:
        return next(point for point in points if point.breadth == shipped)
    enough = [point for point in points if point.recall[TEXTS] >= ENOUGH]
    return enough[0] if enough else points[-1]


def _apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call in a fresh process whose numerical libraries have one thread."""
    with _environment(_ONE_THREAD), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as error:
            raise EngineError(
                "a process of dgl-bench search was killed, most likely for want of memory. "
                "Give smaller --sizes."
            ) from error


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

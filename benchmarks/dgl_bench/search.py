"""dgl-bench search: ours exact and ours approximate on the same clips and queries, one thread each.

Every measurement has a fresh process, so that opening is opening, memory is what one way to search holds,
and a million clips need not be in memory several times. Latencies are paired: each way takes turns with
ours, query by query. Another library is another ``Library`` (benchmarks/studies/search_libraries.py).
"""

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from dgl_bench.command import benchmark, say
from dgl_bench.peaks import measure_peaks
from dgl_bench.processes import ONE_THREAD, apart, memory_bytes
from dgl_bench.report import Plot, Report, Row, Table
from dgl_bench.search_vectors import MadeEmbeddings, unit
from dgl_bench.timing import WARM_UP, Paired, time_paired
from dgl_runtime.gallery.folder import EMBEDDINGS, GRAPH, path_of
from dgl_runtime.gallery.gallery import Clip, Gallery
from dgl_runtime.gallery.local_vector_store import LocalVectors
from dgl_runtime.gallery.nearest import breadth_for

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
P = ParamSpec("P")
R = TypeVar("R")

TOP_K = 10
QUERIES = 500  # of each kind
TEXTS, CLIPS = "texts", "clips"  # kinds of queries
BREADTHS = (16, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
SEARCHES = 100  # before memory is looked at again
ENOUGH = 0.99  # recall that a graph's breadth is chosen for
_NOISE = 0.56  # a clip beside its query clip, as a share of its length: cosine 0.87
_FRAMES = 12
_HELD = {"own": "RssAnon", "mapped": "RssFile"}


Search = Callable[[Float32, int], Int64]
"""One query, float32 [E], and top_k to rows."""
Opened = tuple[Search, Callable[[int], None]]
"""The second sets the breadth: how many clips a search of a graph keeps in view."""


@dataclass(frozen=True)
class Library:
    """One way to search the clips of a gallery on one thread."""

    module: str  # that must be importable
    install: str  # what pip takes
    is_exact: bool  # its breadth means nothing then
    build: Callable[[Path, Path, int], Path]  # gallery, file, threads; returns what is searched
    open: Callable[[Path, Path], Opened]  # gallery and that file


def _build_ours(gallery: Path, file: Path, threads: int, *, approximate: bool) -> Path:
    """The graph anew, also where one is there; exactly, the gallery's own embeddings are searched."""
    if not approximate:
        return path_of(gallery, EMBEDDINGS, 0)
    path_of(gallery, GRAPH, 0).unlink(missing_ok=True)
    store = partial(LocalVectors, approximate_from=0, threads=threads)
    with Gallery.open(gallery, writable=True, store=store) as opened:
        opened.compact()
    return path_of(gallery, GRAPH, 0)


def _open_ours(gallery: Path, file: Path, *, approximate: bool) -> Opened:
    """Searched through the front door, with its checks of the query."""
    first = 0 if approximate else sys.maxsize
    opened = Gallery.open(gallery, store=partial(LocalVectors, approximate_from=first))

    def search(query: Float32, top_k: int) -> Int64:
        rows: Int64 = opened.search(query[None], top_k)[0][0]
        return rows

    def set_breadth(breadth: int) -> None:
        nonlocal opened
        store = partial(LocalVectors, approximate_from=first, breadth=breadth)
        opened = Gallery.open(gallery, store=store)
        opened.warm()

    if approximate:
        opened.warm()
    return search, set_breadth


def _ours(module: str, install: str, *, approximate: bool) -> Library:
    build = partial(_build_ours, approximate=approximate)
    open_ = partial(_open_ours, approximate=approximate)
    return Library(module, install, not approximate, build, open_)


OURS_EXACT, OURS_APPROXIMATE = "ours exact", "ours approximate"
OURS: Mapping[str, Library] = {
    OURS_EXACT: _ours("dgl_runtime", "", approximate=False),
    OURS_APPROXIMATE: _ours("usearch", "dgl-retrieval[large]", approximate=True),
}

Sizes = Annotated[tuple[int, ...], "Numbers of clips, with commas."]
Rounds = Annotated[int, "Queries timed."]
SIZES = (10_000, 100_000, 1_000_000)


@benchmark
def search(sizes: Sizes = SIZES, rounds: Rounds = 300) -> Report:
    """Ours on one thread, exact and approximate: latency, recall, building, opening, memory.

    A million clips take 3 GB of disk under TMPDIR and 5 GB of memory.

    Example: dgl-bench search --sizes 10000,100000 --rounds 300
    """
    return compare("search", OURS, sizes, rounds)


def compare(
    name: str, libraries: Mapping[str, Library], sizes: Sequence[int], rounds: int, width: int = 512
) -> Report:
    """Measure every size, smallest first, with every library that is installed; E is ``width``."""
    bytes_per_s = _apart(measure_peaks).bytes_per_s
    here = {one: kind for one, kind in libraries.items() if find_spec(kind.module)}
    found: dict[str, list[Row]] = {"latency": [], "files": [], "sweep": []}
    for size in sorted(set(sizes)):
        with tempfile.TemporaryDirectory(prefix="dgl-bench-search-") as folder:
            say(f"{size} clips: embeddings and exact answers")
            _apart(make_gallery, Path(folder), size, width)
            _apart(make_queries, Path(folder), width)
            for kind, rows in _measure(Path(folder), here, size, rounds).items():
                found[kind] += [{"search": row["search"], "clips": size, **row} for row in rows]
    for row in found["latency"]:
        moved = 4 * row["clips"] * width / (row["p50 ms"] / 1000)
        row["of bandwidth, %"] = None if row["breadth"] else 100 * moved / bytes_per_s
    missing = [one for one in libraries if one not in here]
    notes = [f"Not measured, {one}: pip install '{libraries[one].install}'." for one in missing]
    return _report(name, found, [*notes, f"One thread moves {bytes_per_s / 1e9:.1f} GB/s."])


def _measure(
    folder: Path, libraries: Mapping[str, Library], size: int, rounds: int
) -> dict[str, list[Row]]:
    """One number of clips: rows of latencies, of files and of the sweep."""
    shipped, ways, rows = breadth_for(size), {}, {}
    for one, library in libraries.items():
        say(f"{size} clips: building {one}")
        rows[one], file = _apart(build, folder, one, library)
        ways[one] = (library, file)
    latency, points, timed = [], [], {}
    for one in libraries:
        say(f"{size} clips: searching with {one}")
        opened, swept = _apart(examine, folder, *ways[one], shipped)
        rows[one] |= opened
        swept = [{"search": one, **row} for row in swept]
        points += swept
        latency.append(choose(one, swept, shipped))
        timed[one] = (*ways[one], latency[-1]["breadth"])
    say(f"{size} clips: all of them in turns")
    base = OURS_APPROXIMATE if OURS_APPROXIMATE in libraries else OURS_EXACT
    paired = _apart(in_turns, folder, timed, rounds)
    for row in latency:
        one, times_ms = row["search"], paired.times_ms[row["search"]]
        row["p50 ms"], row["p99 ms"] = np.percentile(times_ms, (50, 99)).tolist()
        row["ours faster"] = None if one == base else paired.speedup(base, over=one)
        row["times_ms"] = times_ms
    return {"latency": latency, "files": list(rows.values()), "sweep": points}


def choose(name: str, points: Sequence[Row], shipped: int) -> Row:
    """Ours as it ships; of the others the smallest breadth with enough recall, or the largest."""
    if name == OURS_APPROXIMATE:
        return next(point for point in points if point["breadth"] == shipped)
    enough = [point for point in points if point[f"recall {TEXTS}"] >= ENOUGH]
    return enough[0] if enough else points[-1]


# ---- each of these in a process of its own --------------------------------------------------------


def _apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return apart(partial(function, *args, **kwargs), "Give smaller --sizes.", ONE_THREAD)


def make_gallery(folder: Path, size: int, embed_dim: int) -> None:
    """Write a gallery of made embeddings into ``folder / "gallery"``."""
    made = MadeEmbeddings.of_width(embed_dim)
    weights = np.full((1, _FRAMES), 1 / _FRAMES, np.float32)
    create = partial(Gallery.create, folder / "gallery", bundle_id="made", bundle_path="made")
    with create(embed_dim=embed_dim, num_frames=_FRAMES) as gallery:
        for block in made.clips(size):
            rows = range(len(gallery), len(gallery) + len(block))
            clips = [Clip(f"{row}.mp4", f"{row:064x}", 0.0, 10.0, 10.0) for row in rows]
            gallery.ingest(clips, block, weights.repeat(len(block), axis=0))


def make_queries(folder: Path, embed_dim: int) -> None:
    """Write queries of both kinds, float32 [Q, E], and their exact best rows, int64 [Q, 10]."""
    rng = np.random.default_rng(3)
    made = MadeEmbeddings.of_width(embed_dim)
    with Gallery.open(folder / "gallery") as gallery:
        rows = np.sort(rng.choice(len(gallery), min(QUERIES, len(gallery)), replace=False))
        clips = gallery.embeddings(rows)
        noise = unit(rng.standard_normal(clips.shape, np.float32))
        for kind, queries in ((TEXTS, made.texts(clips)), (CLIPS, unit(clips + _NOISE * noise))):
            best, _ = gallery.search(queries, TOP_K)
            np.savez(folder / f"{kind}.npz", queries=queries, best=best)


def build(folder: Path, name: str, library: Library) -> tuple[dict[str, Any], Path]:
    """Build one library's file, on all cores."""
    started = time.perf_counter()
    file = library.build(folder / "gallery", folder / name.replace(" ", "-"), os.cpu_count() or 1)
    row = {"search": name, "built on all cores, s": time.perf_counter() - started}
    peak = memory_bytes("VmHWM")
    return row | {"peak MB": peak and peak / 1e6, "file MB": file.stat().st_size / 1e6}, file


def examine(folder: Path, library: Library, file: Path, shipped: int) -> tuple[Row, list[Row]]:
    """Open and search texts, with the memory that both add; then recall and time at every breadth."""
    queries, _ = _queries(folder, TEXTS)
    import_module(library.module)
    before = {name: memory_bytes(field) for name, field in _HELD.items()}

    def added(when: str) -> Row:
        row = {}
        for name, was in before.items():
            now = memory_bytes(_HELD[name])
            row[f"{name} MB{when}"] = None if now is None or was is None else (now - was) / 1e6
        return row

    started = time.perf_counter()
    search, set_breadth = library.open(folder / "gallery", file)
    opened = {"opened in ms": 1000 * (time.perf_counter() - started), **added("")}
    for query in itertools.islice(itertools.cycle(queries), SEARCHES):
        search(query, TOP_K)
    opened |= added(", searched")
    points = []
    for breadth in (None,) if library.is_exact else sorted({*BREADTHS, shipped}):
        if breadth is not None:
            set_breadth(breadth)
        row: Row = {"breadth": breadth}
        for kind in (CLIPS, TEXTS):  # the time is that of texts
            row |= _recall_and_ms(search, kind, *_queries(folder, kind))
        points.append(row)
    return opened, points


def _recall_and_ms(search: Search, kind: str, queries: Float32, best: Int64) -> Row:
    hits, times_ms = 0, []
    for query, expected in zip(queries, best, strict=True):
        started = time.perf_counter()
        found = search(query, TOP_K)
        times_ms.append(1000 * (time.perf_counter() - started))
        hits += len(set(found.tolist()) & set(expected.tolist()))
    return {f"recall {kind}": hits / best.size, "median ms": float(np.median(times_ms))}


def in_turns(
    folder: Path, searched: Mapping[str, tuple[Library, Path, int | None]], rounds: int
) -> Paired[Int64]:
    """Search the same texts in turns; ``searched``: name -> library, its file and breadth."""
    queries, _ = _queries(folder, TEXTS)

    def next_query(search: Search) -> Callable[[], Int64]:
        turns = itertools.cycle(queries)
        return lambda: search(next(turns), TOP_K)

    calls = {}
    for name, (library, file, breadth) in searched.items():
        search, set_breadth = library.open(folder / "gallery", file)
        if breadth is not None:
            set_breadth(breadth)
        calls[name] = next_query(search)
    return time_paired(calls, rounds=rounds, settle=1)


def _queries(folder: Path, kind: str) -> tuple[Float32, Int64]:
    with np.load(folder / f"{kind}.npz") as arrays:
        return arrays["queries"], arrays["best"]


# ---- what it tells --------------------------------------------------------------------------------


def _report(name: str, found: Mapping[str, list[Row]], notes: Sequence[str]) -> Report:
    axes, sweep = ("median ms", f"recall {TEXTS}", "search"), found["sweep"]
    plots = [
        Plot(
            "latency", "Latency against clips", "clips", "p50 ms", "search", found["latency"], "xy"
        )
    ]
    for size in dict.fromkeys(row["clips"] for row in sweep):
        title, mine = (
            f"Recall against latency, {size:,} clips",
            [row for row in sweep if row["clips"] == size],
        )
        plots.append(Plot(f"recall-{size}", title, *axes, mine, "x"))
    return Report(
        name=name,
        title="Search: latency, recall, memory",
        tables=[
            Table("One query", found["latency"]),
            Table("Building and opening", found["files"]),
            Table("Recall against breadth", found["sweep"], is_shown=False),
        ],
        plots=plots,
        settings={"queries": QUERIES, "top_k": TOP_K, "warm_up": WARM_UP, "threads": 1},
        packages=("usearch", "faiss-cpu", "hnswlib"),
        notes=[
            "One thread. Times are wall clock of one query through each library's Python interface, page "
            f"cache warm; ours through Gallery.search. All take turns, text by text, each right after one of "
            f"its own that is not timed; ours faster: its time divided by that of {OURS_APPROXIMATE!r}, median "
            "(p10 to p90) over rounds.",
            "Clips are made embeddings: clusters of topics and videos in one cone. Texts lie in another "
            "cone, at a cosine of about 0.3 to their clip; the easier clip queries lie at 0.87.",
            "Breadth of a search: ours as it ships, of others the smallest of the sweep with "
            f"recall@{TOP_K} of texts of {ENOUGH} or more, or the largest.",
            "Of bandwidth: bytes of all embeddings at p50, against what one thread reads or copies (arrays "
            "larger than the caches; smaller galleries may pass it).",
            "Memory: resident, above the process with the library imported, after opening and after "
            f"{SEARCHES} searches; own is the process's own, mapped are pages of files that the system can "
            "take back. Peak, of building: all that is resident, mapped pages too.",
            *notes,
        ],
    )

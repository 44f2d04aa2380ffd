"""What dgl-bench search measures, each in a process of its own: making, building, opening, searching."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_libraries import LIBRARIES, Library
from benchmarks.search_vectors import MadeEmbeddings, unit
from benchmarks.timing import Paired, time_paired
from dgl_runtime.gallery.gallery import Clip, Gallery

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

TOP_K = 10
QUERIES = 500  # of each kind
TEXTS, CLIPS = "texts", "clips"  # kinds of queries
BREADTHS = (16, 32, 64, 128, 256, 384, 512, 768, 1024, 1536)
SEARCHES = 100  # before memory is looked at again
_NOISE = 0.56  # a clip beside its query clip, as a share of its length: cosine 0.87
_FRAMES = 12
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Built:
    """One building: seconds, and the most memory the process held, None where it is not told."""

    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Held:
    """Resident memory: a process's own, and pages of mapped files, which the system can take back."""

    own_bytes: int
    mapped_bytes: int


@dataclass(frozen=True)
class Opening:
    """Opening in a fresh process: seconds, and memory before, after, and after searches."""

    seconds: float
    before: Held | None
    opened: Held | None
    searched: Held | None


@dataclass(frozen=True)
class Point:
    """A graph at one breadth: recall@10 and the median time of each kind of query."""

    breadth: int
    recall: dict[str, float]
    median_ms: dict[str, float]


def make_gallery(folder: Path, size: int, embed_dim: int) -> None:
    """Write a gallery of made embeddings into ``folder / "gallery"``."""
    made = MadeEmbeddings.of_width(embed_dim)
    weights = np.full((1, _FRAMES), 1 / _FRAMES, np.float32)
    with Gallery.create(
        folder / "gallery",
        bundle_id="made",
        bundle_path="made",
        embed_dim=embed_dim,
        num_frames=_FRAMES,
    ) as gallery:
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


def build(folder: Path, name: str, threads: int) -> tuple[Path, Built]:
    """Build one library's file."""
    started = time.perf_counter()
    file = LIBRARIES[name].build(folder / "gallery", folder / name.replace(" ", "-"), threads)
    return file, Built(time.perf_counter() - started, _status_bytes("VmHWM"))


def opening(folder: Path, name: str, file: Path) -> Opening:
    """Open, then search texts."""
    queries, _ = _queries(folder, TEXTS)
    if (module := LIBRARIES[name].module) is not None:
        import_module(module)
    before = _held()
    started = time.perf_counter()
    library = LIBRARIES[name].open(folder / "gallery", file)
    seconds = time.perf_counter() - started
    opened = _held()
    for query in itertools.islice(itertools.cycle(queries), SEARCHES):
        library.search(query, TOP_K)
    return Opening(seconds, before, opened, _held())


def sweep(folder: Path, name: str, file: Path, shipped: int) -> list[Point]:
    """Recall and time at every breadth, the one ours ships with among them; of an exact search, once."""
    library = LIBRARIES[name].open(folder / "gallery", file)
    points = []
    for breadth in (0,) if library.is_exact else sorted({*BREADTHS, shipped}):
        library.set_breadth(breadth)
        recall, times_ms = {}, {}
        for kind in (CLIPS, TEXTS):
            recall[kind], times_ms[kind] = _recall_and_times(library, *_queries(folder, kind))
        medians_ms = {kind: float(np.median(times)) for kind, times in times_ms.items()}
        points.append(Point(breadth, recall, medians_ms))
    return points


def _recall_and_times(library: Library, queries: Float32, best: Int64) -> tuple[float, list[float]]:
    hits, times_ms = 0, []
    for query, expected in zip(queries, best, strict=True):
        started = time.perf_counter()
        found = library.search(query, TOP_K)
        times_ms.append(1000 * (time.perf_counter() - started))
        hits += len(set(found.tolist()) & set(expected.tolist()))
    return hits / best.size, times_ms


def pair(folder: Path, searched: Mapping[str, tuple[Path, int]], rounds: int) -> Paired[Int64]:
    """Search the same texts in turns; ``searched``: name -> file and breadth."""
    queries, _ = _queries(folder, TEXTS)
    calls = {}
    for name, (file, breadth) in searched.items():
        library = LIBRARIES[name].open(folder / "gallery", file)
        library.set_breadth(breadth)
        calls[name] = _next_query(library, queries)
    return time_paired(calls, rounds=rounds, label=" and ".join(calls))


def _next_query(library: Library, queries: Float32) -> Callable[[], Int64]:
    turns = itertools.cycle(queries)
    return lambda: library.search(next(turns), TOP_K)


def bandwidth() -> float:
    """Bytes a second that one thread reads or copies."""
    import torch

    from benchmarks.machine import measure_peaks

    torch.set_num_threads(1)
    return measure_peaks().bytes_per_s


def _queries(folder: Path, kind: str) -> tuple[Float32, Int64]:
    with np.load(folder / f"{kind}.npz") as arrays:
        return arrays["queries"], arrays["best"]


def _held() -> Held | None:
    own, mapped = _status_bytes("RssAnon"), _status_bytes("RssFile")
    return None if own is None or mapped is None else Held(own, mapped)


def _status_bytes(field: str) -> int | None:
    if not _STATUS.exists():
        return None
    lines = _STATUS.read_text("utf-8").splitlines()
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(found[0]) if found else None

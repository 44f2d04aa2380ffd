"""What dgl-bench search tells: tables, notes, plots and the JSON document."""

import datetime
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import PACKAGES, describe_machine
from benchmarks.plots import line_plot, linked
from benchmarks.report import Report, Table, spread_cells
from benchmarks.search import ENOUGH, LibraryResult, SearchResult, SizeResult
from benchmarks.search_libraries import BREADTH_OF_BUILDING, LIBRARIES, LINKS, OURS_APPROXIMATE
from benchmarks.search_measure import CLIPS, QUERIES, SEARCHES, TEXTS, TOP_K, Held
from benchmarks.timing import WARM_UP

_LIBRARIES = ("usearch", "faiss-cpu", "hnswlib")
_MB = 1e6


def make_report(result: SearchResult, plots: list[str]) -> Report:
    """Tables for people, every raw number for programs; ``plots`` is what :func:`write_plots` said."""
    settings = asdict(result.settings) | {
        "sizes": list(result.settings.sizes),
        "queries": QUERIES,
        "top_k": TOP_K,
        "warm_up": WARM_UP,
        "threads": 1,
    }
    tables = [table for size in result.sizes for table in (_latency(size, result), _files(size))]
    return Report(
        name="search",
        title="Search: latency, recall, memory",
        date=datetime.date.today().isoformat(),
        machine=describe_machine((*PACKAGES, *_LIBRARIES)),
        settings=settings,
        tables=tables,
        notes=[*_notes(result), *plots],
        data={
            "bytes_per_s": result.bytes_per_s,
            "load_before": result.load_before,
            "sizes": [_document(size) for size in result.sizes],
        },
    )


def write_plots(result: SearchResult, folder: Path) -> list[str]:
    """Write the plots and return a markdown link to each, or one line that says why there is none."""
    return linked(_plots(result, folder))


def _plots(result: SearchResult, folder: Path) -> Iterator[tuple[str, Path]]:
    stem = f"{describe_machine(()).slug}-{datetime.date.today().isoformat()}"
    latency = "p50 latency of one query, ms"
    for size in result.sizes:
        title = f"Recall against latency, {size.num_clips:,} clips"
        series = {
            name: [(point.median_ms[TEXTS], point.recall[TEXTS]) for point in one.points]
            for name, one in size.libraries.items()
        }
        path = folder / f"search-recall-{size.num_clips}-{stem}.png"
        yield title, line_plot(title, latency, "recall@10", series, path, log_x=True)
    title = "Latency against clips"
    by_size = {
        name: [
            (size.num_clips, size.libraries[name].paired.spread_ms(name).median)
            for size in result.sizes
        ]
        for name in result.sizes[0].libraries
    }
    path = folder / f"search-latency-{stem}.png"
    yield title, line_plot(title, "clips", latency, by_size, path, log_x=True, log_y=True)


def _notes(result: SearchResult) -> list[str]:
    return [
        "One thread. Times are wall clock of one query through each library's Python interface, page cache "
        f"warm; ours through Gallery.search. Latency is paired: each takes turns with {OURS_APPROXIMATE!r}, "
        "text by text; ours faster: median, p10 and p90 of its time divided by ours.",
        "Clips are made embeddings: clusters of topics and videos in one cone. Texts lie in another cone, at "
        "a cosine of about 0.3 to their clip; the easier clip queries lie at 0.87.",
        f"Graphs: {LINKS} links, breadth {BREADTH_OF_BUILDING} while building. Breadth of a search: ours as "
        f"it ships, of the others the smallest of the sweep with recall@{TOP_K} of texts of "
        f"{ENOUGH} or more, or the largest.",
        "Of bandwidth: bytes of all embeddings at p50, against what one thread reads or copies, "
        f"{result.bytes_per_s / 1e9:.1f} GB/s (arrays larger than the caches; smaller galleries may pass it).",
        f"Memory: resident, above the process with the library imported, after {SEARCHES} searches; own is "
        "the process's own, mapped are pages of files that the system can take back. Built peak: all that is "
        "resident, mapped pages too.",
        f"Load average before the run: {result.load_before}. Publish only what a quiet machine gave.",
    ]


def _latency(size: SizeResult, result: SearchResult) -> Table:
    columns = ["search", "breadth", "recall texts", "recall clips", "p50 ms", "p99 ms"]
    columns += ["ours faster", "p10", "p90", "of bandwidth"]
    rows = []
    for name in LIBRARIES:
        if name in size.missing:
            rows.append([f"{name}: {size.missing[name]}", *[""] * 9])
            continue
        one = size.libraries[name]
        p50, p99 = np.percentile(one.paired.times_ms[name], (50, 99)).tolist()
        of_bandwidth = ""
        if LIBRARIES[name].is_exact:
            moved = 4 * size.num_clips * result.settings.embed_dim / (p50 / 1000)
            of_bandwidth = f"{100 * moved / result.bytes_per_s:.0f}%"
        rows.append(
            [
                name,
                str(one.chosen.breadth or ""),
                f"{one.chosen.recall[TEXTS]:.4f}",
                f"{one.chosen.recall[CLIPS]:.4f}",
                f"{p50:.2f}",
                f"{p99:.2f}",
                *_faster(name, size, one),
                of_bandwidth,
            ]
        )
    return Table(f"One query among {size.num_clips:,} clips", columns, rows)


def _faster(name: str, size: SizeResult, one: LibraryResult) -> list[str]:
    if name == size.base:
        return [""] * 3
    return spread_cells(one.paired.speedup(size.base, over=name), 2)


def _files(size: SizeResult) -> Table:
    columns = ["search", "built on all cores", "peak MB", "file MB", "opened in ms"]
    columns += ["own MB", "mapped MB", "own, searched", "mapped, searched"]
    rows = [[name, *_file_cells(one)] for name, one in size.libraries.items()]
    return Table(f"Building and opening, {size.num_clips:,} clips", columns, rows)


def _file_cells(one: LibraryResult) -> Iterator[str]:
    yield f"{one.built.seconds:.1f} s"
    yield f"{one.built.peak_bytes / _MB:.0f}" if one.built.peak_bytes else ""
    yield f"{one.file_bytes / _MB:.0f}"
    yield f"{1000 * one.opening.seconds:.0f}"
    for held in (one.opening.opened, one.opening.searched):
        yield from _added(held, one.opening.before)


def _added(held: Held | None, before: Held | None) -> tuple[str, str]:
    if held is None or before is None:
        return "", ""
    own, mapped = held.own_bytes - before.own_bytes, held.mapped_bytes - before.mapped_bytes
    return f"{own / _MB:.0f}", f"{mapped / _MB:.0f}"


def _document(size: SizeResult) -> dict[str, Any]:
    rows = []
    for name, one in size.libraries.items():
        rows.append(
            {
                "search": name,
                "built": asdict(one.built),
                "file_bytes": one.file_bytes,
                "opening": asdict(one.opening),
                "sweep": [asdict(point) for point in one.points],
                "breadth": one.chosen.breadth,
                "times_ms": one.paired.times_ms,
            }
        )
    return {"clips": size.num_clips, "base": size.base, "rows": rows, "missing": size.missing}

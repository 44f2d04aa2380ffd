"""What dgl-bench startup tells: the tables, their notes and the JSON document."""

import datetime
from dataclasses import asdict

from benchmarks.installed_size import InstalledSize
from benchmarks.machine import PACKAGES, describe_machine
from benchmarks.report import Report, Table, spread_cells
from benchmarks.startup import STEPS, StartupResult
from benchmarks.startup_probe import QUERY

VERSIONS = ("openvino", "tensorrt", "tensorrt-rtx-cu13")
LARGEST = 3  # distributions named in the table of sizes


def make_report(result: StartupResult) -> Report:
    """Tables for people, every raw number for programs."""
    manifest = result.manifest
    return Report(
        name="startup",
        title="From an empty process to the first answer",
        date=datetime.date.today().isoformat(),
        machine=describe_machine((*PACKAGES, *VERSIONS)),
        settings={
            "method": manifest.source.method,
            "embed_dim": manifest.embed_dim,
            "num_frames": manifest.inputs.frames.num_frames,
            "frame_size": manifest.inputs.frames.size,
            "device": result.device,
            "threads": result.threads or "chosen by the engine",
            "rounds": result.rounds,
            "query": QUERY,
        },
        tables=[_start_table(result), _size_table(result.sizes)],
        notes=_notes(result),
        data={
            "load_before": result.load_before,
            "engines": [_numbers(result, engine) for engine in result.starts],
            "skipped": result.skipped,
            "sizes": [asdict(size) | {"total_bytes": size.total_bytes} for size in result.sizes],
        },
    )


def _start_table(result: StartupResult) -> Table:
    rows = [
        [
            engine,
            result.starts[engine][0].engine,
            *(f"{1000 * result.spread_s(engine, step).median:.0f}" for step in STEPS),
            *spread_cells(result.answer_s(engine), 2),
            f"{result.process_s(engine).median:.2f}",
        ]
        for engine in result.starts
    ]
    rows += [[engine, f"left out: {why}", *[""] * 8] for engine, why in result.skipped.items()]
    columns = ["engine", "is", "import ms", "open ms", "query ms", "clip ms"]
    columns += ["answer s", "p10", "p90", "process s"]
    return Table("First answers", columns, rows, text_columns=2)


def _size_table(sizes: list[InstalledSize]) -> Table:
    rows = []
    for size in sizes:
        total = size.total_bytes
        largest = sorted(size.sizes.items(), key=lambda item: -item[1])[:LARGEST]
        named = ", ".join(f"{name} {count / 1e6:.0f}" for name, count in largest)
        missing = f"not installed: {', '.join(size.missing)}"
        rows.append(
            [
                size.requirement,
                named if total is not None else missing,
                str(len(size.sizes)),
                f"{total / 1e6:.0f}" if total is not None else "",
            ]
        )
    columns = ["pip install", "largest, MB", "distributions", "MB"]
    return Table("Installed size", columns, rows, text_columns=2)


def _notes(result: StartupResult) -> list[str]:
    return [
        "Every measurement has a fresh process; every round starts every engine once, in rotating order. "
        "Medians. A first round is not kept, so files are in the page cache.",
        "import: dgl_runtime and numpy. open: the bundle's manifest. query: tokenizer and caption graph are "
        "checked and loaded, the engine is imported, one query is embedded. clip: the clip graph is checked "
        "and loaded, one clip of black frames is embedded.",
        "Answer: import, open and query together. Process: all of it, with Python's own start and end.",
        "Size: what the RECORD files of a distribution and of all it needs list, with compiled Python "
        "files, 1e6 bytes. The Python interpreter is not counted.",
        f"Load average before the run: {result.load_before}.",
    ]


def _numbers(result: StartupResult, engine: str) -> dict[str, object]:
    """An engine's numbers as JSON types."""
    return {
        "engine": engine,
        "description": result.starts[engine][0].engine,
        "steps_s": {step: asdict(result.spread_s(engine, step)) for step in STEPS},
        "answer_s": asdict(result.answer_s(engine)),
        "process_s": asdict(result.process_s(engine)),
        "starts": [asdict(start) for start in result.starts[engine]],
    }

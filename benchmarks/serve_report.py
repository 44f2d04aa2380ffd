"""What dgl-bench serve and soak tell: the tables, the plots and the JSON documents."""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import PACKAGES, describe_machine
from benchmarks.plots import line_plot, linked
from benchmarks.report import Report, Table
from benchmarks.serve import BATCH, PLACES, REAL_CLIPS, ServeResult, ServeSettings, Soak
from benchmarks.timing import Spread

MODES = ("one by one", "batched")
PARTS = 6  # of the time of mixed load, a row each
_MB = 1e6


def make_report(result: ServeResult, plots: Sequence[str] = ()) -> Report:
    """Tables for people, every raw number for programs; ``plots`` is what :func:`write_plots` said."""
    settings = result.settings
    return Report(
        name="serve",
        title="Serving",
        date=datetime.date.today().isoformat(),
        machine=describe_machine((*PACKAGES, "fastapi", "uvicorn")),
        settings={
            "bundle": settings.bundle.name,
            "engine": result.engine,
            "threads": settings.threads,
            "clips": settings.clips,
            "seconds": settings.seconds,
            "rounds": settings.rounds,
        },
        tables=[_loads(result), _overload(result)],
        notes=[
            "wrk runs on the same cores as the service; each client sends its next search when it has the "
            "answer to the last. Searches are 3 to 9 random words, no two alike, best 24 moments.",
            f"Batched: up to {BATCH} searches answered together, as by default; one by one: --batch 1. Both "
            "services run, and take turns; medians over rounds.",
            f"Overload: the queue has {PLACES} places. Failed: neither an answer nor a 429.",
            f"Load average before the run: {result.load_before}.",
            *plots,
        ],
        data={
            "load_before": result.load_before,
            "loads": [
                {"mode": mode, "clients": clients, "rounds": [asdict(one) for one in rounds]}
                for (mode, clients), rounds in result.loads.items()
            ],
            "overload": asdict(result.overload),
        },
    )


def write_plots(result: ServeResult, folder: Path) -> list[str]:
    """Throughput and p99 against concurrency, as markdown links."""
    return linked(_plots(result, folder))


def _plots(result: ServeResult, folder: Path) -> Iterator[tuple[str, Path]]:
    stem = f"{describe_machine(()).slug}-{datetime.date.today().isoformat()}"
    for kind, unit in (("throughput", "searches a second"), ("p99", "ms")):
        title = f"{kind.capitalize()} against clients"
        series = {
            mode: [
                (float(clients), _median(result, mode, clients, kind))
                for clients in result.settings.concurrency
            ]
            for mode in MODES
        }
        path = folder / f"serve-{kind}-{stem}.png"
        yield title, line_plot(title, "clients", unit, series, path, log_x=True, log_y=True)


def _median(result: ServeResult, mode: str, clients: int, kind: str) -> float:
    rounds = result.loads[mode, clients]
    return Spread.of([one.per_s if kind == "throughput" else one.p99_ms for one in rounds]).median


def _loads(result: ServeResult) -> Table:
    columns = ["clients"]
    columns += [f"{what}, {mode}" for mode in MODES for what in ("searches/s", "p50 ms", "p99 ms")]
    columns += ["more", "p10", "p90", "errors"]
    rows = []
    for clients in result.settings.concurrency:
        cells = [str(clients)]
        for mode in MODES:
            rounds = result.loads[mode, clients]
            for values in (
                [one.per_s for one in rounds],
                [one.p50_ms for one in rounds],
                [one.p99_ms for one in rounds],
            ):
                cells.append(f"{Spread.of(values).median:.1f}")
        gain = result.gain(clients)
        cells += [f"{value:.2f}" for value in (gain.median, gain.p10, gain.p90)]
        cells.append(str(sum(one.errors for mode in MODES for one in result.loads[mode, clients])))
        rows.append(cells)
    return Table("Searches a second", columns, rows, text_columns=0)


def _overload(result: ServeResult) -> Table:
    one = result.overload
    columns = ["clients", "answered/s", "refused/s", "failed", "p50 ms alone before", "after"]
    row = [
        str(one.clients),
        f"{one.answered_per_s:.1f}",
        f"{one.refused_per_s:.1f}",
        str(one.failed),
        f"{one.before_ms:.1f}",
        f"{one.after_ms:.1f}",
    ]
    return Table("Overload", columns, [row], text_columns=0)


def make_soak_report(settings: ServeSettings, soak: Soak) -> Report:
    """Memory over time, and what was answered meanwhile."""
    return Report(
        name="soak",
        title="A service under mixed load",
        date=datetime.date.today().isoformat(),
        machine=describe_machine((*PACKAGES, "fastapi", "uvicorn")),
        settings={
            "bundle": settings.bundle.name,
            "minutes": settings.seconds / 60,
            "clients": settings.concurrency[0],
            "threads": settings.threads,
            "clips": settings.clips,
        },
        tables=[_memory(soak)],
        notes=[
            "60% searches, 10% filtered and merged, 15% thumbnails, 10% ranges of a video, the page, metrics; "
            f"the videos of {REAL_CLIPS} clips are there. wrk runs on the same cores.",
            "Memory: of the service and its decoders, resident; shared libraries are counted in each.",
            f"Load average before the run: {soak.load_before}.",
        ],
        data=asdict(soak),
    )


def _memory(soak: Soak) -> Table:
    size = max(1, len(soak.resident) // PARTS)
    parts = [soak.resident[first : first + size] for first in range(0, len(soak.resident), size)]
    rows = []
    for part in parts:
        times, taken = zip(*part, strict=True)
        middle, most = Spread.of(taken).median, max(taken)
        minutes = f"{times[0] / 60:.0f} to {times[-1] / 60:.0f}"
        rows.append([minutes, f"{middle / _MB:.0f}", f"{most / _MB:.0f}"])
    title = (
        f"{soak.load.per_s:.0f} requests/s, p50 {soak.load.p50_ms:.0f} ms, "
        f"p99 {soak.load.p99_ms:.0f} ms, {soak.load.errors} errors"
    )
    return Table(title, ["minutes", "MB, median", "MB, most"], rows)

"""dgl-bench startup: from an empty process to the first answer, with each engine, and what is installed.

Every measurement has a fresh process. Engines take turns over the rounds; a first round, which brings
the files into memory, is not kept.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.installed_size import InstalledSize, measure_size
from benchmarks.machine import load_average
from benchmarks.timing import Spread, rotating_orders
from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.manifest import Manifest
from dgl_runtime.errors import EngineError

STEPS = ("import_s", "open_s", "query_s", "clip_s")
INSTALLATIONS = (
    "dgl-retrieval[cpu]",
    "dgl-retrieval[openvino]",
    "dgl-retrieval[trt-rtx]",
    "dgl-retrieval[train]",
    "torch",
)


@dataclass(frozen=True)
class ColdStart:
    """One process: seconds of each step, and of the whole process by its parent's clock."""

    engine: str  # as it describes itself
    steps: dict[str, float]
    process_s: float


@dataclass(frozen=True)
class StartupResult:
    """Everything that was measured; entry i of each list belongs to round i."""

    manifest: Manifest
    device: str
    threads: int
    rounds: int
    starts: dict[str, list[ColdStart]]
    skipped: dict[str, str]  # engine -> why
    sizes: list[InstalledSize]
    load_before: float | None

    def spread_s(self, engine: str, step: str) -> Spread:
        """One step's seconds."""
        return Spread.of([start.steps[step] for start in self.starts[engine]])

    def answer_s(self, engine: str) -> Spread:
        """Seconds from the first import to the first query's answer."""
        before = STEPS[: STEPS.index("query_s") + 1]
        return Spread.of([sum(start.steps[s] for s in before) for start in self.starts[engine]])

    def process_s(self, engine: str) -> Spread:
        """Seconds of the whole process."""
        return Spread.of([start.process_s for start in self.starts[engine]])


def bench_startup(
    bundle: Path, engines: Sequence[str], *, device: str, threads: int, rounds: int
) -> StartupResult:
    """Measure every engine that runs here.

    Args:
        bundle: A bundle's folder.
        engines: Names out of ``dgl_runtime.engines.ENGINES``.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; 0 lets the engine choose.
        rounds: At least 1.

    Raises:
        BundleError: No bundle there, or it does not fit this version.
        EngineError: None of the engines runs here, or a process failed.
    """
    load_before = load_average()
    manifest = Bundle(bundle).manifest
    skipped: dict[str, str] = {}
    for engine in engines:
        click.echo(f"first start: {engine}", err=True)
        first = start_apart(bundle, engine, device, threads)
        if isinstance(first, str):
            skipped[engine] = first
            click.echo(f"{engine} is left out: {first}", err=True)
    running = [engine for engine in engines if engine not in skipped]
    if not running:
        reasons = "; ".join(f"{engine}: {why}" for engine, why in skipped.items())
        raise EngineError(f"no engine runs here: {reasons}")
    starts: dict[str, list[ColdStart]] = {engine: [] for engine in running}
    orders = rotating_orders(len(running))
    for number in range(rounds):
        click.echo(f"round {number + 1} of {rounds}", err=True)
        for place in orders[number % len(orders)]:
            start = start_apart(bundle, running[place], device, threads)
            if isinstance(start, str):
                raise EngineError(f"{running[place]} ran once and then failed: {start}")
            starts[running[place]].append(start)
    sizes = [measure_size(requirement) for requirement in INSTALLATIONS]
    return StartupResult(manifest, device, threads, rounds, starts, skipped, sizes, load_before)


def start_apart(bundle: Path, engine: str, device: str, threads: int) -> ColdStart | str:
    """Measure in a fresh process; why not, if the engine does not run here.

    Raises:
        EngineError: The process failed.
    """
    command = [sys.executable, "-m", "benchmarks.startup_probe"]
    command += [str(bundle), engine, device, str(threads)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    process_s = time.perf_counter() - began
    if done.returncode:
        last = (done.stderr.strip() or "it was killed").splitlines()[-1]
        raise EngineError(f"the process that started {engine} failed: {last}")
    said = json.loads(done.stdout.splitlines()[-1])
    if "fault" in said:
        return str(said["fault"])
    return ColdStart(said["engine"], {step: said[step] for step in STEPS}, process_s)

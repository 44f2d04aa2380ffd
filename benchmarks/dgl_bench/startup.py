"""dgl-bench startup: from an empty process to the first answer, with each engine, and what is installed.

Every measurement has a fresh process. Engines take turns over the rounds; a first round, which brings
the files into memory, is not kept.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import click
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dgl_bench.command import Threads, benchmark, say
from dgl_bench.report import Report, Row, Table
from dgl_bench.timing import Spread, in_turn
from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.engines.opening import ENGINES
from dgl_runtime.errors import EngineError

STEPS = ("import", "open", "query", "clip")
EXTRAS = ("cpu", "openvino", "trt-rtx", "train")
INSTALLATIONS = (*(f"dgl-retrieval[{extra}]" for extra in EXTRAS), "torch")
_WHICH = "May be repeated; default: every one that is installed."
LARGEST = 3  # distributions named in the table of sizes
QUERY = "a man is playing the guitar on a stage"
Start = dict[str, Any]
"""One process: "engine", as it describes itself, and seconds of each step and of the whole process."""
# One cold start, in a process that has done nothing else. A fault of ours (an engine that is not installed,
# a bundle that does not fit) is told; later steps find the modules of earlier ones loaded.
PROBE = f"""
import json, sys, time

def cold_start(bundle, name, device, threads):
    began = time.perf_counter()
    import numpy as np
    from dgl_runtime import Retriever
    from dgl_runtime.engines.opening import open_engine
    imported = time.perf_counter()
    retriever = Retriever(bundle)
    opened = time.perf_counter()
    manifest = retriever.bundle.manifest

    def load(graph):
        path, threads_ = retriever.bundle.graph_path(graph), int(threads)
        return open_engine(path, device=device, threads=threads_, engine=name, precision=graph.precision)

    tokens = retriever.tokenizer([{QUERY!r}]).ids
    engine = load(manifest.text_encoder)
    engine.run({{"tokens": tokens}})
    answered = time.perf_counter()
    frames = manifest.inputs.frames
    size = (1, frames.num_frames, 3, frames.size, frames.size)
    load(manifest.clip_encoder).run({{"frames": np.zeros(size, np.uint8)}})
    ends = (imported, opened, answered, time.perf_counter())
    steps = [end - start for end, start in zip(ends, (began, *ends))]
    return {{"engine": engine.description, **dict(zip({STEPS!r}, steps))}}

try:
    said = cold_start(*sys.argv[1:])
except ModuleNotFoundError as error:
    said = {{"fault": f"the package {{error.name!r}} is not installed"}}
except Exception as error:
    from dgl_runtime.errors import DglError
    if not isinstance(error, DglError):
        raise
    said = {{"fault": " ".join(str(error).split())}}
print(json.dumps(said))
"""


@benchmark
@click.option("--engine", "engines", multiple=True, type=click.Choice(ENGINES), help=_WHICH)
def startup(
    bundle: Path,
    engines: tuple[str, ...],
    device: Literal["cpu", "cuda"] = "cpu",
    rounds: int = 7,
    threads: Threads = 2,
) -> Report:
    """Time from an empty process to the first query and clip, and the size of installations.

    A bundle with random weights will do: dgl-export --zero-shot --backbone ViT-B-32-quickgelu.

    Example: dgl-bench startup bundle --rounds 7
    """
    manifest = Bundle(bundle).manifest
    starts, skipped = measure(bundle, engines or ENGINES, device, threads, rounds)
    rows = [_row(engine, found) for engine, found in starts.items()]
    rows += [{"engine": engine, "is": f"left out: {why}"} for engine, why in skipped.items()]
    return Report(
        name="startup",
        title="From an empty process to the first answer",
        tables=[
            Table("First answers", rows),
            Table("Installed size", list(map(installed_size, INSTALLATIONS))),
        ],
        settings={"method": manifest.source.method, "query": QUERY},
        packages=("openvino", "tensorrt", "tensorrt-rtx-cu13"),
        notes=[
            "Every measurement has a fresh process; every round starts every engine once, in turn. Median "
            "(p10 to p90). A first round is not kept, so files are in the page cache.",
            "import: dgl_runtime and numpy. open: the bundle's manifest. query: tokenizer and text encoder "
            "are checked and loaded, the engine is imported, one query is embedded. clip: the same of the "
            "clip encoder and a clip of black frames. Answer: the first three. Process: all of it.",
            "Size: what the RECORD files of a distribution and of all it needs list, without Python itself.",
        ],
    )


def measure(
    bundle: Path, engines: tuple[str, ...], device: str, threads: int, rounds: int
) -> tuple[dict[str, list[Start]], dict[str, str]]:
    """Starts of every engine that runs here, entry i of each belongs to round i; and why others do not."""
    calls = {one: partial(start_apart, bundle, one, device, threads) for one in engines}
    skipped: dict[str, str] = {}
    for engine, start in calls.items():
        say(f"first start: {engine}")
        if fault := start().get("fault"):
            skipped[engine] = fault
            say(f"{engine} is left out: {fault}")
    running = {engine: call for engine, call in calls.items() if engine not in skipped}
    if not running:
        reasons = "; ".join(f"{engine}: {why}" for engine, why in skipped.items())
        raise EngineError(f"no engine runs here: {reasons}")
    return in_turn(running, rounds, "starts"), skipped


def start_apart(bundle: Path, engine: str, device: str, threads: int) -> Start:
    """Measure in a fresh process; a "fault" says why the engine does not run here."""
    command = [sys.executable, "-c", PROBE, str(bundle), engine, device, str(threads)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    process_s = time.perf_counter() - began
    if done.returncode:
        last = (done.stderr.strip() or "it was killed").splitlines()[-1]
        raise EngineError(f"the process that started {engine} failed: {last}")
    return {**json.loads(done.stdout.splitlines()[-1]), "process": process_s}


def _row(engine: str, starts: list[Start]) -> Row:
    row: Row = {"engine": engine, "is": starts[0]["engine"]}
    row |= {f"{step} ms": Spread.of([1000 * one[step] for one in starts]) for step in STEPS}
    row["answer s"] = Spread.of([sum(one[step] for step in STEPS[:3]) for one in starts])
    row["process s"] = Spread.of([one["process"] for one in starts])
    return {**row, "starts": starts}


def installed_size(requirement: str) -> Row:
    """Follow a requirement, such as ``dgl-retrieval[cpu]``, through what is installed here: its bytes."""
    sizes: dict[str, int] = {}
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [requirement]
    while waiting:
        asked = Requirement(waiting.pop())
        name = canonicalize_name(asked.name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        sizes.setdefault(name, _bytes_of(found))
        known = {canonicalize_name(one) for one in found.metadata.get_all("Provides-Extra") or []}
        extras = set(map(canonicalize_name, asked.extras))
        missing |= {f"{name}[{extra}]" for extra in extras - known}
        for extra in {"", *extras & known}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += _needed(found, extra)
    largest = sorted(sizes, key=lambda one: -sizes[one])[:LARGEST]
    told = ", ".join(f"{one} {sizes[one] / 1e6:.0f}" for one in largest)
    if missing:
        told = f"not installed: {', '.join(sorted(missing))}"
    total = None if missing else sum(sizes.values()) / 1e6
    return {"pip install": requirement, "largest, MB": told, "MB": total, "bytes": sizes}


def _needed(found: Distribution, extra: str) -> Iterator[str]:
    """What a distribution needs on this machine for one of its extras; "" is none."""
    for line in found.requires or []:
        marker = Requirement(line).marker
        if (not extra) if marker is None else marker.evaluate({"extra": extra}):
            yield line


def _bytes_of(found: Distribution) -> int:
    """The files of a distribution; those without a size in RECORD (compiled code) by looking."""
    total = 0
    for file in found.files or []:
        if file.size is not None:
            total += file.size
        elif (path := Path(str(file.locate()))).exists():
            total += path.stat().st_size
    return total

"""dgl-bench serve and soak: searches a second against concurrency, batched and not; overload; memory over time.

The service runs as users run it, in a process of its own, and wrk asks it on the same machine.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np

from dgl_bench.command import Threads, benchmark, say
from dgl_bench.made_clips import MadeClip, write_clip
from dgl_bench.processes import resident_bytes
from dgl_bench.report import Plot, Report, Row, Table
from dgl_bench.timing import Spread, ratios
from dgl_runtime import Retriever
from dgl_runtime.commands.options import engine_option
from dgl_runtime.errors import ConfigError, EngineError
from dgl_runtime.gallery.gallery import Clip, Gallery

BATCH = 32  # as dgl-serve has it by default
PLACES = 256
OVERLOAD = 4  # clients for each place in the queue
REAL_CLIPS = 12  # the others are random rows
MODES = {"one by one": 1, "batched": BATCH}
PARTS = 6  # of the time of mixed load, a row each
_LUA = Path(__file__).with_name("serve_load.lua")
_SERVE = "from dgl_runtime.commands.serve import serve; serve(prog_name='dgl-serve')"
_VIDEO = MadeClip("360p", "short", 60)
_LOOK_EVERY_S = 5.0
_START_WITHIN_S = 120
_PACKAGES = ("fastapi", "uvicorn")

CONCURRENCY = (1, 2, 4, 8, 16, 32, 64)
Clips = Annotated[int, "In the gallery."]
Load = dict[str, float]  # what wrk saw


@benchmark
@engine_option
def serve(
    bundle: Path,
    engine: str,
    clips: Clips = 10_000,
    concurrency: Annotated[tuple[int, ...], "Clients at once, with commas."] = CONCURRENCY,
    seconds: Annotated[int, "A measurement."] = 10,
    rounds: int = 3,
    threads: Threads = 2,
) -> Report:
    """Searches a second of dgl-serve against clients, batched and one by one; overload.

    Needs wrk (Debian: apt-get install wrk).

    Example: dgl-bench serve bundle --concurrency 1,8,32
    """
    ports: dict[str, int] = {}
    loads: dict[tuple[str, int], list[Load]] = {}
    with TemporaryDirectory() as folder, ExitStack() as running:
        gallery, said = make_gallery(Path(folder), bundle, clips, threads, engine)
        for mode, batch in MODES.items():
            ports[mode], _ = running.enter_context(_serving(gallery, batch, threads, engine))
        for number in range(rounds):
            for clients in concurrency:
                say(f"round {number + 1}, {clients} clients")
                for mode in list(MODES)[:: 1 if number % 2 == 0 else -1]:
                    found = _wrk(ports[mode], clients, seconds)
                    loads.setdefault((mode, clients), []).append(found)
        say("overload")
        overload = _overload(ports["batched"], seconds)
    rows = [_row(mode, clients, loads) for clients in concurrency for mode in MODES]
    plots = []
    for name, y in (("throughput", "requests/s"), ("p99", "p99 ms")):
        title = f"{name.capitalize()} against clients"
        plots.append(Plot(name, title, "clients", y, "mode", rows, "xy"))
    return Report(
        name="serve",
        title="Serving",
        tables=[Table("Searches a second", rows), Table("Overload", [overload])],
        plots=plots,
        settings={"engine": said},
        packages=_PACKAGES,
        notes=[
            "wrk runs on the same cores as the service; each client sends its next search when it has the "
            "answer to the last. Searches are 3 to 9 random words, no two alike, best 24 moments.",
            f"Batched: up to {BATCH} searches answered together, as by default; one by one: --batch 1. Both "
            "services run, and take turns. Median (p10 to p90) over rounds; more: of the ratio in each.",
            f"Overload: the queue has {PLACES} places. Failed: neither an answer nor a 429.",
        ],
    )


@benchmark
@engine_option
def soak(
    bundle: Path,
    engine: str,
    clips: Clips = 10_000,
    clients: Annotated[int, "At once."] = 8,
    minutes: float = 30,
    threads: Threads = 2,
) -> Report:
    """Memory of dgl-serve under mixed load: searches, pictures, videos, the page.

    Needs wrk (Debian: apt-get install wrk).

    Example: dgl-bench soak bundle --minutes 30
    """
    resident: list[tuple[float, int]] = []
    with TemporaryDirectory() as folder:
        gallery, _ = make_gallery(Path(folder), bundle, clips, threads, engine)
        with _serving(gallery, BATCH, threads, engine) as (port, pid):
            started = time.monotonic()

            def look() -> None:
                resident.append((time.monotonic() - started, sum(resident_bytes(pid))))

            mix = {"MIX": "1", "CLIPS": str(REAL_CLIPS)}
            load = _wrk(port, clients, round(60 * minutes), look, **mix)
    return Report(
        name="soak",
        title="A service under mixed load",
        tables=[Table("Requests", [_told(load)]), Table("Memory", list(_memory(resident)))],
        packages=_PACKAGES,
        notes=[
            "60% searches, 10% filtered and merged, 15% thumbnails, 10% ranges of a video, the page, "
            f"metrics; the videos of {REAL_CLIPS} clips are there. wrk runs on the same cores.",
            "Memory: of the service and its decoders, resident; shared libraries are counted in each.",
        ],
    )


def _row(mode: str, clients: int, loads: dict[tuple[str, int], list[Load]]) -> Row:
    mine = [_told(one) for one in loads[mode, clients]]
    rates = [[_told(one)["requests/s"] for one in loads[some, clients]] for some in MODES]
    return {
        "clients": clients,
        "mode": mode,
        **{
            name: Spread.of([one[name] for one in mine])
            for name in ("requests/s", "p50 ms", "p99 ms")
        },
        "more": ratios(rates[1], rates[0]) if mode == "batched" else None,
        "errors": sum(one["errors"] for one in mine),
        "rounds": loads[mode, clients],
    }


def _told(load: Load) -> Row:
    """Errors are statuses from 400 on, broken connections and timeouts."""
    errors = load["status_errors"] + load["socket_errors"] + load["timeouts"]
    rate = load["requests"] / load["seconds"]
    return {
        "requests/s": rate,
        "p50 ms": load["p50_ms"],
        "p99 ms": load["p99_ms"],
        "errors": int(errors),
    }


def _memory(resident: Sequence[tuple[float, int]]) -> Iterator[Row]:
    size = max(1, len(resident) // PARTS)
    for first in range(0, len(resident), size):
        part = resident[first : first + size]
        times, taken = zip(*part, strict=True)
        yield {
            "minutes": f"{times[0] / 60:.0f} to {times[-1] / 60:.0f}",
            "MB, median": Spread.of(taken).median / 1e6,
            "MB, most": max(taken) / 1e6,
            "resident": [list(one) for one in part],
        }


def _overload(port: int, seconds: int) -> Row:
    """Several times as many clients as there are places, and how one client fared before and after."""
    clients = OVERLOAD * PLACES
    before = _wrk(port, 1, seconds)
    found = _wrk(port, clients, seconds, COUNT="1")
    after = _wrk(port, 1, seconds)
    rates = {f"{name}/s": found[name] / found["seconds"] for name in ("answered", "refused")}
    failed = int(found["failed"] + found["socket_errors"] + found["timeouts"])
    alone = {"p50 ms alone before": before["p50_ms"], "after": after["p50_ms"]}
    return {"clients": clients, **rates, "failed": failed, **alone}


def make_gallery(
    folder: Path, bundle: Path, clips: int, threads: int, engine: str
) -> tuple[Path, str]:
    """A gallery with a minute of real clips first and random rows behind them; and the engine.

    Raises:
        ConfigError: wrk is not installed.
    """
    if shutil.which("wrk") is None:
        raise ConfigError("this benchmark needs wrk. Install it, on Debian: apt-get install wrk.")
    write_clip(folder / "video.mp4", _VIDEO)
    gallery = folder / "gallery"
    with Retriever(bundle, gallery, threads=threads, engine=engine) as retriever:
        retriever.add_videos([folder / "video.mp4"], window_s=_VIDEO.duration_s / REAL_CLIPS)
        retriever.embed_texts(["warm up"])
        said = retriever.text_engine.description
    with Gallery.open(gallery, writable=True) as opened:
        rows = max(clips - len(opened), 0)
        rng = np.random.default_rng(0)
        embeddings = rng.standard_normal((rows, opened.facts.embed_dim), np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        num_frames = opened.facts.num_frames
        weights = np.full((rows, num_frames), 1 / num_frames, np.float32)
        places = [divmod(row, 100) for row in range(rows)]  # a hundred seconds a video
        made = [Clip(f"/made/{n}.mp4", f"made {n}", at_s, at_s + 1, 100) for n, at_s in places]
        opened.ingest(made, embeddings, weights)
    return gallery, said


@contextmanager
def _serving(gallery: Path, batch: int, threads: int, engine: str) -> Iterator[tuple[int, int]]:
    """The port and the process of a service."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", port, "--batch", batch, "--queue", PLACES]
    options += ["--threads", threads, "--engine", engine]
    command = [sys.executable, "-c", _SERVE, str(gallery), *map(str, options)]
    process = subprocess.Popen(command)
    try:
        _await_ready(process, port)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def _await_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + _START_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise EngineError(f"dgl-serve was not ready in time (exit code {process.poll()}).")


def _wrk(
    port: int, clients: int, seconds: int, look: Callable[[], None] | None = None, **more: str
) -> Load:
    """Load a service, and look at it meanwhile; ``more`` goes into the environment of the requests."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(_LUA)]
    command.append(f"http://127.0.0.1:{port}")
    environment = {**os.environ, **more}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as wrk:
        while look is not None and wrk.poll() is None:
            look()
            time.sleep(_LOOK_EVERY_S)
        out, _ = wrk.communicate()
    if wrk.returncode:
        raise EngineError(f"wrk failed with exit code {wrk.returncode}.")
    found: Load = json.loads(out.splitlines()[-1])
    return found

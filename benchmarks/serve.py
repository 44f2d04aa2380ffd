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
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError

import click
import numpy as np

from benchmarks.decode_clips import MadeClip, write_clip
from benchmarks.machine import load_average
from benchmarks.processes import children, resident_bytes
from benchmarks.timing import Spread
from dgl_runtime import Retriever
from dgl_runtime.errors import ConfigError, EngineError
from dgl_runtime.gallery.gallery import Clip, Gallery

BATCH = 32  # as dgl-serve has it by default
PLACES = 256
OVERLOAD = 4  # clients for each place in the queue
REAL_CLIPS = 12  # the others are random rows
_LUA = Path(__file__).with_name("serve_load.lua")
_SERVE = "from dgl_runtime.commands.serve import serve; serve(prog_name='dgl-serve')"
_VIDEO = MadeClip("360p", "short", 60)
_LOOK_EVERY_S = 5.0
_START_WITHIN_S = 120


@dataclass(frozen=True)
class ServeSettings:
    """What to measure."""

    bundle: Path
    clips: int
    concurrency: tuple[int, ...]
    seconds: int  # of each measurement
    rounds: int
    threads: int
    engine: str


@dataclass(frozen=True)
class Load:
    """What wrk saw."""

    per_s: float
    p50_ms: float
    p99_ms: float
    errors: int  # statuses from 400 on, broken connections and timeouts


@dataclass(frozen=True)
class Overload:
    """Several times as many clients as there are places, and how it was before and after.

    Attributes:
        clients: Connections at once.
        answered_per_s: Searches that were answered.
        refused_per_s: Those that got a 429.
        failed: Other statuses, broken connections, timeouts.
        before_ms: p50 of one client alone.
        after_ms: The same, right afterwards.
    """

    clients: int
    answered_per_s: float
    refused_per_s: float
    failed: int
    before_ms: float
    after_ms: float


@dataclass(frozen=True)
class Soak:
    """Searches, pictures, ranges of videos and the page, for a while."""

    load: Load
    resident: tuple[tuple[float, int], ...]  # seconds, bytes of the service and its decoders
    load_before: float | None


@dataclass(frozen=True)
class ServeResult:
    """Everything that was measured; loads by (mode, concurrency), one for each round."""

    settings: ServeSettings
    engine: str
    load_before: float | None
    loads: dict[tuple[str, int], list[Load]]
    overload: Overload

    def per_s(self, mode: str, clients: int) -> Spread:
        """Searches a second."""
        return Spread.of([one.per_s for one in self.loads[mode, clients]])

    def gain(self, clients: int) -> Spread:
        """How many times more searches a second with batches, from the ratio in each round."""
        pairs = zip(self.loads["batched", clients], self.loads["one by one", clients], strict=True)
        return Spread.of([one.per_s / other.per_s for one, other in pairs])


def bench_serve(settings: ServeSettings) -> ServeResult:
    """Measure searches and the overload.

    Raises:
        ConfigError: wrk is not installed.
        EngineError: The service did not start.
    """
    _require_wrk()
    load_before = load_average()
    with TemporaryDirectory() as folder, ExitStack() as running:
        gallery, engine = make_gallery(Path(folder), settings)
        modes = {"batched": BATCH, "one by one": 1}
        services = {
            mode: running.enter_context(_serving(gallery, settings, batch))
            for mode, batch in modes.items()
        }
        loads: dict[tuple[str, int], list[Load]] = {}
        for number in range(settings.rounds):
            for clients in settings.concurrency:
                click.echo(f"round {number + 1}, {clients} clients", err=True)
                for mode in list(services)[:: 1 if number % 2 == 0 else -1]:
                    found = _load(services[mode].port, clients, settings.seconds)
                    loads.setdefault((mode, clients), []).append(found)
        click.echo("overload", err=True)
        overload = _overload(services["batched"].port, settings.seconds)
        return ServeResult(settings, engine, load_before, loads, overload)


def bench_soak(settings: ServeSettings) -> Soak:
    """Watch the memory of a service under mixed load, for ``settings.seconds``.

    Raises:
        ConfigError: wrk is not installed.
        EngineError: The service did not start.
    """
    _require_wrk()
    load_before = load_average()
    resident = []
    with TemporaryDirectory() as folder:
        gallery, _ = make_gallery(Path(folder), settings)
        with _serving(gallery, settings, BATCH) as service:
            started = time.monotonic()
            clients = settings.concurrency[0]
            mix = {"MIX": "1", "CLIPS": str(REAL_CLIPS)}
            with _started_wrk(service.port, clients, settings.seconds, **mix) as wrk:
                while wrk.poll() is None:
                    resident.append((time.monotonic() - started, service.resident_bytes()))
                    time.sleep(_LOOK_EVERY_S)
                load = _as_load(_said(wrk))
    return Soak(load, tuple(resident), load_before)


def _require_wrk() -> None:
    if shutil.which("wrk") is None:
        raise ConfigError("this benchmark needs wrk. Install it, on Debian: apt-get install wrk.")


def make_gallery(folder: Path, settings: ServeSettings) -> tuple[Path, str]:
    """A gallery with a minute of real clips first and random rows behind them; and the engine."""
    write_clip(folder / "video.mp4", _VIDEO)
    gallery = folder / "gallery"
    threads, engine = settings.threads, settings.engine
    with Retriever(settings.bundle, gallery, threads=threads, engine=engine) as retriever:
        retriever.add_videos([folder / "video.mp4"], window_s=_VIDEO.duration_s / REAL_CLIPS)
        retriever.embed_texts(["warm up"])
        said = retriever.chosen("captions").engine.description
    with Gallery.open(gallery, writable=True) as opened:
        rows = max(settings.clips - len(opened), 0)
        rng = np.random.default_rng(0)
        embeddings = rng.standard_normal((rows, opened.facts.embed_dim), np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        weights = np.full((rows, opened.facts.num_frames), 1 / opened.facts.num_frames, np.float32)
        clips = [
            Clip(f"/made/{row // 100}.mp4", f"made {row // 100}", row % 100, row % 100 + 1, 100)
            for row in range(rows)
        ]
        opened.ingest(clips, embeddings, weights)
    return gallery, said


@dataclass(frozen=True)
class _Service:
    port: int
    pid: int

    def resident_bytes(self) -> int:
        return sum(map(resident_bytes, (self.pid, *children(self.pid))))


@contextmanager
def _serving(gallery: Path, settings: ServeSettings, batch: int) -> Iterator[_Service]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {
        "--port": port,
        "--batch": batch,
        "--queue": PLACES,
        "--threads": settings.threads,
        "--engine": settings.engine,
    }
    arguments = [str(part) for pair in options.items() for part in pair]
    process = subprocess.Popen([sys.executable, "-c", _SERVE, str(gallery), *arguments])
    try:
        _await_ready(process, port)
        yield _Service(port, process.pid)
    finally:
        process.terminate()
        process.wait()


def _await_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + _START_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise EngineError(
        f"dgl-serve was not ready within {_START_WITHIN_S} s (exit code {process.poll()})."
    )


def _load(port: int, clients: int, seconds: int) -> Load:
    return _as_load(_wrk(port, clients, seconds))


def _as_load(found: Mapping[str, float]) -> Load:
    errors = int(found["status_errors"] + found["socket_errors"] + found["timeouts"])
    per_s = found["requests"] / found["seconds"]
    return Load(per_s, found["p50_ms"], found["p99_ms"], errors)


def _overload(port: int, seconds: int) -> Overload:
    before = _load(port, 1, seconds)
    clients = OVERLOAD * PLACES
    found = _wrk(port, clients, seconds, COUNT="1")
    after = _load(port, 1, seconds)
    return Overload(
        clients=clients,
        answered_per_s=found["answered"] / found["seconds"],
        refused_per_s=found["refused"] / found["seconds"],
        failed=int(found["failed"] + found["socket_errors"] + found["timeouts"]),
        before_ms=before.p50_ms,
        after_ms=after.p50_ms,
    )


def _wrk(port: int, clients: int, seconds: int, **environment: str) -> dict[str, float]:
    with _started_wrk(port, clients, seconds, **environment) as wrk:
        return _said(wrk)


def _started_wrk(
    port: int, clients: int, seconds: int, **environment: str
) -> "subprocess.Popen[str]":
    address = f"http://127.0.0.1:{port}"
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(_LUA)]
    return subprocess.Popen(
        [*command, address], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def _said(wrk: "subprocess.Popen[str]") -> dict[str, float]:
    out, _ = wrk.communicate()
    if wrk.returncode:
        raise EngineError(f"wrk failed with exit code {wrk.returncode}.")
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found

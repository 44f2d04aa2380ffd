"""Choice of an engine: the fastest on this machine that gives the bundle's golden results.

The choice is made once and kept in the user's cache folder; a second start only opens what was chosen. An
engine that is asked for by name is not measured.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

from numpy.typing import NDArray

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.manifest import CLIP_ENCODER, TEXT_ENCODER
from dgl_runtime.encoder.choice_cache import CachedChoice, ChoiceCache
from dgl_runtime.encoder.self_check import check_graph, graph_of
from dgl_runtime.encoder.served import open_served
from dgl_runtime.engines import engine_file
from dgl_runtime.engines.candidates import AUTO, SERVER, Candidate, candidates
from dgl_runtime.engines.engine import Engine
from dgl_runtime.engines.hardware import nvidia_gpus
from dgl_runtime.engines.opening import open_engine
from dgl_runtime.engines.triton_address import TritonAddress
from dgl_runtime.errors import BundleError, DglError, EngineError

_ROUNDS, _LEAST_ROUNDS, _BUDGET_S = 10, 3, 3.0
_PAUSE_S = 0.02  # thread pools spin on for some milliseconds; the next engine needs the cores
_LOG = logging.getLogger(__name__)
_UNITS = {TEXT_ENCODER: "a query", CLIP_ENCODER: "a clip"}


@dataclass(frozen=True)
class Chosen:
    """A loaded graph, and why it is in this engine."""

    engine: Engine
    candidate: Candidate
    why: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.engine.description}, {self.why}"


def choose(bundle: Bundle, name: str, *, device: str, engine: str, threads: int) -> Chosen:
    """Load a graph of a bundle in the fastest engine that is here and passes the self-check.

    Args:
        bundle: An opened bundle.
        name: ``text_encoder`` or ``clip_encoder``.
        device: ``cpu``, ``cuda``, or ``auto``: cuda if an engine really works there, else cpu.
        engine: One of ``ENGINES``, ``auto``, or a server: ``triton:HOST:PORT``, which is always checked.
        threads: CPU threads; 0 lets the engine choose.

    Raises:
        EngineError: No engine is here, or none runs the graph; says why, and what to install.
        BundleError: The bundle is damaged, or no engine gives its golden results.
    """
    if (address := TritonAddress.of(engine)) is not None:
        served = open_served(bundle, name, address)
        chosen = Chosen(served, Candidate(engine, SERVER), "asked for by name")
        _LOG.info("%s: %s", name, chosen)
        return chosen
    contenders = candidates(bundle.manifest.format, device, engine)
    bundle.graph_path(graph_of(bundle, name))  # damage is no engine's fault
    if engine != AUTO and len(contenders) == 1:
        (only,) = contenders
        chosen = Chosen(open_graph(bundle, name, only, threads), only, "asked for by name")
    else:
        engines = bundle.folder / engine_file.FOLDER
        cache = ChoiceCache(f"{bundle.id}-{name}", engines, contenders, threads)
        if reopened := _reopened(cache, bundle, name, threads):
            chosen = reopened
        else:
            chosen, settled = _measured(contenders, bundle, name, threads)
            if settled:
                cache.write(CachedChoice(chosen.candidate, chosen.why))
    _LOG.info("%s: %s", name, chosen)
    return chosen


def open_graph(bundle: Bundle, name: str, candidate: Candidate, threads: int) -> Engine:
    """Load one of the graphs ``text_encoder`` and ``clip_encoder`` in exactly this engine on this device."""
    graph = graph_of(bundle, name)
    return open_engine(
        bundle.graph_path(graph),
        device=candidate.device,
        threads=threads,
        engine=candidate.engine,
        precision=graph.precision,
    )


def one_input(bundle: Bundle, name: str) -> dict[str, NDArray[Any]]:
    """One golden query without its padding, or one golden clip."""
    golden = bundle.golden
    if name == TEXT_ENCODER:
        return {"tokens": golden.tokens[:1, : golden.lengths[0]]}
    return {"frames": golden.frames[:1]}


def time_in_turn(
    engines: Mapping[Candidate, Engine],
    inputs: Mapping[str, NDArray[Any]],
    *,
    rounds: int,
    budget_s: float,
) -> dict[Candidate, float]:
    """Median milliseconds of a run, every engine once a round; a first round is a warm-up.

    Args:
        engines: What to time.
        inputs: What to give them.
        rounds: How many to time.
        budget_s: After so many seconds no further round begins, except for the first three.
    """
    times_ms: dict[Candidate, list[float]] = {candidate: [] for candidate in engines}
    begun = time.perf_counter()
    for turn in range(1 + rounds):
        if turn > _LEAST_ROUNDS and time.perf_counter() - begun > budget_s:
            break
        for candidate, engine in engines.items():
            time.sleep(_PAUSE_S)
            started = time.perf_counter()
            engine.run(inputs)
            if turn:
                times_ms[candidate].append(1000 * (time.perf_counter() - started))
    return {candidate: median(times) for candidate, times in times_ms.items()}


def _reopened(cache: ChoiceCache, bundle: Bundle, name: str, threads: int) -> Chosen | None:
    """What an earlier start chose, if it still opens."""
    kept = cache.read()
    if kept is None:
        return None
    try:
        engine = open_graph(bundle, name, kept.candidate, threads)
    except EngineError as error:
        _LOG.warning("%s was chosen before, but now %s", kept.candidate, error)
        return None
    return Chosen(engine, kept.candidate, kept.why)


def _measured(
    contenders: Sequence[Candidate], bundle: Bundle, name: str, threads: int
) -> tuple[Chosen, bool]:
    """The fastest on the first device on which any candidate works, and whether to keep that choice.

    What a GPU that is there refused may work at the next start.
    """
    inputs = one_input(bundle, name)
    refused: dict[Candidate, DglError] = {}
    for _, here in groupby(contenders, key=lambda one: one.device):
        working: dict[Candidate, Engine] = {}
        for candidate in here:
            try:
                engine = open_graph(bundle, name, candidate, threads)
                check_graph(engine, bundle, name)
                working[candidate] = engine
            except DglError as error:
                refused[candidate] = error
        if working:
            times_ms = _times_ms(working, inputs)
            best = min(working, key=lambda one: times_ms.get(one, 0.0))
            why = _reason(best, times_ms, refused, _UNITS[name])
            settled = all(one.device != "cuda" for one in refused) or not nvidia_gpus()
            return Chosen(working[best], best, why), settled
    if len(refused) == 1 or all(isinstance(error, BundleError) for error in refused.values()):
        raise next(iter(refused.values()))
    listed = "; ".join(f"{candidate}: {error}" for candidate, error in refused.items())
    raise EngineError(f"no engine runs the {name} of bundle {bundle.folder}: {listed}")


def _times_ms(
    working: Mapping[Candidate, Engine], inputs: Mapping[str, NDArray[Any]]
) -> dict[Candidate, float]:
    if len(working) == 1:
        return {}
    return time_in_turn(working, inputs, rounds=_ROUNDS, budget_s=_BUDGET_S)


def _reason(
    best: Candidate,
    times_ms: Mapping[Candidate, float],
    refused: Mapping[Candidate, DglError],
    unit: str,
) -> str:
    slower = [f"{ms:.1f} ms in {one}" for one, ms in times_ms.items() if one != best]
    if slower:
        reason = f"the fastest here: {times_ms[best]:.1f} ms {unit}, {', '.join(slower)}"
    else:
        reason = "the one that works here"
    return "; ".join([reason, *(f"not {one}: {error}" for one, error in refused.items())])

"""Which engines work on this machine, with what precision, and what the others need.

Graphs of two operators are shipped, and numpy knows their results. With a bundle, the bundle itself is
checked and timed in every engine that reads its format.
"""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.manifest import GRAPHS
from dgl_runtime.encoder.choice import one_input, open_graph, time_in_turn
from dgl_runtime.encoder.self_check import check_graph
from dgl_runtime.engines.candidates import Candidate
from dgl_runtime.engines.engine import Engine
from dgl_runtime.engines.hardware import NvidiaGpu, cpu_abilities, cuda_of_driver, nvidia_gpus
from dgl_runtime.engines.installed import KINDS, how_to_install, installed_version, is_installed
from dgl_runtime.engines.machine import Machine, describe_machine
from dgl_runtime.engines.opening import DEVICES
from dgl_runtime.engines.tiny_graph import TOLERANCES, error_of
from dgl_runtime.errors import DglError, reason_of

ROUNDS = 20
PACKAGES = (
    "dgl-retrieval",
    "numpy",
    "av",
    "tokenizers",
    *(name for kind in KINDS.values() for name in kind.distributions),
    "cuda-bindings",
    "usearch",
    "torch",
)


@dataclass(frozen=True)
class Trial:
    """One thing an engine was asked to do."""

    task: str  # a precision of the tiny graph, or a graph of the bundle
    works: bool
    error: float | None  # largest difference of any number
    min_cosine: float | None  # of any embedding; only with a bundle
    time_ms: float | None  # median of one query or clip; only with a bundle
    reason: str  # why it does not work


@dataclass(frozen=True)
class EngineReport:
    """What an engine does on a device."""

    engine: str
    device: str
    version: str  # empty: not installed
    trials: tuple[Trial, ...]
    remedy: str  # what to install; empty if it works, or nothing would help

    @property
    def works(self) -> bool:
        """Whether anything does."""
        return any(trial.works for trial in self.trials)


@dataclass(frozen=True)
class Diagnosis:
    """All that was found."""

    machine: Machine
    abilities: dict[str, bool] | None
    gpus: list[NvidiaGpu]
    cuda: str  # newest version that the driver runs; empty: no driver
    bundle: str | None
    engines: tuple[EngineReport, ...]

    @property
    def works(self) -> bool:
        """Whether at least one engine does."""
        return any(report.works for report in self.engines)

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


def diagnose(bundle: Bundle | None, *, threads: int) -> Diagnosis:
    """Try every engine on every device where it could run.

    Args:
        bundle: What to run; None: the shipped graphs.
        threads: CPU threads; 0 lets each engine choose.
    """
    gpus = nvidia_gpus()
    pairs = [
        Candidate(engine, device)
        for device in DEVICES
        for engine, kind in KINDS.items()
        if device in kind.devices and (bundle is None or bundle.manifest.format in kind.formats)
    ]
    if bundle is None:
        trials = {pair: _try_tiny(pair, threads) for pair in pairs}
    else:
        trials = _try_bundle(bundle, pairs, threads)
    return Diagnosis(
        machine=describe_machine(PACKAGES),
        abilities=cpu_abilities(),
        gpus=gpus,
        cuda=cuda_of_driver(),
        bundle=None if bundle is None else bundle.manifest.format,
        engines=tuple(
            EngineReport(
                pair.engine,
                pair.device,
                installed_version(pair.engine) if is_installed(pair.engine) else "",
                found,
                _remedy(pair, found, gpus),
            )
            for pair, found in trials.items()
        ),
    )


def _remedy(pair: Candidate, trials: tuple[Trial, ...], gpus: list[NvidiaGpu]) -> str:
    if any(trial.works for trial in trials):
        return ""
    if pair.device == "cuda" and not gpus:
        return "an NVIDIA GPU with its driver (nvidia-smi must list it)"
    if pair.device == "cpu" and is_installed(pair.engine):
        return ""  # it is there: the fault is another, which the trials tell
    return how_to_install(pair.engine, pair.device)


# ---- the shipped graphs ----------------------------------------------------------------------


def _try_tiny(pair: Candidate, threads: int) -> tuple[Trial, ...]:
    return tuple(_try_precision(precision, pair, threads) for precision in TOLERANCES)


def _failed(task: str, error: Exception, folder: Path) -> Trial:
    """Without the folder's path: the findings are published."""
    reason = reason_of(error).replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)
    return Trial(task, False, None, None, None, reason)


def _try_precision(precision: str, pair: Candidate, threads: int) -> Trial:
    with TemporaryDirectory() as folder:
        try:
            error = error_of(precision, pair, Path(folder), threads)
        except (DglError, ImportError, OSError) as fault:
            return _failed(precision, fault, Path(folder))
    return Trial(precision, True, error, None, None, "")


# ---- a bundle --------------------------------------------------------------------------------


def _try_bundle(
    bundle: Bundle, pairs: list[Candidate], threads: int
) -> dict[Candidate, tuple[Trial, ...]]:
    by_graph = [_try_graph(bundle, name, pairs, threads) for name in GRAPHS]
    return {pair: tuple(found[pair] for found in by_graph) for pair in pairs}


def _try_graph(
    bundle: Bundle, name: str, pairs: list[Candidate], threads: int
) -> dict[Candidate, Trial]:
    """Self-check of one graph in each engine; those that pass are timed in turn."""
    found: dict[Candidate, Trial] = {}
    passed: dict[Candidate, Engine] = {}
    for pair in pairs:
        try:
            engine = open_graph(bundle, name, pair, threads)
            difference = check_graph(engine, bundle, name)
        except (DglError, ImportError, OSError) as error:
            found[pair] = _failed(name, error, bundle.folder)
        else:
            passed[pair] = engine
            found[pair] = Trial(name, True, difference.max_abs, difference.min_cosine, None, "")
    if passed:
        times_ms = time_in_turn(
            passed, one_input(bundle, name), rounds=ROUNDS, budget_s=float("inf")
        )
        for pair, time_ms in times_ms.items():
            found[pair] = replace(found[pair], time_ms=time_ms)
    return found

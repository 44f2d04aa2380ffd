"""dgl-bench operators: which operators of a graph an engine spends its time on, by its own profile."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from benchmarks.encode import (
    EncodeSettings,
    calibration_for,
    export,
    make_inputs,
    make_model,
    torch_threads,
)
from benchmarks.encode_variants import CLIP, QUERY, TARGETS, Inputs, variant_name, write_target
from benchmarks.machine import Peaks, measure_peaks
from benchmarks.timing import WARM_UP
from benchmarks.work import Work, caption_work, clip_work
from dgl_export.fold import fold
from dgl_export.formats import Target
from dgl_runtime.engines.engine import Arrays
from dgl_runtime.engines.opening import open_engine
from dgl_train.model.backbones.backbone import Backbone, BackboneSource
from dgl_train.model.backbones.registry import load_backbone


@dataclass(frozen=True)
class Share:
    """All nodes of one operator in a graph."""

    operator: str  # as the engine calls it
    nodes: int
    ms: float  # of one call


@dataclass(frozen=True)
class Profile:
    """Where one variant's time goes for one query or clip."""

    method: str
    task: str
    variant: str
    precision: str
    ms: float  # median of calls without profiling
    shares: tuple[Share, ...]  # the longest first
    work: Work

    @property
    def outside(self) -> float:
        """Milliseconds of a call that no operator took; negative if profiling slowed them down."""
        return self.ms - sum(share.ms for share in self.shares)


@dataclass(frozen=True)
class Operators:
    """Everything that was profiled."""

    settings: EncodeSettings
    inputs: Inputs
    profiles: list[Profile]
    peaks: Peaks


def bench_operators(settings: EncodeSettings) -> Operators:
    """Profile both graphs of the methods asked for, in every engine and precision of the CPU.

    Raises:
        ConfigError: The backbone does not load.
    """
    backbone = load_backbone(BackboneSource(settings.backbone, settings.pretrained))
    inputs = make_inputs(backbone, settings.num_frames)
    with torch_threads(settings.threads):
        profiles = [
            profile
            for method in settings.methods
            for profile in _profiles(backbone, method, inputs, settings)
        ]
        return Operators(settings, inputs, profiles, measure_peaks())


def _profiles(
    backbone: Backbone, method: str, inputs: Inputs, settings: EncodeSettings
) -> Iterator[Profile]:
    model = make_model(backbone, method, settings.num_frames)
    folded = fold(model)
    given: dict[str, tuple[Arrays, Work]] = {
        QUERY: (
            {"tokens": inputs.tokens.numpy()},
            caption_work(backbone, folded, pieces=inputs.tokens.shape[1] - 1),
        ),
        CLIP: (
            {"frames": inputs.frames.numpy()},
            clip_work(backbone, folded, settings.num_frames),
        ),
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        graphs = export(folded, method, inputs, folder)
        calibration = calibration_for(backbone, settings.num_frames)
        for target in TARGETS["cpu"]:
            variant = variant_name(target)
            click.echo(f"{method}: {variant}", err=True)
            out = folder / f"{target.form}-{target.precision}"
            out.mkdir()
            written, _ = write_target(folder, graphs, target, calibration, out)
            for graph, (task, (arrays, work)) in zip(written, given.items(), strict=True):
                path = out / graph.file
                ms = _unprofiled(path, target, arrays, settings)
                shares = _PROFILERS[target.form](path, target, arrays, settings)
                yield Profile(method, task, variant, target.precision, ms, shares, work)


def _unprofiled(path: Path, target: Target, arrays: Arrays, settings: EncodeSettings) -> float:
    engine = open_engine(
        path,
        device="cpu",
        threads=settings.threads,
        engine=target.form,
        precision=target.precision,
    )
    times = []
    for _ in range(WARM_UP + settings.rounds):
        started = time.perf_counter()
        engine.run(arrays)
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times[WARM_UP:]))


def _profile_onnx(
    path: Path, target: Target, arrays: Arrays, settings: EncodeSettings
) -> tuple[Share, ...]:
    """ONNX Runtime writes an event for each node of each call."""
    import onnxruntime as ort

    from dgl_runtime.engines.onnx import session_options

    options = session_options("cpu", settings.threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(".profile"))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(WARM_UP + settings.rounds):
        session.run(None, arrays)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    nodes: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        node = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if node and event["ts"] >= runs[WARM_UP]:
            nodes[event["args"]["op_name"], event["name"]] += event["dur"] / 1000 / settings.rounds
    return _shares((operator, ms) for (operator, _), ms in nodes.items())


def _profile_openvino(
    path: Path, target: Target, arrays: Arrays, settings: EncodeSettings
) -> tuple[Share, ...]:
    """OpenVINO keeps a mean of all calls for each node that it executes."""
    from dgl_runtime.engines.openvino import compile_options, core

    options = compile_options(target.precision, settings.threads) | {"PERF_COUNT": True}
    request = core().compile_model(str(path), "CPU", options).create_infer_request()
    for _ in range(WARM_UP + settings.rounds):
        request.infer(arrays)
    return _shares(
        (node.node_type, node.real_time.total_seconds() * 1000)
        for node in request.get_profiling_info()
        if node.real_time
    )


_PROFILERS: dict[str, Callable[[Path, Target, Arrays, EncodeSettings], tuple[Share, ...]]] = {
    "onnx": _profile_onnx,
    "openvino": _profile_openvino,
}


def _shares(nodes: Iterable[tuple[str, float]]) -> tuple[Share, ...]:
    """Add up nodes (operator, ms) by operator."""
    found: dict[str, list[float]] = defaultdict(list)
    for operator, ms in nodes:
        found[operator].append(ms)
    shares = [Share(operator, len(times), sum(times)) for operator, times in found.items()]
    return tuple(sorted(shares, key=lambda share: -share.ms))

"""Which operators of a graph an engine spends its time on, by its own profile.

python benchmarks/studies/operators.py --method dgl-linear --rounds 20
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from dgl_bench import encode_variants as variants
from dgl_bench.command import Backbone, Pretrained, Threads, benchmark, say, with_threads
from dgl_bench.encode import Method, methods_of
from dgl_bench.peaks import measure_peaks
from dgl_bench.report import Report, Row, Table
from dgl_bench.timing import WARM_UP, time_paired
from dgl_export.formats import Target
from dgl_runtime.engines.engine import Arrays
from dgl_runtime.engines.opening import open_engine
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone

LEAST = 0.01  # of a call; operators that take less share a row
Nodes = Iterable[tuple[str, float]]  # of each node the engine's operator and the ms of one call


@benchmark
def main(
    backbone: Backbone = "ViT-B-32-quickgelu",
    pretrained: Pretrained = "",
    num_frames: int = 12,
    threads: Threads = 2,
    rounds: int = 30,
    method: Method = "both",
) -> Report:
    """Which operators a query and a clip spend their time on, in every engine of the CPU.

    Example: python benchmarks/studies/operators.py --method dgl-linear
    """
    loaded = load_backbone(BackboneSource(backbone, pretrained))
    tables = []
    with variants.torch_threads(threads):
        peaks = measure_peaks()
        for one in methods_of(method):
            with TemporaryDirectory() as folder:
                subject = variants.make_subject(loaded, one, num_frames, Path(folder))
                for task, target, ms, nodes in profiles(subject, threads, rounds):
                    peak = peaks.flop_per_s.get(target.precision)
                    flop = subject.work[task].flop
                    least = f", at the matrix peak {1000 * flop / peak:.2f}" if peak else ""
                    title = f"{one}, {task}, {variants.variant_name(target)}: {ms:.2f} ms{least}"
                    tables.append(Table(title, list(rows(ms, nodes))))
    return Report(
        name=with_threads("operators", threads),
        title="Where an engine's time goes",
        tables=tables,
        settings={"caption_tokens": subject.inputs.tokens.shape[1], "peaks": str(peaks)},
        notes=[
            "Operators as the engine names them after its own fusions, and their milliseconds in one query or "
            "clip by its own profile, mean over rounds.",
            "Outside operators: the median call without profiling, less all operators; below zero, profiling "
            "itself cost time.",
            "At the matrix peak: the time of the graph's matrix products if they ran as fast as one large "
            "product of the same precision in torch.",
        ],
    )


def profiles(
    subject: variants.Subject, threads: int, rounds: int
) -> Iterator[tuple[str, Target, float, Nodes]]:
    """Both graphs in every engine and precision of the CPU: the median call, and its nodes."""
    given: dict[str, Arrays] = {
        variants.QUERY: {"tokens": subject.inputs.tokens.numpy()},
        variants.CLIP: {"frames": subject.inputs.frames.numpy()},
    }
    for target in variants.TARGETS["cpu"]:
        say(variants.variant_name(target))
        _, paths, _ = variants.write_target(subject, target)
        profile = {"onnx": profile_onnx, "openvino": profile_openvino}[target.form]
        for path, (task, arrays) in zip(paths, given.items(), strict=True):
            ms = unprofiled_ms(path, target, arrays, threads, rounds)
            yield task, target, ms, profile(path, target, arrays, threads, rounds)


def rows(ms: float, nodes: Nodes) -> Iterator[Row]:
    """Nodes added up by operator, the longest first."""
    found: dict[str, list[float]] = defaultdict(list)
    for operator, took in nodes:
        found[operator].append(took)
    told = {name: found[name] for name in sorted(found, key=lambda name: -sum(found[name]))}
    if small := [name for name in told if sum(told[name]) < LEAST * ms]:
        told[f"{len(small)} others"] = [took for name in small for took in told.pop(name)]
    told["outside operators"] = [ms - sum(map(sum, told.values()))]
    for name, times in told.items():
        share = 100 * sum(times) / ms
        yield {"operator": name, "nodes": len(times), "ms": sum(times), "share, %": share}


def unprofiled_ms(path: Path, target: Target, arrays: Arrays, threads: int, rounds: int) -> float:
    how = {"engine": target.form, "precision": target.precision}
    engine = open_engine(path, device="cpu", threads=threads, **how)
    calls = {"call": partial(engine.run, arrays)}
    return time_paired(calls, rounds=rounds, pause_s=0).spread_ms("call").median


def profile_onnx(path: Path, target: Target, arrays: Arrays, threads: int, rounds: int) -> Nodes:
    """ONNX Runtime writes an event for each node of each call."""
    import onnxruntime as ort

    from dgl_runtime.engines.onnx import session_options

    options = session_options("cpu", threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(".profile"))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(WARM_UP + rounds):
        session.run(None, arrays)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    nodes: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        node = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if node and event["ts"] >= runs[WARM_UP]:
            nodes[event["args"]["op_name"], event["name"]] += event["dur"] / 1000 / rounds
    return [(operator, ms) for (operator, _), ms in nodes.items()]


def profile_openvino(
    path: Path, target: Target, arrays: Arrays, threads: int, rounds: int
) -> Nodes:
    """OpenVINO keeps a mean of all calls for each node that it executes."""
    from dgl_runtime.engines.openvino import compile_options, core

    options = compile_options(target.precision, threads) | {"PERF_COUNT": True}
    request = core().compile_model(str(path), "CPU", options).create_infer_request()
    for _ in range(WARM_UP + rounds):
        request.infer(arrays)
    nodes = [node for node in request.get_profiling_info() if node.real_time]
    return [(node.node_type, node.real_time.total_seconds() * 1000) for node in nodes]


if __name__ == "__main__":
    main()

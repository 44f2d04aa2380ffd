"""Every way to the same embeddings that dgl-bench encode compares."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dgl_export.calibration import Calibration
from dgl_export.fold import FoldedModel
from dgl_export.formats import Target, write_graph
from dgl_export.lower import lower
from dgl_export.to_tensorrt import write_engines
from dgl_runtime.bundle.manifest import Graph, Quality
from dgl_runtime.engines.engine import Engine
from dgl_runtime.engines.opening import open_engine
from dgl_runtime.errors import DglError
from dgl_train.model.dgl import DglModel

Embedding = NDArray[np.float32]
QUERY, CLIP = "query", "clip"
TASKS = (QUERY, CLIP)
UNFOLDED, FOLDED = "torch, unfolded", "torch, folded"
COMPILED = {  # as --compile lists them
    "default": "torch, folded, compiled",
    "max-autotune": "torch, folded, compiled max-autotune",
}
ENGINE_NAMES = {
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "trt": "TensorRT",
    "trt-rtx": "TensorRT-RTX",
}
_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}
# What is exported and timed on each device beside torch.
TARGETS = {
    "cpu": (
        Target("onnx", "fp32"),
        Target("onnx", "int8"),
        Target("openvino", "fp32"),
        Target("openvino", "bf16"),
        Target("openvino", "int8"),
    ),
    "cuda": (
        *(Target("onnx", precision) for precision in ("fp32", "fp16", "bf16")),
        *(Target("trt", precision) for precision in ("fp32", "fp16", "int8")),
        Target("trt-rtx", "fp16"),
    ),
}


@dataclass(frozen=True)
class Inputs:
    """Queries and clips, the same for all variants."""

    tokens: Tensor  # int32 [B, L], the captions' own length
    padded: Tensor  # int64 [B, 32]
    frames: Tensor  # uint8 [B, F, 3, S, S]

    def batch(self, size: int) -> "Inputs":
        """The first query and clip, this many times."""
        tokens, padded = (part[:1].repeat(size, 1) for part in (self.tokens, self.padded))
        return Inputs(tokens, padded, self.frames[:1].repeat(size, 1, 1, 1, 1))


Encode = Callable[[Tensor], object]
Calls = dict[str, Callable[[Inputs], Embedding]]  # task -> call


@dataclass(frozen=True)
class Variant:
    """One way to embeddings."""

    name: str
    precision: str  # decides how far from the unfolded model's embeddings it may be
    encode: Calls  # what failed is left out
    remarks: dict[str, str]  # task -> seconds of compilation, or why there is no call
    quality: Quality | None = None  # on captions and clips held out
    kept: tuple[int, ...] = ()  # layers of the caption and the clip graph that stay in float32
    any_batch: bool = True


def torch_variants(
    model: DglModel, folded: FoldedModel, inputs: Inputs, modes: tuple[str, ...], device: str
) -> Iterator[Variant]:
    """Torch as trained, folded, and compiled in each mode; on a GPU in fp16 and bf16 too."""
    # Copies: all methods share one backbone, which stays where it is.
    captions, clips = deepcopy(folded.captions).to(device), deepcopy(folded.clips).to(device)
    model = deepcopy(model).to(device)

    def calls(captions: Encode, clips: Encode, low: torch.dtype | None, padded: bool) -> Calls:
        run = partial(_run_torch, device=device, low=low)
        return {
            QUERY: lambda given: run(captions, given.padded if padded else given.tokens),
            CLIP: lambda given: run(clips, given.frames),
        }

    yield Variant(
        UNFOLDED, "fp32", calls(model.encode_captions, model.encode_clips, None, True), {}
    )
    yield Variant(FOLDED, "fp32", calls(captions, clips, None, False), {})
    for precision, low in _AUTOCAST.items() if device == "cuda" else ():
        yield Variant(f"{FOLDED}, {precision}", precision, calls(captions, clips, low, False), {})
    for mode in modes:
        click.echo(f"torch.compile, {mode}", err=True)
        torch.compiler.reset()  # encoders compiled earlier would count as recompilations
        yield _compiled(captions, clips, inputs, mode, device)


def _run_torch(
    encode: Encode,
    values: Tensor,
    *,
    device: str,
    low: torch.dtype | None = None,
) -> Embedding:
    """A torch encoder on one input; of several outputs the first is the embedding."""
    mixed = torch.autocast(device, low) if low is not None else nullcontext()
    with torch.inference_mode(), mixed:
        out = encode(values.to(device))
    embedding = out[0] if isinstance(out, tuple) else out
    assert isinstance(embedding, Tensor)
    return embedding.float().cpu().numpy()


def _compiled(
    captions: nn.Module, clips: nn.Module, inputs: Inputs, mode: str, device: str
) -> Variant:
    """Compile for exactly these shapes, without torch's cache of earlier compilations."""
    encode: Calls = {}
    remarks = {}
    config: Any = torch.compiler.config
    for task, encoder in ((QUERY, captions), (CLIP, clips)):
        compiled = torch.compile(encoder, dynamic=False, fullgraph=True, mode=mode)

        def call(given: Inputs, task: str = task, compiled: Any = compiled) -> Embedding:  # noqa: ANN401
            values = given.tokens if task == QUERY else given.frames
            return _run_torch(compiled, values, device=device)

        started = time.perf_counter()
        try:
            with (
                config.patch(force_disable_caches=True),
                warnings.catch_warnings(),
                redirect_stdout(sys.stderr),
            ):
                warnings.simplefilter("ignore")  # the compiler warns of its own internals
                call(inputs)
        except RuntimeError as error:  # the base of all of the compiler's own errors
            remarks[task] = compiler_reason(error)
            continue
        remarks[task] = f"compiled in {time.perf_counter() - started:.0f} s"
        encode[task] = call
    return Variant(COMPILED[mode], "fp32", encode, remarks, any_batch=False)


def engine_variants(
    folder: Path,
    graphs: list[Graph],
    calibration: Calibration,
    threads: int,
    device: str,
) -> Iterator[Variant]:
    """The exported graphs in every engine and precision of the device."""
    for target in TARGETS[device]:
        name = variant_name(target)
        click.echo(name, err=True)
        out = folder / f"{target.form}-{target.precision}"
        out.mkdir()
        try:
            written, quality = write_target(folder, graphs, target, calibration, out)
            if target.library is not None:
                judges = calibration.judges
                write_engines(
                    out,
                    (written[0], written[1]),
                    max_tokens=judges.tokens.ids.shape[1],
                    num_frames=judges.frames.shape[1],
                    library=target.library,
                )
            engines = [_open(out / graph.file, target, threads, device) for graph in written]
        except (DglError, ModuleNotFoundError) as error:
            remark = f"not measured, {' '.join(str(error).split())[:160]}"
            yield Variant(name, target.precision, {}, dict.fromkeys(TASKS, remark))
            continue
        kept = tuple(len(graph.kept) for graph in written)
        yield Variant(name, target.precision, _engine_calls(engines), {}, quality, kept)


def variant_name(target: Target) -> str:
    """What tables call a format and precision."""
    return f"{ENGINE_NAMES[target.form]} {target.precision}"


def write_target(
    folder: Path, graphs: list[Graph], target: Target, calibration: Calibration, out: Path
) -> tuple[list[Graph], Quality | None]:
    """Both graphs in a format and precision; what the gate would refuse is written too."""
    if target.precision == "fp32":
        models = [onnx.load(folder / graph.file) for graph in graphs]
        pairs = zip(models, graphs, strict=True)
        return [write_graph(*pair, target, (out, ())).graph for pair in pairs], None
    lowered = lower(folder, graphs, target, calibration, out)
    return [one.graph for one in lowered.written], lowered.measured


def _open(path: Path, target: Target, threads: int, device: str) -> Engine:
    engine = target.library or target.form
    return open_engine(
        path, device=device, threads=threads, engine=engine, precision=target.precision
    )


def _engine_calls(engines: list[Engine]) -> Calls:
    captions, clips = engines

    def run(engine: Engine, name: str, values: Tensor) -> Embedding:
        return np.asarray(engine.run({name: values.numpy()})["embedding"], np.float32)

    return {
        QUERY: lambda given: run(captions, "tokens", given.tokens),
        CLIP: lambda given: run(clips, "frames", given.frames),
    }


def compiler_reason(error: RuntimeError) -> str:
    """The first line of the compiler's error, with nothing of this machine's folders in it."""
    if "InvalidCxxCompiler" in str(error):
        return "not measured, no C++ compiler (install g++ or set CXX)"
    first = next(iter(str(error).splitlines()), type(error).__name__)
    words = ("..." if "/" in word else word for word in first.split())
    return f"not measured, {' '.join(words)[:160]}"

"""Every way to the same embeddings that dgl-bench encode compares."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgl_bench.command import say
from dgl_bench.encode_subject import CLIP, QUERY, TASKS, Inputs, InTorch, Subject
from dgl_export.formats import Target, write_graph
from dgl_export.lower_precision import lower
from dgl_runtime.bundle.input_spec import clip_texts
from dgl_runtime.bundle.manifest import Graph, Quality
from dgl_runtime.encoder.rebuild import write_engines
from dgl_runtime.engines.engine import Engine
from dgl_runtime.engines.opening import open_engine
from dgl_runtime.errors import DglError

Embedding = NDArray[np.float32]
COMPILED = {"default": "compiled", "max-autotune": "compiled max-autotune"}
ENGINE_NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
ENGINE_NAMES |= {"trt": "TensorRT", "trt-rtx": "TensorRT-RTX"}
_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}
# What is exported and timed on each device beside torch.
TARGETS = {
    "cpu": (
        *(Target("onnx", precision) for precision in ("fp32", "int8")),
        *(Target("openvino", precision) for precision in ("fp32", "bf16", "int8")),
    ),
    "cuda": (
        *(Target("onnx", precision) for precision in ("fp32", "fp16", "bf16")),
        *(Target("trt", precision) for precision in ("fp32", "fp16", "int8")),
        Target("trt-rtx", "fp16"),
    ),
}


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run with this many threads in torch; the number before comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Encode = Callable[[Tensor], object]
Calls = dict[str, Callable[[Inputs], Embedding]]  # task -> call


@dataclass(frozen=True)
class Variant:
    """One way to embeddings."""

    name: str
    precision: str  # decides how far from the first variant's embeddings it may be
    encode: Calls  # what failed is left out
    remarks: dict[str, str]  # task -> seconds of compilation, or why there is no call
    quality: Quality | None = None  # on captions and clips held out
    kept: tuple[int, ...] = ()  # layers of the text and the clip encoder that stay in float32
    any_batch: bool = True


def torch_variants(subject: Subject, modes: list[str], device: str) -> Iterator[Variant]:
    """The model in torch in every form, the last one compiled in each mode; on a GPU in fp16 and bf16 too."""
    there = deepcopy(subject.in_torch) if device != "cpu" else subject.in_torch
    for one in there:
        for encoder in (one.text_encoder, one.clip_encoder):
            encoder.to(device)
        yield Variant(one.name, "fp32", _torch_calls(one, device), {})
    last = there[-1]
    for precision, low in _AUTOCAST.items() if device == "cuda" else ():
        calls = _torch_calls(last, device, low)
        yield Variant(f"{last.name}, {precision}", precision, calls, {})
    for mode in modes:
        say(f"torch.compile, {mode}")
        torch.compiler.reset()  # encoders compiled earlier would count as recompilations
        yield _compiled(last, subject.inputs, mode, device)


def _torch_calls(one: InTorch, device: str, low: torch.dtype | None = None) -> Calls:
    run = partial(_run_torch, device=device, low=low)
    return {
        QUERY: lambda given: run(one.text_encoder, given.padded if one.padded else given.tokens),
        CLIP: lambda given: run(one.clip_encoder, given.frames),
    }


def _run_torch(
    encode: Encode, values: Tensor, *, device: str, low: torch.dtype | None = None
) -> Embedding:
    """A torch encoder on one input; of several outputs the first is the embedding."""
    mixed = torch.autocast(device, low) if low is not None else nullcontext()
    with torch.inference_mode(), mixed:
        out = encode(values.to(device))
    embedding = out[0] if isinstance(out, tuple) else out
    assert isinstance(embedding, Tensor)
    return embedding.float().cpu().numpy()


def _compiled(one: InTorch, inputs: Inputs, mode: str, device: str) -> Variant:
    """Compile for exactly these shapes, without torch's cache of earlier compilations."""
    config: Any = torch.compiler.config
    compiled: Any = partial(torch.compile, dynamic=False, fullgraph=True, mode=mode)
    both = replace(
        one, text_encoder=compiled(one.text_encoder), clip_encoder=compiled(one.clip_encoder)
    )
    calls, remarks = _torch_calls(both, device), {}
    for task in TASKS:
        started = time.perf_counter()
        try:
            with config.patch(force_disable_caches=True), redirect_stdout(sys.stderr):
                with warnings.catch_warnings(action="ignore"):  # of the compiler's own internals
                    calls[task](inputs)
        except RuntimeError as error:  # the base of all of the compiler's own errors
            remarks[task] = compiler_reason(error)
            del calls[task]
        else:
            remarks[task] = f"compiled in {time.perf_counter() - started:.0f} s"
    return Variant(f"{one.name}, {COMPILED[mode]}", "fp32", calls, remarks, any_batch=False)


def engine_variants(subject: Subject, threads: int, device: str) -> Iterator[Variant]:
    """The exported graphs in every engine and precision of the device."""
    for target in TARGETS[device]:
        name = variant_name(target)
        say(name)
        try:
            written, paths, quality = write_target(subject, target)
            how = {"engine": target.library or target.form, "precision": target.precision}
            opened = [open_engine(one, device=device, threads=threads, **how) for one in paths]
        except (DglError, ModuleNotFoundError) as error:
            remark = f"not measured, {' '.join(str(error).split())[:160]}"
            yield Variant(name, target.precision, {}, dict.fromkeys(TASKS, remark))
            continue
        kept = tuple(len(graph.kept) for graph in written)
        yield Variant(name, target.precision, _engine_calls(opened), {}, quality, kept)


def variant_name(target: Target) -> str:
    """What tables call a format and precision."""
    return f"{ENGINE_NAMES[target.form]} {target.precision}"


def write_target(
    subject: Subject, target: Target
) -> tuple[list[Graph], list[Path], Quality | None]:
    """Both graphs in a format and precision, and their files; what the gate would refuse is written too."""
    folder, graphs, calibration = subject.folder, subject.graphs, subject.calibration
    out, measured = folder / f"{target.form}-{target.precision}", None
    out.mkdir()
    if target.precision == "fp32":
        models = [onnx.load(folder / graph.file) for graph in graphs]
        pairs = zip(models, graphs, strict=True)
        written = [write_graph(*pair, target, (out, ())).graph for pair in pairs]
    else:
        lowered = lower(folder, graphs, target, calibration, out)
        written, measured = [one.graph for one in lowered.written], lowered.measured
    if target.library is not None:
        judges = calibration.judges
        words, frames = judges.tokens.ids.shape[1], judges.frames.shape[1]
        pair = (written[0], written[1])
        texts = clip_texts(words)
        write_engines(out, pair, texts=texts, num_frames=frames, library=target.library)
    return written, [out / graph.file for graph in written], measured


def _engine_calls(engines: list[Engine]) -> Calls:
    def encode(engine: Engine, name: str) -> Callable[[Inputs], Embedding]:
        def call(given: Inputs) -> Embedding:
            found = engine.run({name: getattr(given, name).numpy()})
            return np.asarray(found["embedding"], np.float32)

        return call

    return {QUERY: encode(engines[0], "tokens"), CLIP: encode(engines[1], "frames")}


def compiler_reason(error: RuntimeError) -> str:
    """The first line of the compiler's error, with nothing of this machine's folders in it."""
    if "InvalidCxxCompiler" in str(error):
        return "not measured, no C++ compiler (install g++ or set CXX)"
    first = next(iter(str(error).splitlines()), type(error).__name__)
    told = " ".join("..." if "/" in word else word for word in first.split())
    return f"not measured, {told[:160]}"

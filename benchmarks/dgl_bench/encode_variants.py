"""A model, what it is asked, and every way to the same embeddings that dgl-bench encode compares."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dgl_bench.command import say
from dgl_export.calibration import Calibration, made_calibration
from dgl_export.fold import FoldedModel, fold
from dgl_export.formats import Target, write_graph
from dgl_export.lower_precision import lower
from dgl_export.parity import drifting_patterns
from dgl_export.to_onnx import write_clip_encoder, write_text_encoder
from dgl_runtime.bundle.input_spec import clip_texts
from dgl_runtime.bundle.manifest import Graph, Quality
from dgl_runtime.encoder.rebuild import write_engines
from dgl_runtime.engines.engine import Engine
from dgl_runtime.engines.opening import open_engine
from dgl_runtime.errors import DglError
from dgl_train.model.backbones.backbone import Backbone
from dgl_train.model.dgl import DglModel
from dgl_train.model.prompts import LinearPrompts, PromptCounts, TransformerPrompts

Embedding = NDArray[np.float32]
CAPTION = "a man is playing the guitar on a stage"
PADDED_LENGTH = 32  # the research code pads every caption to this
SEED = 0
QUERY, CLIP = "query", "clip"
TASKS = (QUERY, CLIP)
UNFOLDED, FOLDED = "torch, unfolded", "torch, folded"
COMPILED = {"default": f"{FOLDED}, compiled", "max-autotune": f"{FOLDED}, compiled max-autotune"}
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


@dataclass(frozen=True)
class Work:
    """What one call of a folded encoder cannot do without."""

    flop: int  # a multiply-add is 2
    weights: int  # numbers read, whatever their size


@dataclass(frozen=True)
class Subject:
    """A model with freshly drawn prompts, folded and exported in float32, and what it is asked."""

    model: DglModel
    folded: FoldedModel
    inputs: Inputs
    work: dict[str, Work]  # task -> of one query or clip
    folder: Path
    graphs: list[Graph]  # of the folder
    calibration: Calibration  # made captions and clips, of the sizes that are timed


def make_subject(backbone: Backbone, method: str, num_frames: int, folder: Path) -> Subject:
    """Make a model of a method, and export it into a folder."""
    say(f"{method}: ONNX export")
    inputs, model = make_inputs(backbone, num_frames), make_model(backbone, method, num_frames)
    folded, facts = fold(model), backbone.facts
    query = work_of(folded.text_encoder, inputs.tokens)
    work = {QUERY: query, CLIP: work_of(folded.clip_encoder, inputs.frames)}
    longest = min(PADDED_LENGTH, facts.inputs.texts.max_tokens)
    wanted = backbone.inputs_of(num_frames, longest)
    calibration = made_calibration(wanted.frames, facts.tokenizer.fed_as(wanted.texts))
    graphs = export(folded, method, inputs, folder)
    return Subject(model, folded, inputs, work, folder, graphs, calibration)


def work_of(encoder: nn.Module, values: Tensor) -> Work:
    """The matrix products of one call, and the weights it reads: of the text tables one row a token."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(values)
    tensors = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    tables = [tensors.pop(name) for name in ("token_embedding", "positions") if name in tensors]
    tokens = values.shape[1] - 1  # the start token is folded
    rows = sum(tokens * table.shape[1] for table in tables)
    return Work(counter.get_total_flops(), rows + sum(one.numel() for one in tensors.values()))


def make_inputs(backbone: Backbone, num_frames: int) -> Inputs:
    """The fixed caption, and a clip of coarse patterns of colour."""
    facts, longest = backbone.facts, backbone.facts.inputs.texts.max_tokens
    tokens = torch.from_numpy(facts.tokenizer([CAPTION]).ids)
    padded = torch.zeros(1, min(PADDED_LENGTH, longest), dtype=torch.int64)
    padded[:, : tokens.shape[1]] = tokens
    pixels = drifting_patterns(1, num_frames, facts.inputs.frames.size)
    return Inputs(tokens, padded, torch.from_numpy(pixels))


def make_model(backbone: Backbone, method: str, num_frames: int) -> DglModel:
    """A model with the paper's prompt counts and freshly drawn prompts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if method == "dgl-linear":
            return DglModel(backbone, LinearPrompts(backbone, PromptCounts())).eval()
        return DglModel(backbone, TransformerPrompts(backbone, PromptCounts(), num_frames)).eval()


def export(folded: FoldedModel, method: str, inputs: Inputs, folder: Path) -> list[Graph]:
    """Write the float32 graphs."""
    any_frames = method == "dgl-linear"
    # Every dimension that stays free must be above 1 in the example.
    repeats = 2 if any_frames and inputs.frames.shape[1] == 1 else 1
    frames = inputs.frames.repeat(2, repeats, 1, 1, 1)
    with redirect_stdout(sys.stderr):
        return [
            write_text_encoder(folded.text_encoder.cpu(), inputs.tokens.repeat(2, 1), folder),
            write_clip_encoder(folded.clip_encoder.cpu(), frames, folder, any_frames=any_frames),
        ]


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
    precision: str  # decides how far from the unfolded model's embeddings it may be
    encode: Calls  # what failed is left out
    remarks: dict[str, str]  # task -> seconds of compilation, or why there is no call
    quality: Quality | None = None  # on captions and clips held out
    kept: tuple[int, ...] = ()  # layers of the text and the clip encoder that stay in float32
    any_batch: bool = True


def torch_variants(subject: Subject, modes: list[str], device: str) -> Iterator[Variant]:
    """Torch as trained, folded, and compiled in each mode; on a GPU in fp16 and bf16 too."""
    # Copies: all methods share one backbone, which stays where it is.
    folded, model = deepcopy(subject.folded), deepcopy(subject.model).to(device)
    captions, clips = folded.text_encoder.to(device), folded.clip_encoder.to(device)

    def calls(captions: Encode, clips: Encode, low: torch.dtype | None, padded: bool) -> Calls:
        run = partial(_run_torch, device=device, low=low)
        return {
            QUERY: lambda given: run(captions, given.padded if padded else given.tokens),
            CLIP: lambda given: run(clips, given.frames),
        }

    trained = calls(model.encode_captions, model.encode_clips, None, True)
    yield Variant(UNFOLDED, "fp32", trained, {})
    yield Variant(FOLDED, "fp32", calls(captions, clips, None, False), {})
    for precision, low in _AUTOCAST.items() if device == "cuda" else ():
        yield Variant(f"{FOLDED}, {precision}", precision, calls(captions, clips, low, False), {})
    for mode in modes:
        say(f"torch.compile, {mode}")
        torch.compiler.reset()  # encoders compiled earlier would count as recompilations
        yield _compiled(captions, clips, subject.inputs, mode, device)


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


def _compiled(
    captions: nn.Module, clips: nn.Module, inputs: Inputs, mode: str, device: str
) -> Variant:
    """Compile for exactly these shapes, without torch's cache of earlier compilations."""
    encode: Calls = {}
    remarks = {}
    config: Any = torch.compiler.config
    for task, encoder, name in ((QUERY, captions, "tokens"), (CLIP, clips, "frames")):
        compiled = torch.compile(encoder, dynamic=False, fullgraph=True, mode=mode)

        def call(given: Inputs, name: str = name, compiled: Any = compiled) -> Embedding:  # noqa: ANN401
            return _run_torch(compiled, getattr(given, name), device=device)

        started = time.perf_counter()
        try:
            with config.patch(force_disable_caches=True), redirect_stdout(sys.stderr):
                with warnings.catch_warnings(action="ignore"):  # of the compiler's own internals
                    call(inputs)
        except RuntimeError as error:  # the base of all of the compiler's own errors
            remarks[task] = compiler_reason(error)
        else:
            remarks[task] = f"compiled in {time.perf_counter() - started:.0f} s"
            encode[task] = call
    return Variant(COMPILED[mode], "fp32", encode, remarks, any_batch=False)


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

"""dgl-bench encode: what folding and ONNX Runtime are worth, for one query and one clip.

Four ways to the same embeddings, timed side by side. Inputs are ready in memory: tokenizing and video
decoding are not part of it. Speed does not depend on the weights, so random ones will do.
"""

import sys
import time
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.machine import Peaks, load_average, measure_peaks
from benchmarks.timing import Paired, time_paired
from dgl_export.fold import FoldedModel, fold
from dgl_export.parity import MAX_ABS, run_captions, run_clips
from dgl_export.to_onnx import write_captions, write_clips
from dgl_runtime.engines import open_engine
from dgl_runtime.errors import ExportError
from dgl_train.backbone import Backbone, BackboneSource, TextTower, VisionTower, load_backbone
from dgl_train.model import DglModel
from dgl_train.prompts import LinearPrompts, PromptCounts, TransformerPrompts
from dgl_train.vocabulary import clip_tokenizer

CAPTION = "a man is playing the guitar on a stage"
PADDED_LENGTH = 32  # the research code pads every caption to this
QUERY, CLIP = "query", "clip"
UNFOLDED, FOLDED, COMPILED, ONNX = (
    "torch, unfolded",
    "torch, folded",
    "torch, folded, compiled",
    "ONNX Runtime, folded",
)
VARIANTS = (UNFOLDED, FOLDED, COMPILED, ONNX)
SEED = 0

Embedding = NDArray[np.float32]
Calls = dict[str, Callable[[], Embedding]]  # variant -> encode this task's input once


@dataclass(frozen=True)
class EncodeSettings:
    """What to measure."""

    backbone: str
    pretrained: str
    num_frames: int
    threads: int
    rounds: int
    methods: tuple[str, ...]
    with_compile: bool


@dataclass(frozen=True)
class Inputs:
    """One query and one clip, the same for all variants."""

    tokens: Tensor  # int32 [1, L], the caption's own length
    padded: Tensor  # int64 [1, 32]
    frames: Tensor  # uint8 [1, F, 3, S, S]


@dataclass(frozen=True)
class Compiled:
    """A compiled encoder's call, or why there is none."""

    call: Callable[[], Embedding] | None
    seconds: float
    failure: str


@dataclass(frozen=True)
class Work:
    """What one call of a folded encoder cannot do without."""

    flop: int
    weight_bytes: int


@dataclass(frozen=True)
class Series:
    """One method and task: all variants, paired."""

    method: str
    task: str
    paired: Paired[Embedding]
    compiled: Compiled | None
    work: Work

    def max_abs(self, variant: str) -> float:
        """Largest difference of the variant's embedding from the unfolded model's."""
        difference = self.paired.results[variant] - self.paired.results[UNFOLDED]
        return float(np.abs(difference).max())

    def check(self) -> None:
        """Every variant must have given the unfolded model's embedding.

        Raises:
            ExportError: One did not, so its speed means nothing.
        """
        for variant in self.paired.results:
            if not (off := self.max_abs(variant)) <= MAX_ABS:
                raise ExportError(
                    f"{self.method}, {self.task}: {variant!r} differs from {UNFOLDED!r} by {off:.1e} "
                    f"(at most {MAX_ABS:.0e} is rounding), so its time means nothing. Nothing was written."
                )


@dataclass(frozen=True)
class EncodeResult:
    """Everything that was measured."""

    settings: EncodeSettings
    inputs: Inputs
    series: list[Series]
    peaks: Peaks
    load_before: float | None  # of other processes, so it should be near 0


def bench_encode(settings: EncodeSettings) -> EncodeResult:
    """Measure all variants of the methods asked for.

    Raises:
        ConfigError: The backbone does not load.
        ExportError: A variant gives other embeddings than the unfolded model.
    """
    load_before = load_average()
    backbone = load_backbone(BackboneSource(settings.backbone, settings.pretrained))
    inputs = make_inputs(backbone, settings.num_frames)
    with torch_threads(settings.threads):
        _say("measuring the machine's peaks")
        peaks = [measure_peaks()]
        series = [
            one
            for method in settings.methods
            for one in bench_method(backbone, method, inputs, settings)
        ]
        peaks.append(measure_peaks())
    best = Peaks(max(peak.flop_per_s for peak in peaks), max(peak.bytes_per_s for peak in peaks))
    return EncodeResult(settings, inputs, series, best, load_before)


def make_inputs(backbone: Backbone, num_frames: int) -> Inputs:
    """The fixed caption, and a clip of random pixels."""
    tokens = torch.from_numpy(clip_tokenizer()([CAPTION], backbone.context_length))
    padded = torch.zeros(1, min(PADDED_LENGTH, backbone.context_length), dtype=torch.int64)
    padded[:, : tokens.shape[1]] = tokens
    shape = (1, num_frames, 3, backbone.frame_size, backbone.frame_size)
    pixels = np.random.default_rng(SEED).integers(0, 256, shape, dtype=np.uint8)
    return Inputs(tokens, padded, torch.from_numpy(pixels))


def make_model(backbone: Backbone, method: str, num_frames: int) -> DglModel:
    """A model with the paper's prompt counts and freshly drawn prompts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if method == "dgl-linear":
            return DglModel(backbone, LinearPrompts(backbone, PromptCounts())).eval()
        return DglModel(backbone, TransformerPrompts(backbone, PromptCounts(), num_frames)).eval()


def bench_method(
    backbone: Backbone, method: str, inputs: Inputs, settings: EncodeSettings
) -> Iterator[Series]:
    """Time one method's queries, then its clips, and check the results of each."""
    model = make_model(backbone, method, settings.num_frames)
    folded = fold(model, start_token=clip_tokenizer().start_id)
    calls: dict[str, Calls] = {
        QUERY: {
            UNFOLDED: torch_call(model.encode_captions, inputs.padded),
            FOLDED: torch_call(folded.captions, inputs.tokens),
        },
        CLIP: {
            UNFOLDED: torch_call(model.encode_clips, inputs.frames),
            FOLDED: torch_call(folded.clips, inputs.frames),
        },
    }
    compiled: dict[str, Compiled] = {}
    if settings.with_compile:
        torch.compiler.reset()  # compiled encoders of an earlier method would count as recompilations
        _say(f"{method}: torch.compile")
        compiled[QUERY] = compile_encoder(folded.captions, inputs.tokens)
        compiled[CLIP] = compile_encoder(folded.clips, inputs.frames)
    for task, one in compiled.items():
        if one.call is not None:
            calls[task][COMPILED] = one.call
    work = {
        QUERY: caption_work(backbone, folded, pieces=inputs.tokens.shape[1] - 1),
        CLIP: clip_work(backbone, folded, settings.num_frames),
    }
    with TemporaryDirectory() as folder:
        _say(f"{method}: ONNX export")
        exported = onnx_calls(folded, method, inputs, (Path(folder), settings.threads))
        for task, variants in calls.items():
            variants[ONNX] = exported[task]
            label = f"{method}, {task}"
            paired = time_paired(variants, rounds=settings.rounds, label=label)
            series = Series(method, task, paired, compiled.get(task), work[task])
            series.check()
            yield series


def torch_call(encode: Callable[[Tensor], object], values: Tensor) -> Callable[[], Embedding]:
    """A torch encoder on this input; of several outputs the first is the embedding."""

    def call() -> Embedding:
        with torch.inference_mode():
            out = encode(values)
        embedding = out[0] if isinstance(out, tuple) else out
        assert isinstance(embedding, Tensor)
        return embedding.numpy()

    return call


def compile_encoder(encoder: nn.Module, values: Tensor) -> Compiled:
    """Compile for exactly this shape, without torch's cache of earlier compilations."""
    config: Any = torch.compiler.config
    call = torch_call(torch.compile(encoder, dynamic=False, fullgraph=True), values)
    started = time.perf_counter()
    try:
        with (
            config.patch(force_disable_caches=True),
            warnings.catch_warnings(),
            redirect_stdout(sys.stderr),
        ):
            warnings.simplefilter("ignore")  # the compiler warns of its own internals
            call()
    except RuntimeError as error:  # the base of all of the compiler's own errors
        return Compiled(None, time.perf_counter() - started, _reason(error))
    return Compiled(call, time.perf_counter() - started, "")


def onnx_calls(
    folded: FoldedModel, method: str, inputs: Inputs, place: tuple[Path, int]
) -> dict[str, Callable[[], Embedding]]:
    """Export into the folder and open as the product does; ``place`` is the folder and threads."""
    folder, threads = place
    any_frames = method == "dgl-linear"
    # Every dimension that stays free must be above 1 in the example.
    repeats = 2 if any_frames and inputs.frames.shape[1] == 1 else 1
    with redirect_stdout(sys.stderr):
        captions = write_captions(folded.captions, inputs.tokens.repeat(2, 1), folder)
        example = inputs.frames.repeat(2, repeats, 1, 1, 1)
        clips = write_clips(folded.clips, example, folder, any_frames=any_frames)
    caption_engine = open_engine(folder / captions.file, device="cpu", threads=threads)
    clip_engine = open_engine(folder / clips.file, device="cpu", threads=threads)
    tokens, frames = inputs.tokens.numpy(), inputs.frames.numpy()
    return {
        QUERY: lambda: run_captions(caption_engine, tokens),
        CLIP: lambda: run_clips(clip_engine, frames)[0],
    }


def block_flop(width: int, hidden: int, *, kv: int, q: int, pairs: int) -> int:
    """FLOP of the matrix products of one block; a multiply-add is 2.

    2 * (2 kv D^2 + 2 q D^2 + 2 q D H + 2 pairs D): keys and values of ``kv`` tokens; queries, output
    projection and MLP (hidden width H) of ``q`` tokens; and ``pairs`` of a query with a key, once for the
    logit and once for the value. Normalisation, softmax and activation are left out: below 1%.
    """
    return 4 * (kv * width**2 + q * width**2 + q * width * hidden + pairs * width)


def caption_work(backbone: Backbone, folded: FoldedModel, *, pieces: int) -> Work:
    """The folded text tower on n = ``pieces`` tokens without the start token, batch 1.

    Each of n queries meets S constant keys and n of its own (the mask is applied after the product). The
    last block has one query. Then the projection, 2 D E. Of the two embedding tables n rows are read.
    """
    width, hidden, layers = _size(backbone.text)
    keys = folded.captions.blocks[0].keys.shape[1] + pieces
    inner = block_flop(width, hidden, kv=pieces, q=pieces, pairs=pieces * keys)
    last = block_flop(width, hidden, kv=pieces, q=1, pairs=keys)
    tables = {"token_embedding", "positions"}
    weights = _tensor_bytes(folded.captions, without=tables) + 2 * pieces * width * 4
    return Work((layers - 1) * inner + last + 2 * width * backbone.embed_dim, weights)


def clip_work(backbone: Backbone, folded: FoldedModel, num_frames: int) -> Work:
    """The folded vision tower on F frames, batch 1.

    N = G + F T tokens, T = 1 + P. A frame's T queries and the G global ones meet the frame's M = G + K + T
    keys, in every frame. In block 0 the globals' queries, keys and values are constants; the last block
    has one query. Then the projection, 2 D E; before, the patch convolution, 2 F P (3 p^2) D.
    """
    vision, clips = backbone.vision, folded.clips
    width, hidden, layers = _size(vision)
    per_frame = vision.positions.shape[0]
    num_globals = int(clips.get_buffer("globals").shape[0])
    keys = num_globals + clips.blocks[0].keys.shape[-2] + per_frame
    tokens = num_globals + num_frames * per_frame
    pairs = num_frames * (per_frame + num_globals) * keys
    inner = block_flop(width, hidden, kv=tokens, q=tokens, pairs=pairs)
    constant = 2 * 3 * num_globals * width**2  # of block 0, not computed
    last = block_flop(width, hidden, kv=tokens, q=1, pairs=num_frames * keys)
    patches = 2 * num_frames * (per_frame - 1) * 3 * vision.patch**2 * width
    projection = 2 * width * backbone.embed_dim
    flop = patches + (layers - 1) * inner - constant + last + projection
    return Work(flop, _tensor_bytes(clips))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run with this many threads in torch; the number before comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _size(tower: VisionTower | TextTower) -> tuple[int, int, int]:
    blocks = tower.blocks
    return blocks[0].fc.in_features, blocks[0].fc.out_features, len(blocks)


def _tensor_bytes(module: nn.Module, *, without: Container[str] = ()) -> int:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return sum(tensor.nbytes for name, tensor in tensors.items() if name not in without)


def _reason(error: RuntimeError) -> str:
    """The first line of the compiler's error, with nothing of this machine's folders in it."""
    if "InvalidCxxCompiler" in str(error):
        return "not measured, no C++ compiler (install g++ or set CXX)"
    first = next(iter(str(error).splitlines()), type(error).__name__)
    words = ("..." if "/" in word else word for word in first.split())
    return f"not measured, {' '.join(words)[:160]}"


def _say(what: str) -> None:
    click.echo(what, err=True)

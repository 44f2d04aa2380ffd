"""dgl-bench encode: what folding, engines and precisions are worth, for queries and clips.

Inputs are ready in memory: tokenizing and video decoding are not part of it. Speed does not depend
on the weights, so random ones will do.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch

from benchmarks.encode_variants import (
    CLIP,
    QUERY,
    TASKS,
    UNFOLDED,
    Embedding,
    Inputs,
    Variant,
    engine_variants,
    torch_variants,
)
from benchmarks.machine import Peaks, load_average, measure_peaks
from benchmarks.timing import Paired, time_paired
from benchmarks.work import Work, caption_work, clip_work
from dgl_export.calibration import Calibration, made_calibration
from dgl_export.fold import FoldedModel, fold
from dgl_export.parity import MAX_ABS, drifting_patterns
from dgl_export.to_onnx import write_captions, write_clips
from dgl_runtime.bundle.manifest import MIN_COSINE, Graph
from dgl_runtime.encoder.self_check import cosines
from dgl_train.model.backbones.backbone import Backbone, BackboneSource
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.dgl import DglModel
from dgl_train.model.prompts import LinearPrompts, PromptCounts, TransformerPrompts

CAPTION = "a man is playing the guitar on a stage"
PADDED_LENGTH = 32  # the research code pads every caption to this
SEED = 0
SETTLE = 1  # calls before each that is timed, so that it finds its threads and caches its own


@dataclass(frozen=True)
class EncodeSettings:
    """What to measure."""

    backbone: str
    pretrained: str
    num_frames: int
    threads: int
    rounds: int
    methods: tuple[str, ...]
    modes: tuple[str, ...]  # of torch.compile
    batches: tuple[int, ...]
    device: str


@dataclass(frozen=True)
class Series:
    """One method, task and batch size: all variants, paired."""

    method: str
    task: str
    batch: int
    paired: Paired[Embedding]
    variants: tuple[Variant, ...]  # those asked for, measured or not
    work: Work  # of one query or clip

    def max_abs(self, name: str) -> float:
        """Largest difference of a variant's embeddings from the unfolded model's."""
        difference = self.paired.results[name] - self.paired.results[UNFOLDED]
        return float(np.abs(difference).max())

    def min_cosine(self, name: str) -> float:
        """Smallest cosine of a variant's embedding to the unfolded model's."""
        return float(cosines(self.paired.results[name], self.paired.results[UNFOLDED]).min())

    @property
    def wrong(self) -> dict[str, str]:
        """Variants whose time means nothing: they did not give the unfolded model's embeddings."""
        found = {}
        for variant in self.variants:
            if (name := variant.name) not in self.paired.results:
                continue
            bound = MIN_COSINE.get(variant.precision)
            off, cosine = self.max_abs(name), self.min_cosine(name)
            if bound is None and not off <= MAX_ABS:
                found[name] = f"its embeddings are off by {off:.1e}, rounding is {MAX_ABS:.0e}"
            elif bound is not None and not cosine >= bound:
                found[name] = f"an embedding has cosine {cosine:.4f}, {bound} is the least"
        return found

    def without_wrong(self) -> "Series":
        """The same, with the variants that are wrong not measured."""
        wrong = self.wrong
        variants = tuple(
            replace(one, remarks={**one.remarks, self.task: f"not measured, {wrong[one.name]}"})
            if one.name in wrong
            else one
            for one in self.variants
        )
        return replace(self, variants=variants, paired=self.paired.without(wrong))


@dataclass(frozen=True)
class EncodeResult:
    """Everything that was measured."""

    settings: EncodeSettings
    inputs: Inputs
    series: list[Series]
    peaks: Peaks
    load_before: float | None  # of other processes, so it should be near 0
    wrong: list[str]  # what was measured and gave wrong embeddings


def bench_encode(settings: EncodeSettings) -> EncodeResult:
    """Measure all variants of the methods asked for.

    Raises:
        ConfigError: The backbone does not load.
    """
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, as in the engines
    load_before = load_average()
    backbone = load_backbone(BackboneSource(settings.backbone, settings.pretrained))
    inputs = make_inputs(backbone, settings.num_frames)
    with torch_threads(settings.threads):
        _say("measuring the machine's peaks")
        peaks = measure_peaks(settings.device)
        series = [
            one
            for method in settings.methods
            for one in bench_method(backbone, method, inputs, settings)
        ]
        peaks = peaks.best(measure_peaks(settings.device))
    wrong = [
        f"{one.method}, {one.task}, batch {one.batch}: {name}: {what}"
        for one in series
        for name, what in one.wrong.items()
    ]
    series = [one.without_wrong() for one in series]
    return EncodeResult(settings, inputs, series, peaks, load_before, wrong)


def make_inputs(backbone: Backbone, num_frames: int) -> Inputs:
    """The fixed caption, and a clip of coarse patterns of colour."""
    wanted = backbone.facts.inputs
    tokens = torch.from_numpy(backbone.facts.tokenizer([CAPTION]).ids)
    padded = torch.zeros(1, min(PADDED_LENGTH, wanted.texts.max_tokens), dtype=torch.int64)
    padded[:, : tokens.shape[1]] = tokens
    pixels = drifting_patterns(1, num_frames, wanted.frames.size)
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
    """Time one method's queries, then its clips, batch by batch."""
    model = make_model(backbone, method, settings.num_frames)
    folded = fold(model)
    work = {
        QUERY: caption_work(backbone, folded, pieces=inputs.tokens.shape[1] - 1),
        CLIP: clip_work(backbone, folded, settings.num_frames),
    }
    with TemporaryDirectory() as folder:
        _say(f"{method}: ONNX export")
        graphs = export(folded, method, inputs, Path(folder))
        calibration = calibration_for(backbone, settings.num_frames)
        device = settings.device
        variants = (
            *torch_variants(model, folded, inputs, settings.modes, device),
            *engine_variants(Path(folder), graphs, calibration, settings.threads, device),
        )
        for task in TASKS:
            for batch in settings.batches:
                paired = _time(variants, (method, task), inputs.batch(batch), settings.rounds)
                yield Series(method, task, batch, paired, variants, work[task])


def _time(
    variants: tuple[Variant, ...], what: tuple[str, str], given: Inputs, rounds: int
) -> Paired[Embedding]:
    method, task = what
    batch = len(given.tokens)
    calls = {
        variant.name: partial(variant.encode[task], given)
        for variant in variants
        if task in variant.encode and (variant.any_batch or batch == 1)
    }
    # Larger batches take longer and vary less.
    label = f"{method}, {task}, batch {batch}"
    return time_paired(calls, rounds=max(1, rounds // batch), settle=SETTLE, label=label)


def export(folded: FoldedModel, method: str, inputs: Inputs, folder: Path) -> list[Graph]:
    """Write the float32 graphs."""
    any_frames = method == "dgl-linear"
    # Every dimension that stays free must be above 1 in the example.
    repeats = 2 if any_frames and inputs.frames.shape[1] == 1 else 1
    with redirect_stdout(sys.stderr):
        return [
            write_captions(folded.captions.cpu(), inputs.tokens.repeat(2, 1), folder),
            write_clips(
                folded.clips.cpu(),
                inputs.frames.repeat(2, repeats, 1, 1, 1),
                folder,
                any_frames=any_frames,
            ),
        ]


def calibration_for(backbone: Backbone, num_frames: int) -> Calibration:
    """Made captions and clips, of the sizes that are timed."""
    longest = min(PADDED_LENGTH, backbone.facts.inputs.texts.max_tokens)
    inputs = backbone.inputs_of(num_frames, longest)
    return made_calibration(inputs.frames, backbone.facts.tokenizer.fed_as(inputs.texts))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run with this many threads in torch; the number before comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _say(what: str) -> None:
    click.echo(what, err=True)

"""dgl-bench encode: what folding, engines and precisions are worth, for queries and clips.

Inputs are ready in memory: tokenizing and video decoding are not part of it. Speed does not depend
on the weights, so random ones will do.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import click
import numpy as np
from numpy.typing import NDArray

from dgl_bench.command import Backbone, Pretrained, Threads, benchmark, say, with_threads
from dgl_bench.peaks import Peaks, measure_peaks
from dgl_bench.report import Plot, Report, Row, Table
from dgl_bench.timing import WARM_UP, Paired, time_paired

if TYPE_CHECKING:
    from dgl_bench.encode_variants import Inputs, Subject, Variant

METHODS = ("dgl-linear", "dgl-transformer")
COMPILE_MODES = ("default", "max-autotune")  # encode_variants.COMPILED, likewise
SETTLE = 1  # calls before each that is timed, so that it finds its threads and caches its own
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}

Method = Literal["dgl-linear", "dgl-transformer", "both"]


def methods_of(method: str) -> tuple[str, ...]:
    """What --method stands for."""
    return METHODS if method == "both" else (method,)


def _read_modes(text: str) -> tuple[str, ...]:
    found = tuple(mode for mode in text.split(",") if mode)
    if unknown := set(found) - set(COMPILE_MODES):
        known = ", ".join(COMPILE_MODES)
        raise click.UsageError(f"--compile: got {', '.join(unknown)}, known are {known}.")
    return found


@benchmark
def encode(
    backbone: Backbone = "ViT-B-32-quickgelu",
    pretrained: Pretrained = "",
    num_frames: int = 12,
    threads: Threads = 2,
    rounds: int = 30,
    method: Method = "both",
    compile: Annotated[str, "Modes of torch.compile, with commas; empty for none."] = ",".join(
        COMPILE_MODES
    ),
    batches: Annotated[tuple[int, ...], "Batch sizes, with commas; 1 is measured in any case."] = (
        1,
    ),
    device: Literal["cpu", "cuda"] = "cpu",
) -> Report:
    """Queries and clips: torch as trained, folded, compiled, and every engine and precision.

    Example: dgl-bench encode --method dgl-linear --rounds 30 --threads 2 --batches 1,4,16
    """
    import torch

    from dgl_bench.encode_variants import (
        TASKS,
        engine_variants,
        make_subject,
        torch_threads,
        torch_variants,
    )
    from dgl_train.model.backbone import BackboneSource, load_backbone

    modes = _read_modes(compile)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, as in the engines
    loaded = load_backbone(BackboneSource(backbone, pretrained))
    rows: list[Row] = []
    quality: list[Row] = []
    with torch_threads(threads):
        say("measuring the machine's peaks")
        peaks = measure_peaks(device)
        for one in methods_of(method):
            with TemporaryDirectory() as folder:
                subject = make_subject(loaded, one, num_frames, Path(folder))
                variants = [
                    *torch_variants(subject, modes, device),
                    *engine_variants(subject, threads, device),
                ]
                for task in TASKS:
                    for batch in sorted({1, *batches}):
                        about = {"method": one, "task": task, "batch": batch}
                        given = subject.inputs.batch(batch)
                        paired = _time(variants, about, given, max(1, rounds // batch))
                        rows += _rows(about, subject, variants, paired)
            quality += _quality(one, variants)
        peaks = peaks.best(measure_peaks(device))
    for row in rows:
        row |= _of_the_peaks(row, peaks)
    # A GPU's figures do not depend on the CPU's threads.
    name = with_threads("encode", threads) if device == "cpu" else f"encode-{device}"
    return _report(name, rows, quality, subject.inputs, peaks)


def _time(
    variants: list["Variant"], about: Row, given: "Inputs", rounds: int
) -> Paired[NDArray[np.float32]]:
    """All variants of a task, paired; larger batches take longer and vary less."""
    task, batch = about["task"], about["batch"]
    calls = {
        one.name: partial(one.encode[task], given)
        for one in variants
        if task in one.encode and (one.any_batch or batch == 1)
    }
    label = ", ".join(map(str, about.values()))
    return time_paired(calls, rounds=rounds, settle=SETTLE, label=label)


def _rows(
    about: Row, subject: "Subject", variants: list["Variant"], paired: Paired[NDArray[np.float32]]
) -> Iterator[Row]:
    """A row for each variant; the time of one that is wrong means nothing and is not told."""
    from dgl_bench.encode_variants import FOLDED, UNFOLDED
    from dgl_runtime.encoder.self_check import cosines

    work, found = subject.work[about["task"]], paired.results
    for variant in variants:
        name, remark = variant.name, variant.remarks.get(about["task"])
        row = {**about, "variant": name, "precision": variant.precision}
        if name not in found:
            if remark is not None:  # else it is compiled for one query or clip alone
                yield {**row, "remark": remark}
            continue
        off = float(np.abs(found[name] - found[UNFOLDED]).max())
        cosine = float(cosines(found[name], found[UNFOLDED]).min())
        if wrong := _fault(variant.precision, off, cosine):
            yield {**row, "remark": f"not measured, {wrong}", "wrong": True}
            continue
        ms, faster = paired.spread_ms(name), paired.speedup(name, over=UNFOLDED)
        row |= {"ms": ms, "a second": 1000 * about["batch"] / ms.median, "faster": faster}
        row |= {"off by": off, "cosine": cosine, "times_ms": paired.times_ms[name]}
        if name not in (UNFOLDED, FOLDED) and about["batch"] == 1:
            row |= {"flop": work.flop, "bytes": work.weights * _BYTES[variant.precision]}
        yield {**row, "remark": remark}


def _fault(precision: str, off: float, cosine: float) -> str | None:
    from dgl_export.parity import MAX_ABS
    from dgl_runtime.bundle.manifest import MIN_COSINE

    bound = MIN_COSINE.get(precision)
    if bound is None and not off <= MAX_ABS:
        return f"its embeddings are off by {off:.1e}, rounding is {MAX_ABS:.0e}"
    if bound is not None and not cosine >= bound:
        return f"an embedding has cosine {cosine:.4f}, {bound} is the least"
    return None


def _of_the_peaks(row: Row, peaks: Peaks) -> Row:
    """The roofline: FLOP and weights at the median time, against what the machine can do."""
    flop, size = row.pop("flop", None), row.pop("bytes", None)
    if flop is None or size is None:
        return {}
    seconds = row["ms"].median / 1000
    peak = peaks.flop_per_s.get(row["precision"])
    return {
        "GFLOP": flop / 1e9,
        "weights MB": size / 1e6,
        "of matrix peak, %": 100 * flop / seconds / peak if peak else None,
        "of bandwidth, %": 100 * size / seconds / peaks.bytes_per_s,
    }


def _quality(method: str, variants: list["Variant"]) -> Iterator[Row]:
    from dgl_export.quality import faults

    for one in variants:
        if one.quality is not None:
            yield {
                "method": method,
                "variant": one.name,
                "smallest cosine": one.quality.min_cosine,
                "mean cosine": one.quality.mean_cosine,
                "same first clip, %": 100 * one.quality.top1_agreement,
                "kept in fp32": " + ".join(map(str, one.kept)),
                "gate of dgl-export": "; ".join(faults(one.quality, one.precision)) or "passes",
                "measured": asdict(one.quality),
            }


def _report(
    name: str, rows: list[Row], quality: list[Row], inputs: "Inputs", peaks: Peaks
) -> Report:
    from dgl_bench.encode_variants import CAPTION, CLIP, QUERY

    wrong = [
        f"{one['method']}, {one['task']}, batch {one['batch']}: {one['variant']}: "
        + one["remark"].removeprefix("not measured, ")
        for one in rows
        if one.pop("wrong", False)
    ]
    titles = {
        QUERY: f"Queries of {inputs.tokens.shape[1]} tokens",
        CLIP: f"Clips of {inputs.frames.shape[1]} frames",
    }
    tables = [
        Table(title, [{**one, "task": None} for one in rows if one["task"] == task])
        for task, title in titles.items()
    ]
    return Report(
        name=name,
        title="Encoding queries and clips",
        tables=[*tables, Table("Quality of the lower precisions", quality)],
        plots=list(_plots(rows)),
        settings={
            "warm_up": WARM_UP,
            "caption": CAPTION,
            "caption_tokens": inputs.tokens.shape[1],
            "padded_tokens": inputs.padded.shape[1],
            "peaks": str(peaks),
        },
        wrong=wrong,
        notes=_notes(inputs.padded.shape[1]),
    )


def _plots(rows: list[Row]) -> Iterator[Plot]:
    """Latency and throughput against batch size, where there was more than one."""
    if len({one["batch"] for one in rows}) == 1:
        return
    larger = {(one["variant"], one["task"]) for one in rows if one["batch"] > 1}
    for method, task in dict.fromkeys((one["method"], one["task"]) for one in rows):
        mine = [
            one for one in rows
            if (one["method"], one["task"]) == (method, task) and (one["variant"], task) in larger
        ]  # fmt: skip
        for kind, unit in (("latency", "ms"), ("throughput", "a second")):
            title = f"{kind.capitalize()} against batch: {task}, {method}"
            yield Plot(f"{kind}-{task}-{method}", title, "batch", unit, "variant", mine, "xy")


def _notes(padded: int) -> list[str]:
    from dgl_bench.encode_variants import UNFOLDED
    from dgl_export.parity import MAX_ABS

    return [
        "The same thread count for all. Every round times every variant once, in rotating order, each right "
        f"after {SETTLE} call of its own that is not timed. Wall clock of a whole batch, without tokenizing and "
        "decoding; median (p10 to p90) over rounds.",
        f"{UNFOLDED}: generators run in every call and the caption is padded to {padded} tokens, as in the "
        "research code; it has no caption prompts behind the end token, which that code also computes.",
        f"Faster: the time of {UNFOLDED!r} divided by the variant's, in each round. Off by: the largest "
        "difference of a number of the unit embedding from it, and cosine to it, checked after the timing; "
        f"above {MAX_ABS:.0e} in fp32, or below the precision's smallest cosine, a time means nothing and is "
        "not shown.",
        "ONNX Runtime's int8 finds the scale of a layer's input as it runs; OpenVINO's int8 has fixed ones.",
        "Quality: on made captions and clips that set no scale. With random weights (no --pretrained) all "
        "clips are alike and the first one is chance. What dgl-export would refuse is timed all the same. "
        "Kept in fp32: layers of the caption graph and of the clip graph.",
        "Roofline: FLOP of the folded graph's matrix products and the weights it reads, at the median time, "
        "against a large matrix product of the same precision and a large read or copy in torch, measured "
        "before and after (the better of both). Weights count with the precision's size, also those that "
        "stay in float32.",
        "On a busy machine torch, which waits for all of its threads, loses more than ONNX Runtime.",
    ]

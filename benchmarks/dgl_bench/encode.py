"""dgl-bench encode: what folding, engines and precisions are worth, for queries and clips.

Inputs are ready in memory: tokenizing and video decoding are not part of it. Speed does not depend
on the weights, so random ones will do.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import click
import numpy as np

from dgl_bench.command import Backbone, Pretrained, Threads, benchmark, say, with_threads
from dgl_bench.peaks import Peaks, measure_peaks
from dgl_bench.report import Plot, Report, Row, Table
from dgl_bench.timing import WARM_UP, time_paired

if TYPE_CHECKING:
    from dgl_bench.encode_variants import Inputs, Subject, Variant

METHODS = ("dgl-linear", "dgl-transformer")
MODES = "default,max-autotune"
SETTLE = 1  # calls before each that is timed, so that it finds its threads and caches its own
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}

Method = Literal["dgl-linear", "dgl-transformer", "both"]


def methods_of(method: str) -> tuple[str, ...]:
    """What --method stands for."""
    return METHODS if method == "both" else (method,)


@benchmark
def encode(
    backbone: Backbone = "ViT-B-32-quickgelu",
    pretrained: Pretrained = "",
    num_frames: int = 12,
    threads: Threads = 2,
    rounds: int = 30,
    method: Method = "both",
    compile: Annotated[str, "Modes of torch.compile, with commas; empty for none."] = MODES,
    batches: Annotated[tuple[int, ...], "Sizes, with commas; 1 is always measured."] = (1,),
    device: Literal["cpu", "cuda"] = "cpu",
) -> Report:
    """Queries and clips: torch as trained, folded, compiled, and every engine and precision.

    Example: dgl-bench encode --method dgl-linear --rounds 30 --threads 2 --batches 1,4,16
    """
    modes = [mode for mode in compile.split(",") if mode]
    if unknown := set(modes) - set(MODES.split(",")):
        raise click.UsageError(f"--compile: got {', '.join(unknown)}, known are {MODES}.")
    import torch

    from dgl_bench import encode_variants as variants_of
    from dgl_train.model.backbones.backbone import BackboneSource
    from dgl_train.model.backbones.registry import load_backbone

    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, as in the engines
    loaded = load_backbone(BackboneSource(backbone, pretrained))
    rows: list[Row] = []
    quality: list[Row] = []
    with variants_of.torch_threads(threads):
        say("measuring torch's large product and reading")
        peaks = measure_peaks(device)
        for one in methods_of(method):
            with TemporaryDirectory() as folder:
                subject = variants_of.make_subject(loaded, one, num_frames, Path(folder))
                variants = list(variants_of.torch_variants(subject, modes, device))
                variants += variants_of.engine_variants(subject, threads, device)
                for task, batch in product(variants_of.TASKS, sorted({1, *batches})):
                    about = {"method": one, "task": task, "batch": batch}
                    rows += _rows(about, subject, variants, rounds)
            quality += _quality(one, variants)
    for row in rows:
        row |= _of_the_peaks(row, peaks)
    # A GPU's figures do not depend on the CPU's threads.
    name = with_threads("encode", threads) if device == "cpu" else f"encode-{device}"
    return _report(name, rows, quality, subject.inputs, peaks)


def _rows(about: Row, subject: "Subject", variants: list["Variant"], rounds: int) -> Iterator[Row]:
    """Time all variants of a task, paired; the time of one that is wrong means nothing and is not told."""
    from dgl_bench.encode_variants import FOLDED, UNFOLDED
    from dgl_runtime.encoder.self_check import cosines

    (task, batch), work = (about["task"], about["batch"]), subject.work[about["task"]]
    calls = {
        one.name: partial(one.encode[task], subject.inputs.batch(batch))
        for one in variants
        if task in one.encode and (one.any_batch or batch == 1)
    }
    fewer = max(1, rounds // batch)  # larger batches take longer and vary less
    label = ", ".join(map(str, about.values()))
    paired = time_paired(calls, rounds=fewer, settle=SETTLE, label=label)
    found = paired.results
    for one in variants:
        name, remark = one.name, one.remarks.get(task)
        row = {**about, "variant": name, "precision": one.precision, "remark": remark}
        if name not in found:
            if task not in one.encode:  # else it is compiled for one query or clip alone
                yield row
            continue
        off = float(np.abs(found[name] - found[UNFOLDED]).max())
        cosine = float(cosines(found[name], found[UNFOLDED]).min())
        if wrong := _fault(one.precision, off, cosine):
            yield {**row, "remark": f"not measured, {wrong}", "wrong": True}
            continue
        ms, faster = paired.spread_ms(name), paired.speedup(name, over=UNFOLDED)
        row |= {"ms": ms, "a second": 1000 * batch / ms.median, "faster": faster}
        row |= {"off by": off, "cosine": cosine, "times_ms": paired.times_ms[name]}
        if name not in (UNFOLDED, FOLDED) and batch == 1:
            row |= {"flop": work.flop, "bytes": work.weights * _BYTES[one.precision]}
        yield row


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
    seconds, peak = row["ms"].median / 1000, peaks.flop_per_s.get(row["precision"])
    told = {
        "GFLOP": flop / 1e9,
        "of torch's product, %": 100 * flop / seconds / peak if peak else None,
    }
    of_bandwidth = 100 * size / seconds / peaks.bytes_per_s
    return {**told, "weights MB": size / 1e6, "of torch's reading, %": of_bandwidth}


def _quality(method: str, variants: list["Variant"]) -> Iterator[Row]:
    from dgl_export.quality import faults

    for one in variants:
        if (found := one.quality) is not None:
            row = {"method": method, "variant": one.name, "smallest cosine": found.min_cosine}
            row["mean cosine"] = found.mean_cosine
            row["same first clip, %"] = 100 * found.top1_agreement
            row["kept in fp32"] = " + ".join(map(str, one.kept))
            row["gate of dgl-export"] = "; ".join(faults(found, one.precision)) or "passes"
            yield {**row, "measured": asdict(found)}


def _report(
    name: str, rows: list[Row], quality: list[Row], inputs: "Inputs", peaks: Peaks
) -> Report:
    from dgl_bench.encode_variants import CAPTION, CLIP, QUERY

    wrong = [
        f"{one['method']}, {one['task']}, batch {one['batch']}: {one['variant']}: {one['remark'][14:]}"
        for one in rows
        if one.pop("wrong", False)
    ]
    tokens, frames = inputs.tokens.shape[1], inputs.frames.shape[1]
    tables = [
        Table(title, [{**one, "task": None} for one in rows if one["task"] == task])
        for task, title in (
            (QUERY, f"Queries of {tokens} tokens"),
            (CLIP, f"Clips of {frames} frames"),
        )
    ]
    padded = inputs.padded.shape[1]
    sizes = {"caption_tokens": tokens, "padded_tokens": padded}
    return Report(
        name=name,
        title="Encoding queries and clips",
        tables=[*tables, Table("Quality of the lower precisions", quality)],
        plots=list(_plots(rows)),
        settings={"warm_up": WARM_UP, "caption": CAPTION, **sizes, "peaks": str(peaks)},
        wrong=wrong,
        notes=_notes(padded),
    )


def _plots(rows: list[Row]) -> Iterator[Plot]:
    """Latency and throughput against batch size, where there was more than one."""
    if len({one["batch"] for one in rows}) == 1:
        return
    for method, task in dict.fromkeys((one["method"], one["task"]) for one in rows):
        mine = [one for one in rows if (one["method"], one["task"]) == (method, task)]
        larger = {one["variant"] for one in mine if one["batch"] > 1}
        drawn = [one for one in mine if one["variant"] in larger]
        for kind, unit in (("latency", "ms"), ("throughput", "a second")):
            title = f"{kind.capitalize()} against batch: {task}, {method}"
            yield Plot(f"{kind}-{task}-{method}", title, "batch", unit, "variant", drawn, "xy")


def _notes(padded: int) -> list[str]:
    from dgl_bench.encode_variants import UNFOLDED
    from dgl_export.parity import MAX_ABS

    return [
        "The same thread count for all. Every round times every variant once, in rotating order, each "
        f"right after {SETTLE} call of its own that is not timed. Wall clock of a whole batch, without "
        "tokenizing and decoding; median (p10 to p90) over rounds.",
        f"{UNFOLDED}: generators run in every call and the caption is padded to {padded} tokens, as in the "
        "research code; it has no caption prompts behind the end token, which that code also computes.",
        f"Faster: the time of {UNFOLDED!r} divided by the variant's, in each round. Off by: the largest "
        "difference of a number of the unit embedding from it, and cosine to it, checked after the timing; "
        f"above {MAX_ABS:.0e} in fp32, or below the precision's smallest cosine, a time means nothing and is "
        "not shown.",
        "ONNX Runtime's int8 finds the scale of a layer's input as it runs; OpenVINO's int8 has fixed ones.",
        "Quality: on made captions and clips that set no scale. With random weights (no --pretrained) all "
        "clips are alike and the first one is chance. What dgl-export would refuse is timed all the same. "
        "Kept in fp32: layers of the text encoder and of the clip encoder.",
        "Roofline: FLOP of the folded graph's matrix products and the weights it reads, at the median time, "
        "against one large product of the same precision and a large read or copy in torch. Weights count "
        "with the precision's size, also those that stay in float32.",
    ]

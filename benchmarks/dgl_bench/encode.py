"""dgl-bench encode: what folding, engines and precisions are worth, for queries and clips.

Inputs are ready in memory: tokenizing and video decoding are not part of it. Speed does not depend
on the weights, so random ones will do.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import click
import numpy as np

from dgl_bench.command import Pretrained, Threads, benchmark, say, with_threads
from dgl_bench.peaks import Peaks, measure_peaks
from dgl_bench.report import Plot, Report, Row, Table
from dgl_bench.timing import WARM_UP, time_paired

if TYPE_CHECKING:
    from dgl_bench.encode_subject import Subject
    from dgl_bench.encode_variants import Variant
    from dgl_train.model.backbones.backbone import Backbone

METHODS = ("dgl-linear", "dgl-transformer")
MODES = "default,max-autotune"
SETTLE = 1  # calls before each that is timed, so that it finds its threads and caches its own
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}

Method = Literal["dgl-linear", "dgl-transformer", "both", "zero-shot"]


def methods_of(method: str) -> tuple[str, ...]:
    """What --method stands for."""
    return METHODS if method == "both" else (method,)


@benchmark
def encode(
    backbone: Annotated[str, "As dgl-train's; several with commas."] = "ViT-B-32-quickgelu",
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

    With --method zero-shot a backbone as it is, any that exports, beside open_clip's own model of it; of
    BLIP-B-384, which is made of random numbers, beside transformers'.

    Example: dgl-bench encode --method dgl-linear --rounds 30 --threads 2 --batches 1,4,16
    """
    modes = [mode for mode in compile.split(",") if mode]
    if unknown := set(modes) - set(MODES.split(",")):
        raise click.UsageError(f"--compile: got {', '.join(unknown)}, known are {MODES}.")
    import torch

    from dgl_bench.encode_subject import load
    from dgl_bench.encode_variants import torch_threads

    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, as in the engines
    how = _How(num_frames, threads, rounds, modes, batches, device)
    rows: list[Row] = []
    quality: list[Row] = []
    with torch_threads(threads):
        say("measuring torch's large product and reading")
        peaks = measure_peaks(device)
        for name in backbone.split(","):
            with TemporaryDirectory() as folder:
                loaded = load(name, pretrained, Path(folder) / "backbone")
                for one in methods_of(method):
                    say(f"{name}, {one}")
                    about = {"backbone": Path(name).name, "method": one}
                    timed, judged = _measure(about, loaded, how)
                    rows += timed
                    quality += judged
    for row in rows:
        row |= _of_the_peaks(row, peaks)
    kind = "encode-zero-shot" if method == "zero-shot" else "encode"
    if method == "zero-shot" and "," not in backbone:  # a run of its own, beside those of others
        kind += f"-{Path(backbone).name.lower()}"
    # A GPU's figures do not depend on the CPU's threads.
    named = with_threads(kind, threads) if device == "cpu" else f"{kind}-{device}"
    return _report(named, rows, quality, peaks)


@dataclass(frozen=True)
class _How:
    """As the command was told."""

    num_frames: int
    threads: int
    rounds: int
    modes: list[str]
    batches: tuple[int, ...]
    device: str


def _measure(about: Row, loaded: "Backbone", how: _How) -> tuple[list[Row], list[Row]]:
    """One backbone with one method: times, and the quality of lower precisions."""
    from dgl_bench.encode_subject import TASKS, make_subject
    from dgl_bench.encode_variants import engine_variants, torch_variants

    with TemporaryDirectory() as folder:
        subject = make_subject(loaded, about["method"], how.num_frames, Path(folder))
        variants = list(torch_variants(subject, how.modes, how.device))
        variants += engine_variants(subject, how.threads, how.device)
        rows: list[Row] = []
        for task, batch in product(TASKS, sorted({1, *how.batches})):
            asked = {**about, "task": task, "batch": batch}
            rows += _rows(asked, subject, variants, how.rounds)
        return rows, list(_quality(about, variants))


def _rows(about: Row, subject: "Subject", variants: list["Variant"], rounds: int) -> Iterator[Row]:
    """Time all variants of a task, paired; the time of one that is wrong means nothing and is not told."""
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
    found, first = paired.results, variants[0].name
    eager = {one.name for one in subject.in_torch}
    compiled = [one.name for one in variants if not one.any_batch and one.name in found]
    fastest = min(compiled, key=lambda name: paired.spread_ms(name).median, default=None)
    about = {**about, **subject.inputs.sizes(task)}
    for one in variants:
        name, remark = one.name, one.remarks.get(task)
        row = {**about, "variant": name, "precision": one.precision, "remark": remark}
        if name not in found:
            if task not in one.encode:  # else it is compiled for one query or clip alone
                yield row
            continue
        off = float(np.abs(found[name] - found[first]).max())
        cosine = float(cosines(found[name], found[first]).min())
        if wrong := _fault(one.precision, off, cosine):
            yield {**row, "remark": f"not measured, {wrong}", "wrong": True}
            continue
        ms, faster = paired.spread_ms(name), paired.speedup(name, over=first)
        row |= {"ms": ms, "a second": 1000 * batch / ms.median, "faster": faster}
        row["than compiled"] = paired.speedup(name, over=fastest) if fastest else None
        row |= {"off by": off, "cosine": cosine, "times_ms": paired.times_ms[name]}
        if name not in eager and batch == 1:
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


def _quality(about: Row, variants: list["Variant"]) -> Iterator[Row]:
    from dgl_export.quality import faults

    for one in variants:
        if (found := one.quality) is not None:
            row = {**about, "variant": one.name, "smallest cosine": found.min_cosine}
            row["mean cosine"] = found.mean_cosine
            row["same first clip, %"] = 100 * found.top1_agreement
            row["kept in fp32"] = " + ".join(map(str, one.kept))
            row["gate of dgl-export"] = "; ".join(faults(found, one.precision)) or "passes"
            yield {**row, "measured": asdict(found)}


def _report(name: str, rows: list[Row], quality: list[Row], peaks: Peaks) -> Report:
    from dgl_bench.encode_subject import CAPTION, CLIP, QUERY

    asked = ("backbone", "method", "task")
    wrong = [
        f"{', '.join(one[key] for key in asked)}, batch {one['batch']}: {one['variant']}: {one['remark'][14:]}"
        for one in rows
        if one.pop("wrong", False)
    ]
    tables = [
        Table(title, [{**one, "task": None} for one in rows if one["task"] == task])
        for task, title in ((QUERY, "Queries"), (CLIP, "Clips"))
    ]
    return Report(
        name=name,
        title="Encoding queries and clips",
        tables=[*tables, Table("Quality of the lower precisions", quality)],
        plots=list(_plots(rows)),
        settings={
            "backbone": " ".join(dict.fromkeys(one["backbone"] for one in rows)),
            "warm_up": WARM_UP,
            "caption": CAPTION,
            "peaks": str(peaks),
        },
        wrong=wrong,
        notes=_notes({one["method"] for one in rows}),
    )


def _plots(rows: list[Row]) -> Iterator[Plot]:
    """Latency and throughput against batch size, where there was more than one."""
    if len({one["batch"] for one in rows}) == 1:
        return
    several = len({one["backbone"] for one in rows}) > 1
    for about in dict.fromkeys((one["task"], one["method"], one["backbone"]) for one in rows):
        mine = [one for one in rows if (one["task"], one["method"], one["backbone"]) == about]
        larger = {one["variant"] for one in mine if one["batch"] > 1}
        drawn = [one for one in mine if one["variant"] in larger]
        told = about if several else about[:2]
        for kind, unit in (("latency", "ms"), ("throughput", "a second")):
            title = f"{kind.capitalize()} against batch: {', '.join(told)}"
            yield Plot("-".join((kind, *told)), title, "batch", unit, "variant", drawn, "xy")


def _notes(methods: set[str]) -> list[str]:
    from dgl_bench.encode_subject import OPEN_CLIP, PADDED_LENGTH, UNFOLDED, ZERO_SHOT
    from dgl_export.parity import MAX_ABS

    is_untuned = ZERO_SHOT in methods
    first = f"{OPEN_CLIP} (transformers)" if is_untuned else UNFOLDED
    return [
        "The same thread count for all. Every round times every variant once, in rotating order, each "
        f"right after {SETTLE} call of its own that is not timed. Wall clock of a whole batch, without "
        "tokenizing and decoding; median (p10 to p90) over rounds.",
        "open_clip, or transformers for BLIP: its own model, texts padded as its tokenizer pads them, "
        "pixels normalised in the call, a clip the mean of its unit frames; compiled, the same module in "
        "torch.compile. Of a vocabulary that needs a download a small one stands in, beside a table of its "
        "own size."
        if is_untuned
        else f"{first}: generators run in every call and the caption is padded to {PADDED_LENGTH} tokens, as "
        "in the research code; it has no caption prompts behind the end token, which that code also computes.",
        f"Faster: the time of {first!r} divided by the variant's, in each round; than compiled: that of the "
        "faster compiled mode. Off by: the largest difference of a number of the unit embedding from "
        f"{first!r}, and cosine to it, checked after the timing; above {MAX_ABS:.0e} in fp32, or below the "
        "precision's smallest cosine, a time means nothing and is not shown.",
        "ONNX Runtime's int8 finds the scale of a layer's input as it runs; OpenVINO's int8 has fixed ones.",
        "Quality: on made captions and clips that set no scale. With random weights (no --pretrained) all "
        "clips are alike and the first one is chance. What dgl-export would refuse is timed all the same. "
        "Kept in fp32: layers of the text encoder and of the clip encoder.",
        "Roofline: FLOP of the exported graph's matrix products and convolutions and the weights it reads, at "
        "the median time, against one large product of the same precision and a large read or copy in torch. "
        "Weights count with the precision's size, also those that stay in float32.",
    ]

"""What dgl-bench encode tells: the tables, their notes and the JSON document."""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.encode import CAPTION, SETTLE, EncodeResult, EncodeSettings, Series
from benchmarks.encode_variants import CLIP, FOLDED, QUERY, UNFOLDED, Variant
from benchmarks.machine import Peaks, describe_machine
from benchmarks.plots import line_plot, linked
from benchmarks.report import Report, Table, spread_cells, with_threads
from benchmarks.timing import WARM_UP
from dgl_export.parity import MAX_ABS
from dgl_export.quality import faults

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}


def make_report(result: EncodeResult, plots: Sequence[str] = ()) -> Report:
    """Tables for people, every raw number for programs; ``plots`` is what :func:`write_plots` said."""
    settings, inputs, series = result.settings, result.inputs, result.series
    shown = asdict(settings) | {
        "backbone": Path(settings.backbone).name,
        "pretrained": Path(settings.pretrained).name or "none (random weights)",
        "warm_up": WARM_UP,
        "caption": CAPTION,
        "caption_tokens": inputs.tokens.shape[1],
        "padded_tokens": inputs.padded.shape[1],
    }
    single = [one for one in series if one.batch == 1]
    titles = {
        QUERY: f"One query, {inputs.tokens.shape[1]} tokens",
        CLIP: f"One clip, {settings.num_frames} frames",
    }
    larger = [one for one in series if one.batch > 1]
    return Report(
        name=_name(settings),
        title="Encoding queries and clips",
        date=datetime.date.today().isoformat(),
        machine=describe_machine(),
        settings={key: _shown(value) for key, value in shown.items()},
        tables=[
            *(_latency_table(title, task, single) for task, title in titles.items()),
            *([_batch_table(series)] if larger else []),
            _quality_table(single),
            _roofline_table(single, result.peaks),
        ],
        notes=[*_notes(result), *plots],
        data={
            "peaks": asdict(result.peaks),
            "load_before": result.load_before,
            "series": [
                {"method": one.method, "task": one.task, "batch": one.batch}
                | asdict(one.work)
                | {"rows": [_row(one, variant) for variant in one.variants]}
                for one in series
            ],
        },
    )


def write_plots(result: EncodeResult, folder: Path) -> list[str]:
    """Latency and throughput against batch size, where there was more than one; as markdown links."""
    return linked(_plots(result, folder)) if len(result.settings.batches) > 1 else []


def _plots(result: EncodeResult, folder: Path) -> Iterator[tuple[str, Path]]:
    name, stem = (
        _name(result.settings),
        f"{describe_machine(()).slug}-{datetime.date.today().isoformat()}",
    )
    for method, task in dict.fromkeys((one.method, one.task) for one in result.series):
        mine = [one for one in result.series if (one.method, one.task) == (method, task)]
        names = [variant.name for variant in mine[0].variants if variant.any_batch]
        names = [name for name in names if all(name in one.paired.results for one in mine)]
        latency = {
            name: [(float(one.batch), one.paired.spread_ms(name).median) for one in mine]
            for name in names
        }
        rate = {
            name: [(batch, 1000 * batch / ms) for batch, ms in points]
            for name, points in latency.items()
        }
        for kind, unit, series in (("latency", "ms", latency), ("throughput", "a second", rate)):
            title = f"{kind.capitalize()} against batch: {task}, {method}"
            path = folder / f"{name}-{kind}-{task}-{method}-{stem}.png"
            yield title, line_plot(title, "batch", unit, series, path, log_x=True, log_y=True)


def _name(settings: EncodeSettings) -> str:
    """A GPU's figures do not depend on the CPU's threads."""
    if settings.device == "cpu":
        return with_threads("encode", settings.threads)
    return f"encode-{settings.device}"


def _shown(value: object) -> object:
    return " ".join(map(str, value)) or "-" if isinstance(value, tuple) else value


def _notes(result: EncodeResult) -> list[str]:
    padded = result.inputs.padded.shape[1]
    return [
        "The same thread count for all. Every round times every variant once, in rotating order, each right "
        f"after {SETTLE} call of its own that is not timed. Wall clock, without tokenizing and decoding.",
        f"{UNFOLDED}: generators run in every call and the caption is padded to {padded} "
        "tokens, as in the research code; it has no caption prompts behind the end token, which that code "
        "also computes.",
        f"Faster: median, p10 and p90 over rounds of the time of {UNFOLDED!r} divided by the variant's.",
        f"Off: largest difference of the unit embedding from {UNFOLDED!r}, and cosine to it, checked after "
        f"the timing; above {MAX_ABS:.0e} in fp32, or below the precision's smallest cosine, a variant's "
        "time means nothing and is not shown.",
        "ONNX Runtime's int8 finds the scale of a layer's input as it runs; OpenVINO's int8 has fixed ones, "
        "set on made captions and clips.",
        "Quality: on made captions and clips that set no scale. Weights are random unless --pretrained says "
        "otherwise: then all clips are alike and the first one is chance. What dgl-export would refuse is "
        "timed all the same, unless it is off on the timed input; the last column says so. dgl-bench quality "
        "measures recall.",
        "Kept in fp32: layers of the caption graph and of the clip graph.",
        "Roofline: FLOP of the folded graph's matrix products and the weights it reads, at the median time, "
        "against a large matrix product of the same precision and a large read or copy in torch, measured "
        "before and after (the better of both). Weights count with the precision's size, also those that "
        "stay in float32.",
        f"Load average before the run: {result.load_before}. On a busy machine torch, which waits for all of "
        "its threads, loses more than ONNX Runtime: publish only what a quiet machine gave.",
    ]


def _row(one: Series, variant: Variant) -> dict[str, object]:
    """A variant as JSON types."""
    row: dict[str, object] = {"variant": variant.name, "precision": variant.precision}
    if one.task in variant.remarks:
        row["remark"] = variant.remarks[one.task]
    if variant.quality is not None:
        row |= {"quality": asdict(variant.quality), "kept": variant.kept}
    if variant.name in one.paired.results:
        row |= {
            "latency_ms": asdict(one.paired.spread_ms(variant.name)),
            "speedup": asdict(one.paired.speedup(variant.name, over=UNFOLDED)),
            "max_abs": one.max_abs(variant.name),
            "min_cosine": one.min_cosine(variant.name),
            "times_ms": one.paired.times_ms[variant.name],
        }
    return row


def _latency_table(title: str, task: str, series: list[Series]) -> Table:
    columns = ["method", "variant", "ms", "p10", "p90", "faster", "p10", "p90", "off", "cosine", ""]
    rows = [_cells(one, variant) for one in series if one.task == task for variant in one.variants]
    return Table(title, columns, rows, text_columns=2)


def _cells(one: Series, variant: Variant) -> list[str]:
    remark = variant.remarks.get(one.task, "")
    name = variant.name
    if name not in one.paired.results:
        return [one.method, f"{name}: {remark}", *([""] * 9)]
    return [
        one.method,
        name,
        *spread_cells(one.paired.spread_ms(name), 1),
        *spread_cells(one.paired.speedup(name, over=UNFOLDED), 2),
        *(
            [f"{one.max_abs(name):.0e}", f"{one.min_cosine(name):.5f}"]
            if name != UNFOLDED
            else ["", ""]
        ),
        remark,
    ]


def _batch_table(series: list[Series]) -> Table:
    """Milliseconds a query or clip, one column a batch size."""
    batches = sorted({one.batch for one in series})
    rows = []
    for method, task in dict.fromkeys((one.method, one.task) for one in series):
        mine = {one.batch: one for one in series if (one.method, one.task) == (method, task)}
        for variant in mine[batches[0]].variants:
            if variant.any_batch and all(
                variant.name in one.paired.results for one in mine.values()
            ):
                times = [
                    mine[batch].paired.spread_ms(variant.name).median / batch for batch in batches
                ]
                rows.append([method, task, variant.name, *(f"{ms:.2f}" for ms in times)])
    columns = ["method", "task", "variant", *(f"batch {batch}" for batch in batches)]
    return Table("Milliseconds a query or clip, in batches", columns, rows, text_columns=3)


def _quality_table(series: list[Series]) -> Table:
    rows = []
    for one in series:
        for variant in one.variants:
            if one.task == CLIP and variant.quality is not None:
                measured = variant.quality
                rows.append(
                    [
                        one.method,
                        variant.name,
                        f"{measured.min_cosine:.5f}",
                        f"{measured.mean_cosine:.5f}",
                        f"{measured.top1_agreement:.1%}",
                        f"{measured.num_captions} x {measured.num_clips}",
                        " + ".join(map(str, variant.kept)),
                        "; ".join(faults(measured, variant.precision)) or "passes",
                    ]
                )
    columns = [
        "method",
        "variant",
        "smallest cosine",
        "mean",
        "same first clip",
        "captions x clips",
        "kept in fp32",
        "gate of dgl-export",
    ]
    return Table("Quality of the lower precisions", columns, rows, text_columns=2)


def _roofline_table(series: list[Series], peaks: Peaks) -> Table:
    return Table(
        "Roofline: "
        + ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in peaks.flop_per_s.items())
        + f" GFLOP/s (int8: GOP/s), memory {peaks.bytes_per_s / 1e9:.0f} GB/s",
        [
            "method",
            "task",
            "variant",
            "GFLOP",
            "weights MB",
            "of matrix peak",
            "of memory bandwidth",
        ],
        [row for one in series for row in _rooflines(one, peaks)],
        text_columns=3,
    )


def _rooflines(one: Series, peaks: Peaks) -> Iterator[list[str]]:
    for variant in one.variants:
        if variant.name in (UNFOLDED, FOLDED) or variant.name not in one.paired.results:
            continue
        seconds = one.paired.spread_ms(variant.name).median / 1000
        peak = peaks.flop_per_s.get(variant.precision)
        size = one.work.weights * _BYTES[variant.precision]
        yield [
            one.method,
            one.task,
            variant.name,
            f"{one.work.flop / 1e9:.2f}",
            f"{size / 1e6:.0f}",
            f"{100 * one.work.flop / seconds / peak:.0f}%" if peak else "-",
            f"{100 * size / seconds / peaks.bytes_per_s:.0f}%",
        ]

"""What dgl-bench encode tells: the tables, their notes and the JSON document."""

import datetime
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.encode import (
    CAPTION,
    CLIP,
    COMPILED,
    ONNX,
    QUERY,
    UNFOLDED,
    VARIANTS,
    EncodeResult,
    Series,
)
from benchmarks.machine import Peaks, describe_machine
from benchmarks.report import Report, Table, spread_cells
from benchmarks.timing import WARM_UP
from dgl_export.parity import MAX_ABS


def make_report(result: EncodeResult) -> Report:
    """Tables for people, every raw number for programs."""
    settings, inputs, series = result.settings, result.inputs, result.series
    shown = asdict(settings) | {
        "backbone": Path(settings.backbone).name,
        "pretrained": Path(settings.pretrained).name or "none (random weights)",
        "methods": list(settings.methods),
        "warm_up": WARM_UP,
        "caption": CAPTION,
        "caption_tokens": inputs.tokens.shape[1],
        "padded_tokens": inputs.padded.shape[1],
    }
    titles = {
        QUERY: f"One query, {inputs.tokens.shape[1]} tokens",
        CLIP: f"One clip, {settings.num_frames} frames",
    }
    return Report(
        name="encode",
        title="Latency of one query and one clip",
        date=datetime.date.today().isoformat(),
        machine=describe_machine(),
        settings=shown,
        tables=[
            *(_latency_table(title, task, series) for task, title in titles.items()),
            _roofline_table(series, result.peaks),
        ],
        notes=_notes(result),
        data={
            "peaks": asdict(result.peaks),
            "load_before": result.load_before,
            "series": [
                {"method": one.method, "task": one.task} | asdict(one.work) | {"rows": _rows(one)}
                for one in series
            ],
        },
    )


def _notes(result: EncodeResult) -> list[str]:
    padded = result.inputs.padded.shape[1]
    return [
        "Batch 1, float32, the same thread count for all. Every round runs every variant once, in "
        "rotating order; times are wall clock, without tokenizing and decoding.",
        f"{UNFOLDED}: generators run in every call and the caption is padded to {padded} "
        "tokens, as in the research code; it has no caption prompts behind the end token, which that code "
        "also computes.",
        f"Faster: median, p10 and p90 over rounds of the time of {UNFOLDED!r} divided by the variant's.",
        f"Off: largest difference of the unit embedding from {UNFOLDED!r}, checked after the timing; "
        f"above {MAX_ABS:.0e} there would be no report.",
        "Roofline: FLOP of the folded graph's matrix products and the bytes of weights it reads, at the "
        "median time, against a large matrix product and a large read or copy measured before and after "
        "(the better of both).",
        f"Load average before the run: {result.load_before}. On a busy machine torch, which waits for all of "
        "its threads, loses more than ONNX Runtime: publish only what a quiet machine gave.",
    ]


def _rows(one: Series) -> list[dict[str, object]]:
    """Every variant asked for, as JSON types."""
    rows: list[dict[str, object]] = []
    for variant in VARIANTS:
        compiled = one.compiled if variant == COMPILED else None
        row: dict[str, object] = {"variant": variant}
        if compiled is not None:
            row |= {"compile_s": compiled.seconds, "failure": compiled.failure}
        if variant in one.paired.results:
            row |= {
                "latency_ms": asdict(one.paired.spread_ms(variant)),
                "speedup": asdict(one.paired.speedup(variant, over=UNFOLDED)),
                "max_abs": one.max_abs(variant),
                "times_ms": one.paired.times_ms[variant],
            }
        if len(row) > 1:
            rows.append(row)
    return rows


def _latency_table(title: str, task: str, series: list[Series]) -> Table:
    columns = [
        "method",
        "variant",
        "ms",
        "p10",
        "p90",
        "faster",
        "p10",
        "p90",
        "off",
        "compiled in",
    ]
    rows = [cells for one in series if one.task == task for cells in _cells(one)]
    return Table(title, columns, rows, text_columns=2)


def _cells(one: Series) -> Iterator[list[str]]:
    for variant in VARIANTS:
        compiled = one.compiled if variant == COMPILED else None
        if variant in one.paired.results:
            yield [
                one.method,
                variant,
                *spread_cells(one.paired.spread_ms(variant), 1),
                *spread_cells(one.paired.speedup(variant, over=UNFOLDED), 2),
                f"{one.max_abs(variant):.0e}" if variant != UNFOLDED else "",
                f"{compiled.seconds:.0f} s" if compiled else "",
            ]
        elif compiled is not None:
            yield [one.method, f"{variant}: {compiled.failure}", *([""] * 8)]


def _roofline_table(series: list[Series], peaks: Peaks) -> Table:
    rows = []
    for one in series:
        seconds = one.paired.spread_ms(ONNX).median / 1000
        rows.append(
            [
                one.method,
                one.task,
                f"{one.work.flop / 1e9:.2f}",
                f"{one.work.weight_bytes / 1e6:.0f}",
                f"{100 * one.work.flop / seconds / peaks.flop_per_s:.0f}%",
                f"{100 * one.work.weight_bytes / seconds / peaks.bytes_per_s:.0f}%",
            ]
        )
    title = (
        f"Roofline of {ONNX}: matrix peak {peaks.flop_per_s / 1e9:.0f} GFLOP/s, "
        f"memory {peaks.bytes_per_s / 1e9:.0f} GB/s"
    )
    columns = ["method", "task", "GFLOP", "weights MB", "of matrix peak", "of memory bandwidth"]
    return Table(title, columns, rows, text_columns=2)

"""dgl-bench quality: what every format and precision of a tuned model retrieves, and how fast."""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch

from benchmarks.machine import describe_machine
from benchmarks.plots import line_plot, linked
from benchmarks.report import Report, Table
from benchmarks.timing import Spread, time_paired
from dgl_export.bundle_writer import write_bundle
from dgl_export.calibration import read_calibration
from dgl_export.formats import FLOAT32_ONNX, WRITTEN, Target
from dgl_export.quality import Embeddings, compare
from dgl_export.request import tuned_request
from dgl_runtime.bundle.manifest import Quality
from dgl_runtime.errors import DglError
from dgl_train.data.datasets import read_dataset, select_split
from dgl_train.evaluation.evaluate import (
    Encoders,
    bundle_encoders,
    embed_dataset,
    report,
    torch_encoders,
)

TORCH = "torch, as trained"
# On this machine's CPU; bf16 in ONNX Runtime and TensorRT's formats need a GPU.
TARGETS = {
    f"{form} {precision}": Target(form, precision)
    for form in ("onnx", "openvino")
    for precision in WRITTEN[form]
    if (form, precision) != ("onnx", "bf16")
}
QUERY = "a red circle moves left over a dark background"


@dataclass(frozen=True)
class QualitySettings:
    """What to measure."""

    run: Path
    dataset: str
    data_root: Path | None
    split: str
    rounds: int


@dataclass(frozen=True)
class Measured:
    """One model's retrieval and speed; or why it was not measured."""

    name: str
    failure: str = ""
    megabytes: float = 0.0
    recall: tuple[float, float, float] = (0.0, 0.0, 0.0)  # R@1, R@5, R@10, text to video
    cost: Quality | None = None  # against torch
    query_ms: Spread | None = None
    clip_ms: Spread | None = None


def bench_quality(settings: QualitySettings) -> list[Measured]:
    """Export a run to every target, evaluate all on one split, then time them side by side.

    Raises:
        ConfigError: The run or the data set cannot be read.
        MediaError: A video cannot be read.
    """
    clips = select_split(
        read_dataset(settings.dataset, settings.data_root), settings.split, settings.dataset
    )
    with TemporaryDirectory() as folder:
        opened = list(_open_all(settings, Path(folder)))
        ready = {one.name: encoders for one, encoders in opened if encoders is not None}
        times = _time(ready, settings.rounds)
        exact = None
        results = []
        for one, encoders in opened:
            if encoders is None:
                results.append(one)
                continue
            click.echo(f"{one.name}: evaluating", err=True)
            embedded = embed_dataset(encoders, clips)
            ours = Embeddings(embedded.captions, embedded.clips)
            exact = exact or ours
            recall = report(embedded).text_to_video
            results.append(
                Measured(
                    one.name,
                    megabytes=one.megabytes,
                    recall=(recall.r1, recall.r5, recall.r10),
                    cost=compare(ours, exact, embedded.caption_clip),
                    query_ms=times["query"][one.name],
                    clip_ms=times["clip"][one.name],
                )
            )
    return results


def _open_all(
    settings: QualitySettings, folder: Path
) -> Iterator[tuple[Measured, Encoders | None]]:
    request = tuned_request(settings.run)
    yield Measured(TORCH), torch_encoders(request.model, torch.device("cpu"))
    calibration = read_calibration(
        settings.dataset, settings.data_root, request.frames, request.tokenizer
    )
    for name, target in TARGETS.items():
        click.echo(f"{name}: exporting", err=True)
        out = folder / f"{target.form}-{target.precision}"
        try:
            write_bundle(request, out, target, None if target == FLOAT32_ONNX else calibration)
        except (DglError, ModuleNotFoundError) as error:
            yield Measured(name, failure=" ".join(str(error).split())), None
            continue
        size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
        yield Measured(name, megabytes=size), bundle_encoders(out, engine=target.form)


def _time(ready: dict[str, Encoders], rounds: int) -> dict[str, dict[str, Spread]]:
    first = next(iter(ready.values()))
    spec = first.frames
    frames = np.zeros((1, spec.num_frames, 3, spec.size, spec.size), np.uint8)
    spreads = {}
    for task in ("query", "clip"):
        calls: dict[str, Any] = {
            name: partial(one.embed_captions, [QUERY])
            if task == "query"
            else partial(one.embed_clips, frames)
            for name, one in ready.items()
        }
        paired = time_paired(calls, rounds=rounds, label=task)
        spreads[task] = {name: paired.spread_ms(name) for name in calls}
    return spreads


def write_plot(results: list[Measured], folder: Path) -> list[str]:
    """R@1 against the time of a clip, one point a model; as a markdown link."""
    return linked(_plots(results, folder))


def _plots(results: list[Measured], folder: Path) -> Iterator[tuple[str, Path]]:
    title = "R@1 against the time of a clip"
    points = {one.name: [(one.clip_ms.median, one.recall[0])] for one in results if one.clip_ms}
    stem = f"{describe_machine(()).slug}-{datetime.date.today().isoformat()}"
    path = folder / f"quality-{stem}.png"
    yield title, line_plot(title, "ms a clip", "R@1, percent", points, path)


def make_report(
    settings: QualitySettings, results: list[Measured], plots: Sequence[str] = ()
) -> Report:
    """A table for people, every number for programs; ``plots`` is what :func:`write_plot` said."""
    cost = results[0].cost
    sizes = f"{cost.num_captions} captions, {cost.num_clips} clips" if cost else ""
    return Report(
        name="quality",
        title="Retrieval of every format and precision",
        date=datetime.date.today().isoformat(),
        machine=describe_machine(),
        settings={
            "run": settings.run.name,
            "dataset": Path(settings.dataset).name,
            "split": f"{settings.split} ({sizes})",
            "rounds": settings.rounds,
        },
        tables=[_table(results)],
        notes=[
            "Scales of int8, layers that stay in float32 and the gate of each export come from the val split.",
            "Same first clip: share of captions whose first clip is the trained model's, or 0.001 from it.",
            "Milliseconds: median of paired rounds, one query with its tokenizing, one clip without decoding.",
            *plots,
        ],
        data={"results": [asdict(one) for one in results]},
    )


def _table(results: list[Measured]) -> Table:
    columns = [
        *("model", "MB", "R@1", "R@5", "R@10", "same first clip", "smallest cosine"),
        *("query ms", "clip ms"),
    ]
    return Table("Text to video", columns, [_cells(one) for one in results], text_columns=1)


def _cells(one: Measured) -> list[str]:
    if one.cost is None or one.query_ms is None or one.clip_ms is None:
        return [f"{one.name}: {one.failure}", *([""] * 8)]
    return [
        one.name,
        f"{one.megabytes:.0f}" if one.megabytes else "",
        *(f"{number:.1f}" for number in one.recall),
        f"{one.cost.top1_agreement:.1%}",
        f"{one.cost.min_cosine:.5f}",
        f"{one.query_ms.median:.2f}",
        f"{one.clip_ms.median:.1f}",
    ]

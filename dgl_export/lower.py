"""From float32 graphs to a lower precision: convert, keep what loses too much, gate."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from dgl_export import quality
from dgl_export.calibration import Calibration
from dgl_export.formats import Target, WrittenGraph, write_graph
from dgl_export.mixed import LOW_TYPES, halve_token_table, round_to, to_mixed
from dgl_export.observe import (
    Feeds,
    Float32,
    Layer,
    Rounding,
    layer_errors,
    linear_layers,
    observe,
    weights_of,
)
from dgl_export.quantize import Quantizer, to_dynamic, to_qdq
from dgl_export.smooth import smooth
from dgl_runtime.bundle import MIN_COSINE, Graph, Quality
from dgl_runtime.engines import Engine, open_engine
from dgl_runtime.errors import ExportError

_KEPT_AT_MOST = 0.4  # of the layers; what keeps more is no int8 graph
_WORST_SHOWN = 3


@dataclass(frozen=True)
class Conversion:
    """One way to a lower precision for one graph."""

    roundings: Callable[[Layer], tuple[Rounding, Rounding]]
    convert: Callable[[Collection[str]], onnx.ModelProto]  # given the layers to keep
    may_keep: bool


@dataclass(frozen=True)
class Lowered:
    """A graph in the lower precision; of each layer, the share of its output that is rounding error."""

    written: WrittenGraph
    errors: dict[str, float]


def lower(
    folder: Path, graphs: Sequence[Graph], target: Target, calibration: Calibration, out: Path
) -> tuple[list[Lowered], Quality]:
    """Convert the caption graph and the clip graph.

    Args:
        folder: Where the float32 graphs lie.
        graphs: The caption graph and the clip graph.
        target: Format and precision.
        calibration: The half that scales and kept layers are chosen on, and the half that judges.
        out: Where the new graphs are written.

    Returns:
        The new graphs, and what they cost together.

    Raises:
        ExportError: They cost more than the gate allows, or nothing in them has that precision.
    """
    exact = [open_engine(folder / graph.file, device="cpu", threads=0) for graph in graphs]
    calibrates, judges = calibration.calibrates, calibration.judges
    inputs: list[list[Feeds]] = [[*calibrates.caption_feeds()], [*calibrates.clip_feeds()]]
    lowered = [
        _lower_one(folder / graph.file, graph, target, (engine, feeds), out)
        for graph, engine, feeds in zip(graphs, exact, inputs, strict=True)
    ]
    ours = quality.embed_half([one.written.engine for one in lowered], judges)
    measured = quality.compare(ours, quality.embed_half(exact, judges), judges.answers)
    quality.require(measured, target.precision, _worst(graphs, lowered))
    return lowered, measured


def _lower_one(
    path: Path, graph: Graph, target: Target, exact: tuple[Engine, Sequence[Feeds]], out: Path
) -> Lowered:
    """Keep no layer, then the worst 2, 4, 8 ..., until the calibrating half is close enough."""
    model = onnx.load(path)
    engine, feeds = exact
    wanted = quality.embed(engine, feeds)
    rows = observe(model, feeds)
    if target.precision not in LOW_TYPES:
        model = halve_token_table(model)
    if (
        target.precision == "int8"
    ):  # fp8 has steps as small as a number is: outliers cost it nothing
        model, rows = smooth(model, rows)
    layers = linear_layers(model)
    way = _conversion(model, target, rows)
    errors = layer_errors(layers, weights_of(model, layers), rows, way.roundings)
    aim = 1 - (1 - MIN_COSINE[target.precision]) / 2
    for keep in _keeps(list(errors)) if way.may_keep else [[]]:
        written = write_graph(way.convert(keep), graph, target, (out, keep))
        if quality.min_cosine(quality.embed(written.engine, feeds), wanted) >= aim:
            break
    if not written.graph.low_precision_nodes:
        raise ExportError(
            f"{graph.file} has no node in {target.precision} after the conversion; 1 or more expected. "
            "Please report the backbone, the method and the versions of onnx and onnxruntime."
        )
    return Lowered(written, errors)


def _conversion(model: onnx.ModelProto, target: Target, rows: dict[str, Float32]) -> Conversion:
    precision = target.precision
    if precision in LOW_TYPES:
        to_low = round_to(precision)
        if (
            target.form == "openvino"
        ):  # which casts by itself, and fuses more than it would across ours
            return Conversion(lambda _: (to_low, to_low), lambda _: model, may_keep=False)
        return Conversion(
            lambda _: (to_low, to_low), lambda _: to_mixed(model, precision), may_keep=False
        )
    quantizer = Quantizer.calibrated(precision, rows)
    if target.form == "onnx":
        return Conversion(quantizer.roundings, lambda keep: to_dynamic(model, keep), may_keep=True)
    return Conversion(
        quantizer.roundings, lambda keep: to_qdq(model, quantizer, keep), may_keep=True
    )


def _keeps(worst_first: list[str]) -> Iterator[list[str]]:
    yield []
    count = 2
    while count <= _KEPT_AT_MOST * len(worst_first):
        yield worst_first[:count]
        count *= 2


def _worst(graphs: Sequence[Graph], lowered: Sequence[Lowered]) -> str:
    parts = []
    for graph, one in zip(graphs, lowered, strict=True):
        errors = [item for item in one.errors.items() if item[0] not in one.written.graph.kept]
        shown = ", ".join(f"{name} ({error:.2%})" for name, error in errors[:_WORST_SHOWN])
        parts.append(f"{graph.file} {shown}")
    return "; ".join(parts)

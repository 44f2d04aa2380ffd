"""From float32 graphs to fp16, bf16, int8 or fp8: convert, keep what loses too much, judge."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from dgl_export import quality
from dgl_export.calibration import Calibration
from dgl_export.formats import Target, WrittenGraph, write_graph
from dgl_export.graph_files import load_graph
from dgl_export.layer_statistics import (
    Feeds,
    Float32,
    Layer,
    Rounding,
    layer_errors,
    linear_layers,
    observe,
    weights_of,
)
from dgl_export.mixed import LOW_TYPES, halve_token_table, round_to, to_mixed
from dgl_export.quantize import Quantizer, to_dynamic, to_qdq
from dgl_export.smooth import smooth
from dgl_runtime.bundle.manifest import MIN_COSINE, Graph, Quality
from dgl_runtime.engines.opening import open_engine
from dgl_runtime.errors import ExportError

MOST_KEPT = 0.4  # of the layers; what keeps more is no int8 graph
_WORST_SHOWN = 3


@dataclass(frozen=True)
class Conversion:
    """One way to a lower precision for one graph."""

    roundings: Callable[[Layer], tuple[Rounding, Rounding]]
    convert: Callable[[Collection[str]], onnx.ModelProto]  # given the layers to keep
    may_keep: bool


@dataclass(frozen=True)
class Prepared:
    """A float32 graph that is ready to be converted."""

    graph: Graph
    conversion: Conversion
    errors: dict[
        str, float
    ]  # of each layer, the share of its output that is rounding error; worst first

    def write(self, count: int, target: Target, out: Path) -> WrittenGraph:
        """Convert and write it, with the worst ``count`` layers kept in float32."""
        keep = list(self.errors)[:count]
        written = write_graph(self.conversion.convert(keep), self.graph, target, (out, keep))
        if not written.graph.low_precision_nodes:
            raise ExportError(
                f"{self.graph.file} has no node in {target.precision} after the conversion; 1 or more "
                "expected. Please report the backbone, the method and the versions of onnx and onnxruntime."
            )
        return written


@dataclass(frozen=True)
class Lowered:
    """The graphs of a lower precision, and what they cost together; not gated yet."""

    written: list[WrittenGraph]  # captions, clips
    measured: Quality  # on the half that judges
    precision: str
    worst_layers: str  # in words

    def require(self) -> None:
        """Pass the gate.

        Raises:
            ExportError: They cost more than it allows.
        """
        quality.require(self.measured, self.precision, self.worst_layers)


def lower(
    folder: Path, graphs: Sequence[Graph], target: Target, calibration: Calibration, out: Path
) -> Lowered:
    """Convert the text encoder and the clip encoder.

    No layer is kept in float32 at first, then the worst 2, 4, 8 ... of each graph, until the half that sets
    scales passes the gate with room to spare. The other half judges.

    Args:
        folder: Where the float32 graphs lie.
        graphs: The text encoder and the clip encoder.
        target: Format and precision.
        calibration: The half that scales and kept layers are chosen on, and the half that judges.
        out: Where the new graphs are written.

    Raises:
        ExportError: Nothing in them has that precision.
    """
    exact = [open_engine(folder / graph.file, device="cpu", threads=0) for graph in graphs]
    calibrates, judges = calibration.calibrates, calibration.judges
    feeds: list[Iterable[Feeds]] = [calibrates.caption_feeds(), calibrates.clip_feeds()]
    prepared = [
        _prepare(folder, graph, target, inputs) for graph, inputs in zip(graphs, feeds, strict=True)
    ]
    true = quality.embed_half(exact, calibrates)
    aim = 1 - (1 - MIN_COSINE[target.precision]) / 2
    for count in _counts(prepared):
        written = [one.write(count, target, out) for one in prepared]
        ours = quality.embed_half([one.engine for one in written], calibrates)
        measured = quality.compare(ours, true, calibrates.answers)
        if measured.min_cosine >= aim and not quality.faults(measured, target.precision):
            break
    ours = quality.embed_half([one.engine for one in written], judges)
    measured = quality.compare(ours, quality.embed_half(exact, judges), judges.answers)
    return Lowered(written, measured, target.precision, _worst(prepared, count))


def _prepare(folder: Path, graph: Graph, target: Target, feeds: Iterable[Feeds]) -> Prepared:
    model = load_graph(folder / graph.file)
    rows = observe(model, feeds)
    if target.precision not in LOW_TYPES:
        model = halve_token_table(model)
    if target.precision == "int8":  # fp8's steps are as small as its numbers: outliers cost nothing
        model, rows = smooth(model, rows)
    layers = linear_layers(model)
    conversion = _conversion(model, target, rows)
    errors = layer_errors(layers, weights_of(model, layers), rows, conversion.roundings)
    return Prepared(graph, conversion, errors)


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


def _counts(prepared: Sequence[Prepared]) -> Iterator[int]:
    """How many layers of each graph to keep, one try after the other."""
    yield 0
    count = 2
    fewest = min(len(one.errors) for one in prepared)
    while all(one.conversion.may_keep for one in prepared) and count <= MOST_KEPT * fewest:
        yield count
        count *= 2


def _worst(prepared: Sequence[Prepared], kept: int) -> str:
    parts = []
    for one in prepared:
        errors = list(one.errors.items())[kept : kept + _WORST_SHOWN]
        shown = ", ".join(f"{name} ({error:.2%})" for name, error in errors)
        parts.append(f"{one.graph.file} {shown}")
    return "; ".join(parts)

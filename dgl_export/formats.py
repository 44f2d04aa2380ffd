"""Graphs as files of each format, opened to be measured before they are published."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from dgl_export.calibration import FEWEST
from dgl_export.graph_files import save_graph
from dgl_export.mixed import LOW_TYPES, count_low_precision, emulated
from dgl_export.quantize import LARGEST, count_quantized
from dgl_runtime.bundle.manifest import FORMATS, PRECISIONS, Graph
from dgl_runtime.encoder.rebuild import LIBRARIES
from dgl_runtime.engines.engine import Engine
from dgl_runtime.engines.opening import open_engine
from dgl_runtime.engines.openvino import core
from dgl_runtime.errors import ExportError, reason_of
from dgl_runtime.plain_path import plain_path

# What each format is written in.
WRITTEN = {
    "onnx": ("fp32", "fp16", "bf16", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "trt": PRECISIONS,
    "trt-rtx": PRECISIONS,
}


@dataclass(frozen=True)
class Target:
    """What a bundle is written as."""

    form: str  # one of dgl_runtime.bundle.manifest.FORMATS
    precision: str  # one of dgl_runtime.bundle.manifest.PRECISIONS

    def __post_init__(self) -> None:
        """Refuse what no engine runs.

        Raises:
            ExportError: Unknown, or the format is not written in that precision.
        """
        if self.form not in FORMATS or self.precision not in WRITTEN[self.form]:
            raise ExportError(
                f"--format {self.form} --precision {self.precision} is not written; "
                + "; ".join(f"{form}: {', '.join(known)}" for form, known in WRITTEN.items())
                + "."
            )

    @property
    def library(self) -> str | None:
        """The engine whose files are built into the bundle, of dgl_runtime.engines.tensorrt_library."""
        return LIBRARIES.get(self.form)

    def require_calibration(self, given: str | None) -> None:
        """Refuse int8 and fp8 without what sets and judges their scales.

        Raises:
            ExportError: Nothing was given.
        """
        if self.precision in LARGEST and given is None:
            raise ExportError(
                f"--precision {self.precision} needs --calibrate: a folder of videos, or a csv of captioned "
                f"clips, like those you will search. {FEWEST} clips at least, better 64 or more."
            )


FLOAT32_ONNX = Target("onnx", "fp32")


@dataclass(frozen=True)
class WrittenGraph:
    """A graph on disk, opened on this machine's CPU."""

    graph: Graph
    engine: Engine


def write_graph(
    model: onnx.ModelProto, graph: Graph, target: Target, place: tuple[Path, Collection[str]]
) -> WrittenGraph:
    """Write a graph as .onnx with .onnx.data, or as OpenVINO's .xml with .bin; replaces an earlier one.

    TensorRT's engines are built from the .onnx; here it runs in ONNX Runtime.

    Args:
        model: The graph in the target's precision.
        graph: What the manifest says of it in float32.
        target: Format and precision.
        place: The folder, and the layers that were kept in float32.
    """
    folder, kept = place
    write = _write_openvino if target.form == "openvino" else _write_onnx
    path, weights, engine = write(model, target, folder / graph.file)
    count = _count_openvino if target.form == "openvino" else _count_onnx
    described = replace(
        graph,
        file=path.name,
        weights=weights,
        precision=target.precision,
        low_precision_nodes=0 if target.precision == "fp32" else count(path, target.precision),
        kept=tuple(kept),
    )
    return WrittenGraph(described, engine)


def _write_onnx(model: onnx.ModelProto, target: Target, path: Path) -> tuple[Path, str, Engine]:
    weights = save_graph(model, path)
    if target.precision != "bf16":
        return path, weights, open_engine(path, device="cpu", threads=0)
    with TemporaryDirectory() as elsewhere:  # ONNX Runtime has no bf16 on CPUs
        copy = Path(elsewhere) / path.name
        save_graph(emulated(model, "bf16"), copy)
        return path, weights, open_engine(copy, device="cpu", threads=0)


def _write_openvino(
    model: onnx.ModelProto, target: Target, onnx_path: Path
) -> tuple[Path, str, Engine]:
    import openvino

    path = onnx_path.with_suffix(".xml")
    with TemporaryDirectory() as elsewhere:
        source = Path(elsewhere) / onnx_path.name
        save_graph(model, source)
        try:
            converted = openvino.convert_model(source)
        except Exception as error:  # OpenVINO raises classes of its own
            raise ExportError(
                f"OpenVINO {openvino.__version__} does not read {source.name}: {reason_of(error)}. "
                "Take --format onnx, and please report the method and the precision."
            ) from error
        with plain_path(path) as plain:
            openvino.save_model(converted, plain, compress_to_fp16=target.precision == "bf16")
    engine = open_engine(
        path, device="cpu", threads=0, engine="openvino", precision=target.precision
    )
    return path, path.with_suffix(".bin").name, engine


def _count_onnx(path: Path, precision: str) -> int:
    model = onnx.load(path, load_external_data=False)
    if precision in LOW_TYPES:
        return count_low_precision(model, precision)
    return count_quantized(model)


def _count_openvino(path: Path, precision: str) -> int:
    """Matrix products that OpenVINO really runs in that precision, by its own account."""
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    with plain_path(path) as plain:
        compiled = core().compile_model(plain, "CPU", settings)
    wanted = {"bf16": {"bf16"}, "int8": {"i8", "u8"}}[precision]
    count = 0
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = op.get_rt_info()
        kind = info["layerType"].astype(str)
        count += (
            kind in ("FullyConnected", "MatMul") and info["runtimePrecision"].astype(str) in wanted
        )
    return count

"""Statistics of each linear layer's input, and its error in a lower precision."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from dgl_export.graph_files import save_graph
from dgl_export.mixed import PRODUCTS

Float32 = NDArray[np.float32]
Feeds = Mapping[str, NDArray[np.generic]]
Rounding = Callable[[Float32], Float32]
ROWS_PER_FEED = 16  # beside the one with the largest number


@dataclass(frozen=True)
class Layer:
    """A linear layer of a graph: a matrix product with a constant."""

    name: str  # blocks.3.fc
    node: str
    x: str  # the value it reads
    weight: str
    out_axis: int  # of the weight


def linear_layers(model: onnx.ModelProto) -> list[Layer]:
    """All linear layers, in the order of the graph.

    A constant with more than two dimensions is no weight: frame positions, which queries are compared with.
    """
    constants = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    layers = []
    for node in model.graph.node:
        if node.op_type in PRODUCTS and node.input[1] in constants:
            transposed = any(
                attribute.name == "transB" and attribute.i for attribute in node.attribute
            )
            name = node.input[1].removesuffix(".weight")
            layers.append(
                Layer(name, node.name, node.input[0], node.input[1], 0 if transposed else 1)
            )
    return layers


def weights_of(model: onnx.ModelProto, layers: Iterable[Layer]) -> dict[str, Float32]:
    """Weight name -> array."""
    wanted = {layer.weight for layer in layers}
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name in wanted
    }


def observe(model: onnx.ModelProto, feeds: Iterable[Feeds]) -> dict[str, Float32]:
    """Run a graph and keep some rows of every value that a linear layer reads.

    Args:
        model: A float32 graph.
        feeds: Inputs of its runs.

    Returns:
        Value name -> rows float32 [N, D], from each run a few and the one with the largest number:
        outliers are what makes low precision hard.
    """
    import onnxruntime as ort

    names = sorted({layer.x for layer in linear_layers(model)})
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with TemporaryDirectory() as folder:  # bytes in memory may be 2 GB at most
        path = Path(folder) / "watched.onnx"
        save_graph(watched, path)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    kept: dict[str, list[Float32]] = {name: [] for name in names}
    for feed in feeds:
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            rows = value.reshape(-1, value.shape[-1])
            some = rng.choice(len(rows), min(ROWS_PER_FEED, len(rows)), replace=False)
            largest = np.abs(rows).max(axis=1).argmax()
            kept[name].append(rows[np.append(some, largest)])
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def layer_errors(
    layers: Iterable[Layer],
    weights: Mapping[str, Float32],
    rows: Mapping[str, Float32],
    roundings: Callable[[Layer], tuple[Rounding, Rounding]],
) -> dict[str, float]:
    """How much of each layer's output is rounding error, the worst first.

    Args:
        layers: The layers.
        weights: Their weights.
        rows: What :func:`observe` kept.
        roundings: Of a layer: what its precision makes of its input and of its weight [out, in].

    Returns:
        Layer name -> squared error of the output over its squared size.
    """
    errors = {}
    for layer in layers:
        round_x, round_weight = roundings(layer)
        weight = weights[layer.weight] if layer.out_axis == 0 else weights[layer.weight].T
        exact = rows[layer.x] @ weight.T
        rounded = round_x(rows[layer.x]) @ round_weight(weight).T
        size = max(np.square(exact).sum(), np.finfo(np.float32).tiny)  # of a layer of zeros
        errors[layer.name] = float(np.square(rounded - exact).sum() / size)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))

"""SmoothQuant: outliers moved from a linear layer's input into its weight, which has a scale per output.

A LayerNormalization's gain and bias are divided by s, the columns of the weights that read it are
multiplied by s: exact algebra (the idea is SmoothQuant's, arXiv 2211.10438). Only channels far above
the others are touched: with s for every channel, as there, channels that happened to be small on the
calibration set overflowed on others.
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from dgl_export.layer_statistics import Float32, Layer, linear_layers

OUTLYING = 4  # times the median channel's largest number


def smooth(
    model: onnx.ModelProto, rows: Mapping[str, Float32]
) -> tuple[onnx.ModelProto, dict[str, Float32]]:
    """Balance every LayerNormalization that only linear layers read.

    Args:
        model: A float32 graph.
        rows: What its linear layers read, by value name, float32 [N, D].

    Returns:
        The graph with other weights and the same outputs, and what its linear layers read now.
    """
    balanced = onnx.ModelProto()
    balanced.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in balanced.graph.initializer}
    readers = _readers(model)
    smoothed = dict(rows)
    for node in balanced.graph.node:
        layers = readers.get(node.output[0], [])
        if node.op_type != "LayerNormalization" or not layers:
            continue
        x = rows[node.output[0]]
        scale = _balance(x)
        for place in range(1, len(node.input)):  # own copies: equal ones are stored once
            tensor = balanced.graph.initializer.add()
            tensor.CopyFrom(constants[node.input[place]])
            tensor.name = node.input[place] = f"{node.output[0]}/{node.input[place]}"
            _multiply(tensor, np.float32(1) / scale)
        for layer in layers:
            _multiply(constants[layer.weight], scale if layer.out_axis == 0 else scale[:, None])
        smoothed[node.output[0]] = x / scale
    return balanced, smoothed


def _readers(model: onnx.ModelProto) -> dict[str, list[Layer]]:
    """Value name -> the linear layers that read it, for values that nothing else reads.

    A weight that is used twice has no such value: balancing it would change the other use.
    """
    uses: dict[str, int] = defaultdict(int)
    for node in model.graph.node:
        for name in node.input:
            uses[name] += 1
    layers: dict[str, list[Layer]] = defaultdict(list)
    for layer in linear_layers(model):
        layers[layer.x].append(layer)
    alone = {x: all(uses[layer.weight] == 1 for layer in found) for x, found in layers.items()}
    return {x: found for x, found in layers.items() if uses[x] == len(found) and alone[x]}


def _balance(x: Float32) -> Float32:
    """Factors [D]: above 1 for outlying channels, halfway (geometrically) back to the others' range."""
    largest = np.abs(x).max(axis=0)
    ratio = largest / max(float(np.median(largest)), float(np.finfo(np.float32).tiny))
    scale: Float32 = np.where(ratio > OUTLYING, np.sqrt(ratio), 1).astype(np.float32)
    return scale


def _multiply(tensor: onnx.TensorProto, factor: Float32) -> None:
    values = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

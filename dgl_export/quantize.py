"""int8 and fp8 written into a graph: Q/DQ nodes with measured scales, or scales made as it runs.

Linear layers only. Attention, softmax, LayerNormalization, the patch convolution and the last
normalisation stay float32.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dgl_export.graph_files import save_graph
from dgl_export.layer_statistics import Float32, Layer, Rounding, linear_layers, weights_of

LARGEST = {"int8": 127.0, "fp8": 448.0}
# A CPU without VNNI adds two products of 8 bits in 16, where 2 * 255 * 127 saturates: cosines of 0.91
# in place of 0.998. 2 * 255 * 64 fits.
_LARGEST_WEIGHT = LARGEST | {"int8": 64.0}
_TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
_FP8_OPSET = 19  # the first whose QuantizeLinear knows it
_CLIPPINGS = np.linspace(1.0, 0.2, 17)


@dataclass(frozen=True)
class Quantizer:
    """A precision's rounding: of a layer's input with one scale, of its weight with one per output."""

    precision: str
    scales: Mapping[str, float]  # value name -> scale

    @classmethod
    def calibrated(cls, precision: str, rows: Mapping[str, Float32]) -> "Quantizer":
        """Scales with the least squared error on observed rows; outliers may be clipped for it."""
        scales = {name: _best_scale(precision, values) for name, values in rows.items()}
        return cls(precision, scales)

    def roundings(self, layer: Layer) -> tuple[Rounding, Rounding]:
        """What this precision makes of a layer's input and of its weight [out, in]."""
        scale = np.float32(self.scales[layer.x])

        def round_weight(weight: Float32) -> Float32:
            by_output = weight_scales(self.precision, weight, 0)
            return _round(self.precision, weight / by_output[:, None]) * by_output[:, None]

        return lambda x: _round(self.precision, x / scale) * scale, round_weight


def weight_scales(precision: str, weight: Float32, out_axis: int) -> Float32:
    """One scale per output channel, float32 [out]; channels of zeros are taken for ones of 1."""
    largest = np.abs(weight).max(axis=1 - out_axis)
    of_one = np.where(largest > 0, largest, 1)
    scales: Float32 = (of_one / _LARGEST_WEIGHT[precision]).astype(np.float32)
    return scales


def to_qdq(model: onnx.ModelProto, quantizer: Quantizer, keep: Collection[str]) -> onnx.ModelProto:
    """A copy with Q/DQ nodes in front of every linear layer but those to ``keep``.

    The form TensorRT and OpenVINO take: symmetric, weights stored as int8 or fp8 per output channel.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    if quantizer.precision == "fp8":
        quantized.opset_import[0].version = max(_FP8_OPSET, quantized.opset_import[0].version)
    layers = {layer.node: layer for layer in linear_layers(model) if layer.name not in keep}
    weights = weights_of(model, layers.values())
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in graph.node:
        if (layer := layers.get(node.name)) is not None:
            if layer.x not in done:
                nodes += _input_nodes(graph, quantizer, layer.x)
                done.add(layer.x)
            if layer.weight not in done:  # equal weights are stored once
                nodes.append(_weight_node(graph, quantizer.precision, layer, weights[layer.weight]))
                done.add(layer.weight)
            node.input[0], node.input[1] = f"{layer.x}/dequantized", f"{layer.weight}/dequantized"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    return quantized


def _input_nodes(graph: onnx.GraphProto, quantizer: Quantizer, name: str) -> list[onnx.NodeProto]:
    kind = _TYPES[quantizer.precision]
    scale, zero = f"{name}/scale", f"{name}/zero"
    graph.initializer.append(
        helper.make_tensor(scale, TensorProto.FLOAT, [], [quantizer.scales[name]])
    )
    graph.initializer.append(helper.make_tensor(zero, kind, [], [0]))
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}/quantized"]),
        helper.make_node(
            "DequantizeLinear", [f"{name}/quantized", scale, zero], [f"{name}/dequantized"]
        ),
    ]


def _weight_node(
    graph: onnx.GraphProto, precision: str, layer: Layer, weight: Float32
) -> onnx.NodeProto:
    names = [f"{layer.weight}/{part}" for part in ("quantized", "scale", "zero")]
    scales = weight_scales(precision, weight, layer.out_axis)
    kind = helper.tensor_dtype_to_np_dtype(_TYPES[precision])
    by_output = scales[:, None] if layer.out_axis == 0 else scales
    stored = _stored(precision, weight / by_output)
    arrays: list[NDArray[Any]] = [stored.astype(kind), scales, np.zeros(len(scales), kind)]
    for name, array in zip(names, arrays, strict=True):
        graph.initializer.append(numpy_helper.from_array(array, name))
    return helper.make_node(
        "DequantizeLinear", names, [f"{layer.weight}/dequantized"], axis=layer.out_axis
    )


def to_dynamic(model: onnx.ModelProto, keep: Collection[str]) -> onnx.ModelProto:
    """A copy whose linear layers find the scale of their input as they run; ONNX Runtime on CPUs.

    Weights are int8 per output channel. Needs no calibration, and is both faster there and more
    exact than fixed scales.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    chosen = {layer.node for layer in linear_layers(model) if layer.name not in keep}
    others = [node.name for node in model.graph.node if node.name not in chosen]
    # It first makes every Gemm a MatMul and an Add, under this name, and looks for names after that.
    excluded = [*others, *(f"{name}_MatMul" for name in others)]
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    # Its warning asks for a preparation that folding and torch's exporter have done.
    helper.set_model_props(prepared, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with TemporaryDirectory() as folder:
        source, path = Path(folder) / "float32.onnx", Path(folder) / "dynamic.onnx"
        save_graph(prepared, source)
        quantize_dynamic(
            source,
            path,
            per_channel=True,
            reduce_range=True,  # to _LARGEST_WEIGHT
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=excluded,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(path)


def count_quantized(model: onnx.ModelProto) -> int:
    """Number of matrix products that read int8 or fp8."""
    ops = {output: node.op_type for node in model.graph.node for output in node.output}
    products = [
        node for node in model.graph.node if node.op_type in ("Gemm", "MatMul", "MatMulInteger")
    ]
    return sum(
        node.op_type == "MatMulInteger"
        or all(ops.get(name) == "DequantizeLinear" for name in node.input[:2])
        for node in products
    )


def _best_scale(precision: str, values: Float32) -> float:
    largest = float(np.abs(values).max()) or 1.0
    scales = [largest * clipping / LARGEST[precision] for clipping in _CLIPPINGS]
    if precision == "fp8":  # its steps grow with the number: clipping gains nothing
        return largest / LARGEST[precision]
    errors = [np.square(_round(precision, values / s) * s - values).mean() for s in scales]
    return float(scales[int(np.argmin(errors))])


def _stored(precision: str, scaled: Float32) -> Float32:
    """Scaled numbers as they are stored: in range, and integers for int8."""
    inside: Float32 = np.clip(scaled, -LARGEST[precision], LARGEST[precision])
    return np.rint(inside) if precision == "int8" else inside


def _round(precision: str, scaled: Float32) -> Float32:
    kind = helper.tensor_dtype_to_np_dtype(_TYPES[precision])
    rounded: Float32 = _stored(precision, scaled).astype(kind).astype(np.float32)
    return rounded

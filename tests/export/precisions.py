"""Simple low-precision variants of a graph, to see what TensorRT's parser and builder accept."""

import warnings

import numpy as np
import onnx
from onnx import TensorProto, helper

# Kept in float32, with what only counts or compares.
FLOAT32 = ["LayerNormalization", "Softmax", "ReduceL2", "ReduceSum", "Clip", "Div", "Log", "ArgMax"]


def to_fp16(graph, out):
    """Casts to float16 around everything but ``FLOAT32``."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(
        onnx.load(graph), keep_io_types=True, op_block_list=[*FLOAT32, "Range"]
    )
    onnx.save(model, out)
    return out


def to_int8(graph, out, name, example):
    """Q/DQ pairs around the matrix products, calibrated with one input."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = [{name: example}]

        def get_next(self):
            return self.left.pop() if self.left else None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(
            graph,
            out,
            Reader(),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            # TensorRT's parser refuses biases in int32 with a scale.
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
            },
        )
    return out


def fp8_product(out):
    """A matrix product with Q/DQ pairs in FP8."""
    nodes, weights = (
        [],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
            helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0]),
            helper.make_tensor("w", TensorProto.FLOAT, [16, 16], np.ones(256).tolist()),
        ],
    )
    for name in ("x", "w"):
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_d"]))  # fmt: skip  # noqa: E501
    nodes.append(helper.make_node("MatMul", ["x_d", "w_d"], ["y"]))
    return save(out, nodes, weights, opset=19)


def strange_node(out):
    """A graph with an operator that nobody has."""
    node = helper.make_node("Strange", ["x"], ["y"], name="node_of_ours", domain="ours")
    return save(out, [node], [], opset=18)


def save(out, nodes, weights, opset):
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16]) for name in "xy"
    ]
    graph = helper.make_graph(nodes, "graph", tensors[:1], tensors[1:], weights)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ours", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), out)
    return out

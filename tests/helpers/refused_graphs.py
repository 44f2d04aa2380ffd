"""Small graphs that TensorRT's parser or builder refuses."""

import numpy as np
import onnx
from onnx import TensorProto, helper


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

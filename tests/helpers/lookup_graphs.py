"""ONNX graphs that look their answers up: a gate meets whatever embeddings a test wants, run by an engine."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dgl_runtime.engines.opening import open_engine

INPUTS = {
    "tokens": (TensorProto.INT32, ["batch", "length"]),
    "frames": (TensorProto.UINT8, ["batch", "frames", 3, "size", "size"]),
}


def lookup_engine(path, takes, **answers):
    """An engine that answers an input with the row its first number names.

    Args:
        path: Where the graph is written.
        takes: ``tokens`` or ``frames``.
        answers: Output name -> its rows [N, ...], or two such tables, the second for inputs that come alone.
    """
    nodes = [
        helper.make_node("Reshape", [takes, "flat"], ["numbers"]),
        helper.make_node("Gather", ["numbers", "zero"], ["first"], axis=1),
        helper.make_node("Cast", ["first"], ["row"], to=TensorProto.INT64),
        helper.make_node("Shape", ["row"], ["batch"]),
        helper.make_node("Equal", ["batch", "one"], ["is_alone"]),
        helper.make_node("Cast", ["is_alone"], ["alone"], to=TensorProto.INT64),
    ]
    constants = {"flat": [0, -1], "zero": 0, "one": 1}
    outputs = []
    for name, tables in answers.items():
        together, alone = tables if isinstance(tables, tuple) else (tables, tables)
        constants[f"{name}_table"] = np.concatenate([together, alone]).astype(np.float32)
        constants[f"{name}_rows"] = len(together)
        nodes += [
            helper.make_node("Mul", ["alone", f"{name}_rows"], [f"{name}_from"]),
            helper.make_node("Add", ["row", f"{name}_from"], [f"{name}_row"]),
            helper.make_node("Gather", [f"{name}_table", f"{name}_row"], [name]),
        ]
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "width"]))
    dtype, shape = INPUTS[takes]
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    takes = helper.make_tensor_value_info(takes, dtype, shape)
    graph = helper.make_graph(nodes, "lookup", [takes], outputs, weights)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return open_engine(path, device="cpu", threads=1)

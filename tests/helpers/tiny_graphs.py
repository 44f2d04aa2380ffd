"""Makes the tiny graphs that the doctor tries; as a program it writes them again."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from dgl_runtime.engines.tiny_graph import CLASSES, TOLERANCES, WIDTH, factors, graph_path

# Every number lies in -1..1. Weights end at 64, as those of a bundle (dgl_export/quantize.py).
SCALE, SCALE_W = np.float32(1 / 127), np.float32(1 / 64)
OPSET, IR_VERSION = 17, 8


def make_graph(precision):
    """Make the graph of one of ``TOLERANCES``: the precision is that of the product's factors."""
    low = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}.get(precision)
    nodes, constants = [], []
    if low is not None:
        stored = factors().astype(helper.tensor_dtype_to_np_dtype(low))
        constants.append(numpy_helper.from_array(stored, "w"))
        nodes.append(helper.make_node("Cast", ["x"], ["low_x"], to=low))
        nodes.append(helper.make_node("MatMul", ["low_x", "w"], ["low_product"]))
        nodes.append(helper.make_node("Cast", ["low_product"], ["product"], to=TensorProto.FLOAT))
    elif precision == "int8":
        integers = np.round(factors() / SCALE_W).astype(np.int8)
        held = {"w": integers, "scale": SCALE, "scale_w": SCALE_W, "zero": np.int8(0)}
        for name, array in held.items():
            constants.append(numpy_helper.from_array(np.asarray(array), name))
        nodes.append(helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["int_x"]))
        for name, scale, of in (("int_x", "scale", "near_x"), ("w", "scale_w", "near_w")):
            nodes.append(helper.make_node("DequantizeLinear", [name, scale, "zero"], [of]))
        nodes.append(helper.make_node("MatMul", ["near_x", "near_w"], ["product"]))
    else:
        constants.append(numpy_helper.from_array(factors(), "w"))
        nodes.append(helper.make_node("MatMul", ["x", "w"], ["product"]))
    nodes.append(helper.make_node("Softmax", ["product"], ["y"], axis=-1))
    graph = helper.make_graph(
        nodes,
        f"tiny {precision}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


if __name__ == "__main__":
    for name in TOLERANCES:
        graph_path(name).write_bytes(make_graph(name).SerializeToString(deterministic=True))

"""A graph of two operators in each precision, shipped, with its result by numpy: does an engine work?

``python -m benchmarks.tiny_graph`` writes the files again; only that needs the package onnx.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

# Precision -> how far a probability may be off; a wrong graph is off by more than 0.1.
TOLERANCES = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2, "int8": 2e-2}
MAX_BATCH, WIDTH, CLASSES = 8, 16, 8
FOLDER = Path(__file__).parent / "tiny_graphs"
_SCALE = np.float32(1 / 127)  # every factor lies in -1..1
_OPSET, _IR_VERSION = 17, 8


def graph_path(precision: str) -> Path:
    """The ONNX file: x float32 [batch, 16] -> y float32 [batch, 8] = softmax(x W)."""
    return FOLDER / f"{precision}.onnx"


def factors() -> NDArray[np.float32]:
    """W, float32 [16, 8]."""
    return np.sin(np.arange(WIDTH * CLASSES, dtype=np.float32)).reshape(WIDTH, CLASSES)


def example(batch: int = 4) -> NDArray[np.float32]:
    """x, float32 [batch, 16]."""
    return np.cos(np.arange(batch * WIDTH, dtype=np.float32)).reshape(batch, WIDTH)


def expected(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Y by numpy, float64 [batch, 8]."""
    powers: NDArray[np.float64] = np.exp(x.astype(np.float64) @ factors())
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def make_graph(precision: str) -> "onnx.ModelProto":
    """Make the graph of one of ``TOLERANCES``: the precision is that of the product's factors."""
    from onnx import TensorProto, helper, numpy_helper

    low = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}.get(precision)
    nodes, constants = [], []
    if low is not None:
        stored = factors().astype(helper.tensor_dtype_to_np_dtype(low))
        constants.append(numpy_helper.from_array(stored, "w"))
        nodes.append(helper.make_node("Cast", ["x"], ["low_x"], to=low))
        nodes.append(helper.make_node("MatMul", ["low_x", "w"], ["low_product"]))
        nodes.append(helper.make_node("Cast", ["low_product"], ["product"], to=TensorProto.FLOAT))
    elif precision == "int8":
        integers = np.round(factors() / _SCALE).astype(np.int8)
        for name, array in (("w", integers), ("scale", _SCALE), ("zero", np.int8(0))):
            constants.append(numpy_helper.from_array(np.asarray(array), name))
        nodes.append(helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["int_x"]))
        for name, of in (("int_x", "near_x"), ("w", "near_w")):
            nodes.append(helper.make_node("DequantizeLinear", [name, "scale", "zero"], [of]))
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
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )


if __name__ == "__main__":
    for name in TOLERANCES:
        graph_path(name).write_bytes(make_graph(name).SerializeToString(deterministic=True))

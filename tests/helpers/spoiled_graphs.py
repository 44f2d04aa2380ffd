"""Exported graphs with a fault put in, for gates to find."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dgl_export.graph_files import save_graph


def add_to_output(path, output, number):
    """Let a graph on disk give its output with a number added to the last of each row."""
    model = onnx.load(path)
    for node in model.graph.node:
        names = [f"{name}/right" if name == output else name for name in node.output]
        node.output[:] = names
        node.input[:] = [f"{name}/right" if name == output else name for name in node.input]
    width = {value.name: value for value in model.graph.output}[output]
    last = width.type.tensor_type.shape.dim[-1].dim_value or 1  # of a free dimension, all
    added = np.zeros(last, np.float32)
    added[-1] = number
    model.graph.initializer.append(numpy_helper.from_array(added, f"{output}/wrong"))
    model.graph.node.append(
        helper.make_node("Add", [f"{output}/right", f"{output}/wrong"], [output])
    )
    save_graph(model, path)

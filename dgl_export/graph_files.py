"""ONNX graphs on disk, weights beside the graph: no size is too large, and engines map what they read."""

from pathlib import Path

import onnx

from dgl_runtime.plain_path import plain_path


def save_graph(model: onnx.ModelProto, path: Path) -> str:
    """Write a graph, and its weights as ``<file>.data``; returns that file's name."""
    weights = path.with_name(f"{path.name}.data")
    weights.unlink(missing_ok=True)  # onnx appends to what is there
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with plain_path(path) as plain:
        onnx.save_model(copy, plain, save_as_external_data=True, location=weights.name)
    return weights.name


def load_graph(path: Path) -> onnx.ModelProto:
    """Read a graph with its weights."""
    with plain_path(path) as plain:
        return onnx.load(plain)

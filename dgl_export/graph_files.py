"""ONNX graphs on disk, weights beside the graph: no size is too large, and engines map what they read."""

from pathlib import Path

import onnx


def save_graph(model: onnx.ModelProto, path: Path) -> str:
    """Write a graph, and its weights as ``<file>.data``; returns that file's name."""
    weights = path.with_name(f"{path.name}.data")
    weights.unlink(missing_ok=True)  # onnx appends to what is there
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, path, save_as_external_data=True, location=weights.name)
    return weights.name

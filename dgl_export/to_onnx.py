"""Folded encoders -> ONNX files, free in batch and, where the model allows, in caption length and frames."""

import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgl_runtime.bundle.manifest import Graph
from dgl_runtime.engines.tensor_spec import TensorSpec
from dgl_runtime.plain_path import plain_path

# The oldest that torch's exporter writes without converting; LayerNormalization needs 17.
OPSET = 18


def write_text_encoder(
    encoder: nn.Module, tokens: Tensor, folder: Path, *, any_length: bool = True
) -> Graph:
    """Write ``text_encoder.onnx``: tokens int32 [batch, length] -> embedding float32 [batch, E]."""
    free = {0: "batch", 1: "length"} if any_length else {0: "batch"}
    return _write(encoder, ("tokens", tokens), ("embedding",), free, folder / "text_encoder.onnx")


def write_clip_encoder(
    encoder: nn.Module, frames: Tensor, folder: Path, *, any_frames: bool
) -> Graph:
    """Write ``clip_encoder.onnx``: frames [batch, F, 3, S, S] -> embedding [batch, E], weights [batch, F]."""
    free = {0: "batch", 1: "frames"} if any_frames else {0: "batch"}
    outputs = ("embedding", "frame_weights")
    return _write(encoder, ("frames", frames), outputs, free, folder / "clip_encoder.onnx")


def _write(
    encoder: nn.Module,
    example: tuple[str, Tensor],
    outputs: tuple[str, ...],
    free: Mapping[int, str],
    path: Path,
) -> Graph:
    import onnx_ir

    name, values = example  # every free dimension above 1, or the trace would fix it at 1
    shapes = {name: dict.fromkeys(free, torch.export.Dim.DYNAMIC)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own internals
        traced = torch.export.export(encoder, (values,), dynamic_shapes=shapes, strict=False)
        program: Any = torch.onnx.export(
            traced,
            (values,),
            input_names=[name],
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            custom_translation_table={torch.ops.aten.gelu.default: _gelu},
        )
    model = program.model
    _name_free_dimensions(model, free)
    _keep_names_apart(model)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # the tracer's call stacks: file paths of this machine
    weights = f"{path.name}.data"
    with plain_path(path) as plain:
        onnx_ir.save(model, plain, external_data=weights)
    return Graph(
        file=path.name,
        weights=weights,
        precision="fp32",
        low_precision_nodes=0,
        kept=(),
        inputs=tuple(map(_spec, model.graph.inputs)),
        outputs=tuple(map(_spec, model.graph.outputs)),
    )


def _gelu(x: Any, approximate: str = "none") -> Any:  # noqa: ANN401 - onnxscript's values
    """GELU as 0.5 x times the rest, in which form ONNX Runtime makes one operator of all of these.

    torch's exporter multiplies the rest by 0.5, and there they stay apart.
    """
    from onnxscript import opset18

    op: Any = opset18
    if approximate == "tanh":
        cubic = op.Mul(op.Constant(value_float=0.044715), op.Pow(x, op.Constant(value_float=3.0)))
        inner = op.Mul(op.Constant(value_float=math.sqrt(2 / math.pi)), op.Add(x, cubic))
        share = op.Tanh(inner)
    else:
        share = op.Erf(op.Div(x, op.Constant(value_float=math.sqrt(2))))
    half = op.Mul(x, op.Constant(value_float=0.5))
    return op.Mul(half, op.Add(share, op.Constant(value_float=1.0)))


def _name_free_dimensions(model: Any, free: Mapping[int, str]) -> None:  # noqa: ANN401
    """Give the tracer's symbols (s41) the names the manifest uses (batch)."""
    import onnx_ir

    shape = model.graph.inputs[0].shape
    names = {str(shape[axis]): name for axis, name in free.items()}
    inner = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in [*model.graph.inputs, *inner]:
        if value.shape is not None:
            dims = [
                dim if isinstance(dim, int) else names.get(str(dim), str(dim))
                for dim in value.shape
            ]
            value.shape = onnx_ir.Shape(dims)


def _keep_names_apart(model: Any) -> None:  # noqa: ANN401
    """Give inner values other names than the graph's own: an operator may be called ``embedding``, too."""
    outer = [*model.graph.inputs, *model.graph.outputs]
    taken = {value.name for value in outer}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in taken and not any(value is one for one in outer):
                value.name = f"{value.name}_inside"


def _spec(value: Any) -> TensorSpec:  # noqa: ANN401
    dims = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
    return TensorSpec(value.name, str(value.dtype.numpy()), dims)

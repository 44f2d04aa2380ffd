"""fp16 and bf16 written into a graph: matrix products and what lies between them; the rest stays float32.

Between them lie reshapes, and QuickGELU's sigmoid and products. Softmax, LayerNormalization, residual
sums, the patch convolution and the last normalisation are
float32, so the graph is strongly typed and every engine computes the same.
"""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LOW_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
PRODUCTS = frozenset({"Gemm", "MatMul"})
# Operators that take the type of what they are given: most move numbers, two make up QuickGELU.
_FOLLOWERS = frozenset(
    "Concat Expand Gather Mul Reshape Sigmoid Slice Split Squeeze Transpose Unsqueeze".split()
)
_TOKENS = 10_000  # fewer rows are no vocabulary
_ROUND_TRIP = "/rounded"


def to_mixed(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A copy of a float32 graph with its matrix products in ``fp16`` or ``bf16``.

    Weights of matrix products and the token table are stored in that type. Inputs and outputs keep
    theirs.
    """
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    _Caster(mixed, LOW_TYPES[precision]).rewrite()
    return mixed


def halve_token_table(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose table of token embeddings is stored as float16; the rows that are read become float32.

    It is most of a text encoder's file, and a matrix product never reads it.
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    tables = set()
    for tensor in halved.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.dims and tensor.dims[0] > _TOKENS:
            tensor.CopyFrom(_converted(tensor, TensorProto.FLOAT16, tensor.name))
            tables.add(tensor.name)
    nodes = []
    for node in halved.graph.node:
        nodes.append(node)
        if node.op_type == "Gather" and node.input[0] in tables:
            rows, node.output[0] = node.output[0], f"{node.output[0]}/half"
            nodes.append(helper.make_node("Cast", [node.output[0]], [rows], to=TensorProto.FLOAT))
    del halved.graph.node[:]
    halved.graph.node.extend(nodes)
    del halved.graph.value_info[:]  # the table's type has changed; every reader infers them
    return halved


def count_low_precision(model: onnx.ModelProto, precision: str) -> int:
    """Number of matrix products that read and write the low type."""
    types = _float_types(model)
    low = LOW_TYPES[precision]
    return sum(
        node.op_type in PRODUCTS and {types[name] for name in (*node.input, *node.output)} == {low}
        for node in model.graph.node
    )


class _Caster:
    """One walk over the nodes, in order: each gets the inputs it needs in the type it needs."""

    def __init__(self, model: onnx.ModelProto, low: int) -> None:
        self.model, self.low = model, low
        self.types = _float_types(model)  # name -> type, of float values only
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.written: list[TensorProto] = []

    def rewrite(self) -> None:
        graph = self.model.graph
        for node in graph.node:
            target = self.low if self._is_low(node) else TensorProto.FLOAT
            for place, name in enumerate(node.input):
                if name in self.types:
                    node.input[place] = self._as_type(name, target)
            self.nodes.append(node)
            for name in node.output:
                if name in self.types:
                    self.types[name] = target
        outputs = [
            (output.name, self._as_type(output.name, TensorProto.FLOAT)) for output in graph.output
        ]
        assert all(name == cast for name, cast in outputs), "the last operation is a normalisation"
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend([*kept, *self.written])
        del graph.value_info[:]  # their types have changed; every reader infers them

    def _is_low(self, node: onnx.NodeProto) -> bool:
        if node.op_type in PRODUCTS:
            return True
        if node.op_type not in _FOLLOWERS:
            return False
        values = [name for name in node.input if name in self.types]
        computed = [name for name in values if name not in self.constants]
        if not computed:
            # Rows of the token table; constant keys and values for each clip of a batch.
            return node.op_type in ("Gather", "Expand") and bool(values)
        return all(self.types[name] == self.low for name in computed)

    def _as_type(self, name: str, target: int) -> str:
        if self.types[name] == target:
            return name
        key = (name, target)
        if key not in self.casts:
            self.casts[key] = f"{name}/{TensorProto.DataType.Name(target).lower()}"
            if name in self.constants:
                self.written.append(_converted(self.constants[name], target, self.casts[key]))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [self.casts[key]], to=target))
            self.types[self.casts[key]] = target
        return self.casts[key]


def emulated(mixed: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The same numbers with float32 arithmetic: rounded where the mixed graph rounds.

    For engines without kernels of that type, such as ONNX Runtime on a CPU for bf16. Like real
    hardware it adds up matrix products in float32.
    """
    low = LOW_TYPES[precision]
    model = onnx.ModelProto()
    model.CopyFrom(mixed)
    graph = model.graph
    types = _float_types(model)
    for number, tensor in enumerate(graph.initializer):
        if tensor.data_type == low:
            exact = numpy_helper.to_array(tensor).astype(np.float32)
            graph.initializer[number].CopyFrom(numpy_helper.from_array(exact, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        lows = [name for name in node.output if types.get(name) == low]
        nodes += _rounding(node, lows, low) if lows else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return model


def _rounding(node: onnx.NodeProto, outputs: list[str], low: int) -> Iterator[onnx.NodeProto]:
    """The node in float32, then its outputs to the low type and back."""
    if node.op_type == "Cast":
        source = node.input[0]
    else:
        (source,) = (f"{name}{_ROUND_TRIP}/exact" for name in outputs)
        exact = onnx.NodeProto()
        exact.CopyFrom(node)
        exact.output[0] = source
        yield exact
    (name,) = outputs
    yield helper.make_node("Cast", [source], [name + _ROUND_TRIP], to=low)
    yield helper.make_node("Cast", [name + _ROUND_TRIP], [name], to=TensorProto.FLOAT)


def _converted(tensor: TensorProto, target: int, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(target))
    return numpy_helper.from_array(values, name)


def _float_types(model: onnx.ModelProto) -> dict[str, int]:
    """Every float value's type by its name, of inputs, constants and what nodes compute."""
    floats = {TensorProto.FLOAT, *LOW_TYPES.values()}
    types: dict[str, int] = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    graph = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return {name: kind for name, kind in types.items() if kind in floats}


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with large constants as inputs: shape inference copies what it is given."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    del light.graph.initializer[:]
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims) > 4096:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(value)
        else:
            light.graph.initializer.append(tensor)
    return light


def round_to(precision: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What ``fp16`` or ``bf16`` makes of float32 numbers."""
    kind = helper.tensor_dtype_to_np_dtype(LOW_TYPES[precision])
    return lambda values: values.astype(kind).astype(np.float32)

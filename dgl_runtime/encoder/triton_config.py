"""config.pbtxt of one graph in a Triton model repository, as text."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dgl_runtime.bundle.manifest import Graph
from dgl_runtime.engines.tensor_spec import TensorSpec

_TYPES = {"int32": "TYPE_INT32", "uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
# As our own ONNX Runtime on CUDA. The first two are read from here alone, the last from its provider.
_ONNX_ON_CUDA = {"cudnn_conv_algo_search": "1", "arena_extend_strategy": "1"}
_FLOAT32_IS_FLOAT32 = (
    'optimization { execution_accelerators { gpu_execution_accelerator [ { name: "cuda", parameters '
    '[ { key: "use_tf32", value: "0" } ] } ] } }'
)


@dataclass(frozen=True)
class Placed:
    """Where instances of a model run."""

    device: str  # cpu or cuda
    instances: int  # on the CPU, or on each GPU
    threads: int  # of each instance on the CPU; 0 lets ONNX Runtime choose


@dataclass(frozen=True)
class Plans:
    """TensorRT engines in place of the ONNX file."""

    files: Mapping[str, str]  # compute capability -> file
    profile: int


@dataclass(frozen=True)
class WarmUp:
    """A file that holds one input, and its shape."""

    file: str
    shape: tuple[int, ...]
    batches: tuple[int, ...]


def config_text(
    name: str,
    graph: Graph,
    *,
    plans: Plans | None,
    placed: Placed,
    most: int,
    warm_up: WarmUp,
    parameters: Mapping[str, str],
) -> str:
    """The text of the file.

    Args:
        name: Of the model, and of its folder.
        graph: The manifest's entry.
        plans: None: ONNX Runtime runs the graph's own file.
        placed: Where it runs.
        most: The largest batch.
        warm_up: What is run before the model is ready.
        parameters: What else is to be known of it.
    """
    told = dict(parameters)
    lines = [f"name: {_text(name)}"]
    if plans is None:
        lines += ['backend: "onnxruntime"', f"default_model_filename: {_text(graph.file)}"]
        if placed.device == "cuda":
            told |= _ONNX_ON_CUDA
            lines.append(_FLOAT32_IS_FLOAT32)
        elif placed.threads:
            told["intra_op_thread_count"] = str(placed.threads)
    else:
        lines += ['backend: "tensorrt"', *_files(plans)]
    lines += [
        f"max_batch_size: {most}",
        f"input [ {', '.join(map(_tensor, graph.inputs))} ]",
        f"output [ {', '.join(map(_tensor, graph.outputs))} ]",
        f"instance_group [ {_instances(placed, plans)} ]",
        # What waits when an instance is free is run together; nothing waits for others to come.
        "dynamic_batching { }",
        *_warm_ups(graph.inputs[0], warm_up),
        *(_parameter(key, value) for key, value in told.items()),
    ]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """Protobuf's texts are written as JSON's."""
    return json.dumps(value)


def _tensor(spec: TensorSpec) -> str:
    """Without the batch, which is the server's."""
    dims = ", ".join(str(dim) if isinstance(dim, int) else "-1" for dim in spec.shape[1:])
    return f"{{ name: {_text(spec.name)}, data_type: {_TYPES[spec.dtype]}, dims: [ {dims} ] }}"


def _instances(placed: Placed, plans: Plans | None) -> str:
    profile = "" if plans is None else f', profile: [ "{plans.profile}" ]'
    return f"{{ kind: {_KINDS[placed.device]}, count: {placed.instances}{profile} }}"


def _files(plans: Plans) -> Iterator[str]:
    yield f"default_model_filename: {_text(next(iter(plans.files.values())))}"
    for capability, file in plans.files.items():
        yield f"cc_model_filenames {{ key: {_text(capability)}, value: {_text(file)} }}"


def _warm_ups(spec: TensorSpec, warm_up: WarmUp) -> Iterator[str]:
    for batch in warm_up.batches:
        given = (
            f"data_type: {_TYPES[spec.dtype]}, dims: [ {', '.join(map(str, warm_up.shape))} ], "
            f"input_data_file: {_text(warm_up.file)}"
        )
        yield (
            f'model_warmup {{ name: "{batch}", batch_size: {batch}, '
            f"inputs {{ key: {_text(spec.name)}, value: {{ {given} }} }} }}"
        )


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_text(key)}, value: {{ string_value: {_text(value)} }} }}"

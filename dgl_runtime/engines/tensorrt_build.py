"""ONNX files -> TensorRT engines, with TensorRT 10, 11 or TensorRT for RTX by one code path.

The precision of every tensor is the one the ONNX file says (a strongly typed network): the library may
choose kernels, never numbers.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgl_runtime.engines.cuda_device import CudaDevice, Gpu
from dgl_runtime.engines.engine_file import (
    SCHEMA_VERSION,
    EngineInfo,
    Profile,
    engine_path,
    graph_digest,
)
from dgl_runtime.engines.tensor_spec import TensorSpec
from dgl_runtime.engines.tensorrt_library import (
    PORTABLE,
    load_library,
    make_logger,
    said_by,
    version_of,
)
from dgl_runtime.errors import EngineError, ExportError
from dgl_runtime.plain_path import plain_path

WORKSPACE_BYTES = 4 << 30  # what a kernel may use beside its tensors, at most


def described_engine(
    graph: Path,
    precision: str,
    tensors: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    profiles: tuple[Profile, ...],
    library: str,
) -> tuple[Path, EngineInfo, bytes]:
    """Build the engine of an ONNX file: where it belongs, its sidecar, its bytes.

    Args:
        graph: The file; its weights lie beside it.
        precision: What its numbers are.
        tensors: Its inputs and its outputs.
        profiles: As of ``build_engine``.
        library: ``tensorrt`` or ``trt-rtx``.

    Raises:
        EngineError: The library is missing or, for ``tensorrt``, a GPU.
        ExportError: The graph does not build.
    """
    module, gpu = require_builder(library)
    engine = build_engine(graph, profiles, module)
    info = EngineInfo(
        schema_version=SCHEMA_VERSION,
        library=library,
        library_version=module.__version__,
        gpu="" if gpu is None else gpu.name,
        compute_capability="" if gpu is None else gpu.compute_capability,
        precision=precision,
        inputs=tensors[0],
        outputs=tensors[1],
        profiles=profiles,
        graph_sha256=graph_digest(graph),
        engine_sha256=hashlib.sha256(engine).hexdigest(),
    )
    return engine_path(graph, library, module.__version__, gpu), info, engine


def require_builder(library: str) -> tuple[Any, Gpu | None]:
    """The library's module and the GPU it builds for, which is None where engines are portable.

    Raises:
        EngineError: The library is missing or, for ``tensorrt``, a GPU.
    """
    module = load_library(library)
    # A driver first: TensorRT without one cannot say what is wrong.
    return module, None if library in PORTABLE else CudaDevice().gpu


def why_not_run() -> str:
    """Why engines that are built here cannot be run here; empty if they can."""
    try:
        CudaDevice()
    except EngineError as error:
        return str(error)
    return ""


def build_engine(graph: Path, profiles: Sequence[Profile], library: Any) -> bytes:  # noqa: ANN401
    """Build the engine of an ONNX file with one input.

    Args:
        graph: The file; its weights lie beside it.
        profiles: Shapes of the input to prepare for, at least one.
        library: The module ``tensorrt`` or ``tensorrt_rtx``.

    Returns:
        The serialized engine; two builds of one graph differ.

    Raises:
        ExportError: The parser or the builder refuses; the message holds their own words.
    """
    log = make_logger(library)
    try:
        builder = library.Builder(log)
    except TypeError as error:  # what the bindings raise when the library gives them nothing
        raise ExportError(
            f"{library.__name__} {library.__version__} does not start: {said_by(log)}. Check its "
            "libraries and the NVIDIA driver."
        ) from error
    network = builder.create_network(_network_flags(library))
    parser = library.OnnxParser(network, log)
    with plain_path(graph) as plain:
        is_read = parser.parse_from_file(str(plain))
    if not is_read:
        faults = "; ".join(_fault(parser.get_error(i)) for i in range(parser.num_errors))
        raise ExportError(
            f"{library.__name__} {library.__version__} cannot read {graph}: {faults or said_by(log)}."
        )
    if network.num_inputs != 1:
        raise ExportError(f"{graph} has {network.num_inputs} inputs, expected 1. Export it again.")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(library.BuilderFlag.TF32)  # it rounds float32 factors to 11 bits
    name = network.get_input(0).name
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(name, shapes.minimum, shapes.best, shapes.maximum)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(
            f"{library.__name__} {library.__version__} cannot build {graph} for "
            f"{' and '.join(map(str, profiles))}: {said_by(log)}."
        )
    return bytes(engine)


def _network_flags(library: Any) -> int:  # noqa: ANN401
    """Strongly typed; from TensorRT 11 on every network is, and the flag is deprecated."""
    if library.__name__.startswith("tensorrt_rtx") or version_of(library) < (11, 0):
        return 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def _fault(error: Any) -> str:  # noqa: ANN401
    reason = " ".join(error.desc().split())[:300]
    name, operator = error.node_name(), error.node_operator()
    return f"node {name} ({operator}): {reason}" if operator else reason

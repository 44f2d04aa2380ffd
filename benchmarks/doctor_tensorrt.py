"""The shipped tiny graphs as engines of TensorRT: built, and stored as a bundle's engines are."""

import hashlib
from pathlib import Path

from benchmarks.tiny_graph import CLASSES, MAX_BATCH, WIDTH, example
from dgl_export.to_tensorrt import build_engine
from dgl_runtime.engines.cuda_device import CudaDevice
from dgl_runtime.engines.engine_file import (
    SCHEMA_VERSION,
    EngineInfo,
    Profile,
    engine_path,
    graph_digest,
    save_engines,
)
from dgl_runtime.engines.tensorrt_library import PORTABLE, load_library
from dgl_runtime.errors import EngineError
from dgl_runtime.manifest import TensorSpec

PROFILE = Profile((1, WIDTH), example().shape, (MAX_BATCH, WIDTH))


def build_tiny(graph: Path, precision: str, library: str) -> None:
    """Build the engine of a tiny graph for this machine, where the runtime finds it.

    Args:
        graph: A copy of the graph; the engine goes beside it.
        precision: One of ``benchmarks.tiny_graph.TOLERANCES``.
        library: ``tensorrt`` or ``trt-rtx``.

    Raises:
        EngineError: The library is missing or, for ``tensorrt``, a GPU; or it built the engine, but
            there is no GPU that runs it.
        ExportError: The graph does not build.
    """
    module = load_library(library)
    gpu = None if library in PORTABLE else CudaDevice().gpu  # before TensorRT, which needs a driver
    engine = build_engine(graph, [PROFILE], module)
    info = EngineInfo(
        schema_version=SCHEMA_VERSION,
        library=library,
        library_version=module.__version__,
        gpu="" if gpu is None else gpu.name,
        compute_capability="" if gpu is None else gpu.compute_capability,
        precision=precision,
        inputs=(TensorSpec("x", "float32", ("batch", WIDTH)),),
        outputs=(TensorSpec("y", "float32", ("batch", CLASSES)),),
        profiles=(PROFILE,),
        graph_sha256=graph_digest(graph),
        engine_sha256=hashlib.sha256(engine).hexdigest(),
    )
    save_engines({engine_path(graph, library, module.__version__, gpu): (info, engine)})
    try:
        CudaDevice()
    except EngineError as error:
        raise EngineError(f"its builder works, but {error}") from error

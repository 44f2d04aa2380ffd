"""The shipped tiny graphs as engines of TensorRT: built, and stored as a bundle's engines are."""

from pathlib import Path

from benchmarks.tiny_graph import CLASSES, MAX_BATCH, WIDTH, example
from dgl_export.to_tensorrt import described_engine, why_not_run
from dgl_runtime.bundle.manifest import Graph
from dgl_runtime.engines.engine_file import Profile, save_engines
from dgl_runtime.engines.tensor_spec import TensorSpec
from dgl_runtime.errors import EngineError

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
    described = Graph(
        file=graph.name,
        weights="",
        precision=precision,
        low_precision_nodes=0,
        kept=(),
        inputs=(TensorSpec("x", "float32", ("batch", WIDTH)),),
        outputs=(TensorSpec("y", "float32", ("batch", CLASSES)),),
    )
    path, info, engine = described_engine(graph.parent, described, (PROFILE,), library)
    save_engines({path: (info, engine)})
    if reason := why_not_run():
        raise EngineError(f"its builder works, but {reason}")

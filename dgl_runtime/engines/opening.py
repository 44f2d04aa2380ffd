"""Open a graph in one engine, which is imported only when it is asked for."""

from pathlib import Path

from dgl_runtime.engines.engine import Engine
from dgl_runtime.engines.installed import KINDS, require
from dgl_runtime.errors import EngineError

DEVICES = ("cpu", "cuda")
ENGINES = tuple(KINDS)


def open_engine(
    graph: Path, *, device: str, threads: int, engine: str = "onnx", precision: str = "fp32"
) -> Engine:
    """Load a graph in exactly the engine and on exactly the device that were asked for.

    Args:
        graph: An ONNX file; for ``openvino`` also its own format.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; 0 lets the engine choose.
        engine: One of ``ENGINES``.
        precision: What the graph's numbers are; see ``dgl_runtime.bundle.manifest.PRECISIONS``.

    Raises:
        EngineError: Unknown or missing engine or device; there is no fallback to another.
    """
    if device not in DEVICES:
        raise EngineError(f"device is {device!r}; it must be one of {', '.join(DEVICES)}.")
    require(engine, device)
    if engine == "openvino":
        from dgl_runtime.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(graph, threads=threads, precision=precision)
    if engine in ("tensorrt", "trt-rtx"):
        from dgl_runtime.engines.tensorrt import TensorRtEngine

        return TensorRtEngine(graph, device=device, library=engine)
    if (device, precision) == ("cpu", "bf16"):
        raise EngineError(
            "ONNX Runtime has no bfloat16 on CPUs. Take engine openvino, or a bundle of another precision."
        )
    from dgl_runtime.engines.onnx import OnnxEngine

    return OnnxEngine(graph, device=device, threads=threads)

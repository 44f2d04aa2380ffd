"""A graph of two operators in each precision, shipped, with its result by numpy: does an engine work?"""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.engines.candidates import Candidate
from dgl_runtime.engines.engine_file import Profile, save_engines
from dgl_runtime.engines.opening import open_engine
from dgl_runtime.engines.tensor_spec import TensorSpec
from dgl_runtime.engines.tensorrt_build import described_engine, why_not_run
from dgl_runtime.engines.tensorrt_library import LIBRARIES
from dgl_runtime.errors import EngineError

# Precision -> how far a probability may be off; a wrong graph is off by more than 0.1.
TOLERANCES = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2, "int8": 2e-2}
MAX_BATCH, WIDTH, CLASSES = 8, 16, 8
FOLDER = Path(__file__).parent / "tiny_graphs"
INPUTS = (TensorSpec("x", "float32", ("batch", WIDTH)),)
OUTPUTS = (TensorSpec("y", "float32", ("batch", CLASSES)),)


def graph_path(precision: str) -> Path:
    """The ONNX file: x float32 [batch, 16] -> y float32 [batch, 8] = softmax(x W)."""
    return FOLDER / f"{precision}.onnx"


def factors() -> NDArray[np.float32]:
    """W, float32 [16, 8]."""
    return np.sin(np.arange(WIDTH * CLASSES, dtype=np.float32)).reshape(WIDTH, CLASSES)


def example(batch: int = 4) -> NDArray[np.float32]:
    """x, float32 [batch, 16]."""
    return np.cos(np.arange(batch * WIDTH, dtype=np.float32)).reshape(batch, WIDTH)


def expected(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Y by numpy, float64 [batch, 8]."""
    powers: NDArray[np.float64] = np.exp(x.astype(np.float64) @ factors())
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def error_of(precision: str, on: Candidate, folder: Path, threads: int) -> float:
    """Run the graph of a precision in an engine on a device, out of an empty folder.

    Returns:
        The largest difference of a probability from numpy's.

    Raises:
        EngineError: It does not run, or its result is further off than ``TOLERANCES`` allow.
        ExportError: TensorRT does not build it.
        ImportError: The engine's package is broken.
        OSError: So are its libraries.
    """
    x = example()
    graph = Path(shutil.copy(graph_path(precision), folder))
    if on.engine in LIBRARIES:  # built beside the graph
        _build(graph, precision, on.engine)
    engine = open_engine(
        graph, device=on.device, threads=threads, engine=on.engine, precision=precision
    )
    y = engine.run({"x": x})["y"]
    off = float(np.abs(y.astype(np.float64) - expected(x)).max())
    if not off <= TOLERANCES[precision]:
        allowed = f"{precision} allows {TOLERANCES[precision]:.0e}"
        raise EngineError(f"its result is off by {off:.1e}, {allowed}")
    return off


def _build(graph: Path, precision: str, library: str) -> None:
    """Build the graph's engine for this machine, where the runtime finds it."""
    profile = Profile((1, WIDTH), example().shape, (MAX_BATCH, WIDTH))
    path, info, engine = described_engine(graph, precision, (INPUTS, OUTPUTS), (profile,), library)
    save_engines({path: (info, engine)})
    if reason := why_not_run():
        raise EngineError(f"its builder works, but {reason}")

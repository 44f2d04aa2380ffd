"""Inference engines behind one Protocol; each is imported only when it is asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import EngineError

Arrays = dict[str, NDArray[np.generic]]
DEVICES = ("cpu", "cuda")


class Engine(Protocol):
    """A loaded graph."""

    description: str

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Named arrays in, named arrays out."""
        ...


def open_engine(graph: Path, *, device: str, threads: int) -> Engine:
    """Load a graph on exactly the device that was asked for.

    Args:
        graph: An ONNX file.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; 0 lets the engine choose.

    Raises:
        EngineError: Unknown or missing device; there is no fallback to another.
    """
    if device not in DEVICES:
        raise EngineError(f"device is {device!r}; it must be one of {', '.join(DEVICES)}.")
    from dgl_runtime.engines.onnx import OnnxEngine

    return OnnxEngine(graph, device=device, threads=threads)

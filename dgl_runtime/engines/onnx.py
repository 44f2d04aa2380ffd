"""ONNX Runtime on the CPU or CUDA, with no silent fallback between them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dgl_runtime.engines import Arrays
from dgl_runtime.errors import EngineError, reason_of

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxEngine:
    """One graph in ONNX Runtime."""

    def __init__(self, graph: Path, *, device: str, threads: int) -> None:
        """Load the graph.

        Raises:
            EngineError: The device's provider is missing or did not take the graph.
        """
        import onnxruntime as ort

        provider = _PROVIDERS[device]
        if provider not in ort.get_available_providers():
            raise EngineError(
                f"device {device!r} needs ONNX Runtime's {provider}; this installation has "
                f"{', '.join(ort.get_available_providers())}. Install dgl-retrieval[gpu], or use cpu."
            )
        if device == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # NVIDIA's libraries out of their pip packages
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            # Without enable_fallback=0 it goes on on the CPU when a GPU fails, even in mid-run.
            self._session = ort.InferenceSession(
                str(graph), options, providers=[provider], enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime raises classes of its own without a base
            raise EngineError(
                f"{graph} does not load in ONNX Runtime: {reason_of(error)}"
            ) from error
        # ONNX Runtime lists providers it was compiled for, and falls back when one does not start.
        if (used := self._session.get_providers()[0]) != provider:
            raise EngineError(
                f"device {device!r} was asked for, but ONNX Runtime fell back to {used}. "
                "Check the NVIDIA driver and CUDA libraries, or use device cpu."
            )
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.description = f"ONNX Runtime {ort.__version__} ({device})"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Named arrays in, named arrays out.

        Raises:
            EngineError: The graph does not run, as on a device without enough memory.
        """
        try:
            outputs = self._session.run(None, dict(inputs))
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise EngineError(
                f"{self.description} could not run the graph on {shapes}: {reason_of(error)}"
            ) from error
        return dict(zip(self._outputs, outputs, strict=True))

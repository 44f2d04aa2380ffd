"""ONNX Runtime on the CPU or CUDA, with no silent fallback between them."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.engines.cuda_device import CudaDevice
from dgl_runtime.engines.device_arrays import LEGACY_DEFAULT_STREAM, DeviceArray
from dgl_runtime.engines.engine import Arrays
from dgl_runtime.errors import EngineError, reason_of
from dgl_runtime.plain_path import plain_path

if TYPE_CHECKING:
    import onnxruntime as ort

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_CUDA_OPTIONS = {
    # Powers of two would hold up to twice the memory that mixed shapes need.
    "arena_extend_strategy": "kSameAsRequested",
    # The default tries every algorithm anew for each batch size, which takes seconds.
    "cudnn_conv_algo_search": "HEURISTIC",
    # float32 means float32: a lower precision is a bundle of its own, which passed its gate.
    "use_tf32": "0",
}
_SPIN_US = 1000
# What does the arithmetic. ONNX Runtime keeps bookkeeping of shapes on the CPU on purpose.
_ARITHMETIC = frozenset(
    "Attention Conv DequantizeLinear DynamicQuantizeLinear Gemm LayerNormalization MatMul "
    "MatMulInteger MultiHeadAttention QuantizeLinear Sigmoid Softmax".split()
)


class OnnxEngine:
    """One graph in ONNX Runtime; a session may be run by several threads at once."""

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
        try:
            # Without enable_fallback=0 it goes on on the CPU when a GPU fails, even in mid-run.
            with plain_path(graph) as plain:
                self._session = ort.InferenceSession(
                    str(plain),
                    session_options(device, threads),
                    providers=[provider],
                    provider_options=[_CUDA_OPTIONS if device == "cuda" else {}],
                    enable_fallback=0,
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
        self._device = device
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.description = f"ONNX Runtime {ort.__version__} ({device})"
        if device == "cuda" and (left := _left_on_cpu(self._session)):
            raise EngineError(
                f"{self.description} would run {', '.join(left)} of {graph} on the CPU. "
                "Use a bundle of another precision, or device cpu."
            )

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Named arrays in, named numpy arrays out; on cuda also arrays that lie there.

        Raises:
            EngineError: The graph does not run, as on a device without enough memory.
        """
        try:
            if self._device == "cpu":
                outputs = self._session.run(None, dict(inputs))
            else:
                outputs = self._run_bound(inputs)
        except EngineError:
            raise
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise EngineError(
                f"{self.description} could not run the graph on {shapes}: {reason_of(error)}"
            ) from error
        return dict(zip(self._outputs, outputs, strict=True))

    def _run_bound(self, inputs: Mapping[str, Any]) -> "list[NDArray[Any]]":
        """Run with inputs and outputs bound to the device; a binding of its own for each call."""
        binding = self._session.io_binding()
        there = {
            name: found
            for name, array in inputs.items()
            if not isinstance(array, np.ndarray)
            and (found := DeviceArray.of(array, device=0, stream=LEGACY_DEFAULT_STREAM)) is not None
        }
        for name, array in inputs.items():
            if name in there:
                on_device = there[name]
                self._wait_for(on_device)
                place = (on_device.dtype, on_device.shape, on_device.pointer)
                binding.bind_input(name, self._device, 0, *place)
            else:
                binding.bind_cpu_input(name, array)
        for name in self._outputs:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        copied: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return copied

    def _wait_for(self, array: DeviceArray) -> None:
        """Wait for the work that fills an array: ONNX Runtime's own stream knows nothing of it."""
        stream = LEGACY_DEFAULT_STREAM if array.stream is None else array.stream
        self._cuda.call("cudaStreamSynchronize", stream)

    @cached_property
    def _cuda(self) -> CudaDevice:
        return CudaDevice()


def session_options(device: str, threads: int) -> "ort.SessionOptions":
    """How this engine opens every graph."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what it would print is in the errors it raises
    # Threads that wait for work spin, which makes a query faster than waking them; but by default for
    # so long after it that other engines, decoding and other programs lose a core.
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    if device == "cuda":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _left_on_cpu(session: "ort.InferenceSession") -> list[str]:
    """Operators with arithmetic that a session on another device runs on the CPU."""
    return sorted(
        {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name == _PROVIDERS["cpu"]
            for node in part.get_nodes()
            if node.op_type in _ARITHMETIC
        }
    )

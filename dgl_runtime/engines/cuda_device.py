"""The CUDA device that is current, its memory and a stream of our own, through cuda-python."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import EngineError, reason_of


@dataclass(frozen=True)
class Gpu:
    """What an engine is built for: its speed choices hold on no other GPU."""

    name: str
    compute_capability: str  # such as "9.0"

    def __str__(self) -> str:
        return f"{self.name} ({self.compute_capability})"

    @property
    def key(self) -> str:
        """The GPU as part of a file name: NVIDIA L4, 8.9 -> nvidia-l4-sm89."""
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return f"{words}-sm{self.compute_capability.replace('.', '')}"


class CudaDevice:
    """The current device, with one stream; every call is checked."""

    def __init__(self) -> None:
        """Find the driver and the device.

        Raises:
            EngineError: No cuda-python, no driver, no GPU.
        """
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise EngineError(
                f"CUDA is used through cuda-python, which does not import: {reason_of(error)}. "
                "Install dgl-retrieval[trt] or dgl-retrieval[trt-rtx]."
            ) from error
        self.api: Any = runtime
        try:
            code, count = runtime.cudaGetDeviceCount()
            reason = self._text(code) if int(code) else "" if count else "it sees no GPU"
        except RuntimeError as error:  # newer bindings raise where older ones return a code
            reason = reason_of(error)
        if reason:
            raise EngineError(
                f"CUDA does not start: {reason}. Install an NVIDIA driver for this GPU (nvidia-smi "
                "must list it), or use device cpu."
            )
        self.index: int = self.call("cudaGetDevice")
        properties = self.call("cudaGetDeviceProperties", self.index)
        self.gpu = Gpu(
            properties.name.decode().rstrip("\0"), f"{properties.major}.{properties.minor}"
        )
        self._stream = self.call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self._event = self.call("cudaEventCreateWithFlags", runtime.cudaEventDisableTiming)

    def __del__(self) -> None:
        if hasattr(self, "_event"):
            self.api.cudaEventDestroy(self._event)
            self.api.cudaStreamDestroy(self._stream)

    @property
    def stream(self) -> int:
        """Handle of the stream that everything here runs on."""
        return int(self._stream)

    def call(self, function: str, *arguments: Any) -> Any:  # noqa: ANN401
        """Call a function of the CUDA runtime; its result without the error code.

        Raises:
            EngineError: The code says that it failed.
        """
        code, *results = getattr(self.api, function)(*arguments)
        if int(code):
            raise EngineError(f"{function} failed: {self._text(code)}.")
        return results[0] if results else None

    def _text(self, code: Any) -> str:  # noqa: ANN401
        text: bytes = self.api.cudaGetErrorString(code)[1]
        return text.decode()

    def make_current(self) -> None:
        """Use this device in the calling thread: CUDA remembers the current one per thread."""
        self.call("cudaSetDevice", self.index)

    def holds(self, address: int) -> bool:
        """Whether an address lies in this device's memory (or in memory that CUDA manages)."""
        found = self.call("cudaPointerGetAttributes", address)
        kinds = self.api.cudaMemoryType
        on_device = found.type in (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged)
        return on_device and found.device == self.index

    def allocate(self, num_bytes: int) -> "DeviceMemory":
        """Memory on the device that is freed with the object."""
        return DeviceMemory(self, num_bytes)

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Queue the copy of a contiguous array to the device."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        source = array.ctypes.data
        self.call("cudaMemcpyAsync", address, source, array.nbytes, kind, self._stream)

    def download(self, address: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Queue the copy of an array from the device; it is filled after ``synchronize``."""
        array: NDArray[Any] = np.empty(shape, dtype)
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        target = array.ctypes.data
        self.call("cudaMemcpyAsync", target, address, array.nbytes, kind, self._stream)
        return array

    def synchronize(self) -> None:
        """Wait until everything queued on the stream is done."""
        self.call("cudaStreamSynchronize", self._stream)

    def wait_for(self, stream: int) -> None:
        """Let our stream wait for what is queued on another one; the CPU does not wait."""
        self.call("cudaEventRecord", self._event, stream)
        self.call("cudaStreamWaitEvent", self._stream, self._event, 0)


class DeviceMemory:
    """A block of device memory."""

    def __init__(self, device: CudaDevice, num_bytes: int) -> None:
        """Raises EngineError when the device has no such amount left."""
        self._device, self.num_bytes = device, num_bytes
        self.address = int(device.call("cudaMalloc", max(num_bytes, 1)))

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._device.api.cudaFree(self.address)

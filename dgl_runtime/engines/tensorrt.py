"""TensorRT and TensorRT for RTX: engines built by dgl-export or dgl-bundle, run through cuda-python."""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.engines.cuda_device import CudaDevice, DeviceMemory
from dgl_runtime.engines.device_arrays import DeviceArray
from dgl_runtime.engines.engine import Arrays
from dgl_runtime.engines.engine_file import Shape, engine_path, read_engine, remedy
from dgl_runtime.engines.tensor_spec import TensorSpec
from dgl_runtime.engines.tensorrt_contexts import Contexts
from dgl_runtime.engines.tensorrt_library import PORTABLE, load_library, make_logger, said_by
from dgl_runtime.errors import EngineError

ALIGNMENT = 256  # bytes; TensorRT's condition on the address of a tensor


class TensorRtEngine:
    """The engine of one graph. Threads may share it; their runs take turns."""

    def __init__(self, graph: Path, *, device: str, library: str) -> None:
        """Load the engine that stands beside the graph.

        Args:
            graph: The ONNX file inside a bundle.
            device: ``cuda``.
            library: One of ``dgl_runtime.engines.tensorrt_library.LIBRARIES``.

        Raises:
            EngineError: Library, driver or GPU missing; no engine for them, a damaged one, or one of
                another graph; not enough memory.
        """
        if device != "cuda":
            raise EngineError(f"{library} runs on cuda, device is {device!r}.")
        module = load_library(library)
        self._cuda = CudaDevice()  # first: without a driver, TensorRT's own loader may crash
        gpu = None if library in PORTABLE else self._cuda.gpu
        path = engine_path(graph, library, module.__version__, gpu)
        self._info, plan = read_engine(path, graph, gpu)
        self._log = make_logger(module)
        self._runtime = module.Runtime(self._log)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{path} does not load on {self._cuda.gpu.name} "
                f"({self._cuda.gpu.compute_capability}): {said_by(self._log)}. {remedy(path)}"
            )
        self._lock = Lock()
        self._contexts = Contexts(module, engine, self._cuda, self._log)
        (self._input,) = self._info.inputs
        self._memory = self._allocate()
        self.description = (
            f"{library} {module.__version__} (cuda, {self._cuda.gpu.name}, {self._info.precision})"
        )

    def _allocate(self) -> dict[str, DeviceMemory]:
        """A buffer for each tensor, large enough for every profile: addresses never change."""
        sizes = {
            spec.name: max(
                _num_bytes(spec, self._shape_of(spec, profile.maximum))
                for profile in self._info.profiles
            )
            for spec in (self._input, *self._info.outputs)
        }
        return {name: self._cuda.allocate(size) for name, size in sizes.items()}

    def _shape_of(self, spec: TensorSpec, shape: Shape) -> Shape:
        """Shape of a tensor where the input has this shape: free dimensions go by their names."""
        free = dict(zip(self._input.shape, shape, strict=True))
        return tuple(dim if isinstance(dim, int) else free[dim] for dim in spec.shape)

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Named arrays in, named numpy arrays out; more rows than the engine takes run in parts.

        Args:
            inputs: Numpy arrays, or arrays on the CUDA device (see ``DeviceArray``); those are read
                where they lie and must not change until this returns.

        Raises:
            EngineError: Another name, dtype or shape than the engine takes, or TensorRT fails.
        """
        if set(inputs) != {self._input.name}:
            raise EngineError(
                f"inputs are {', '.join(sorted(inputs))}, the engine takes {self._input.name}."
            )
        given = inputs[self._input.name]
        with self._lock:
            self._cuda.make_current()
            # Named until the end: it keeps the producer's memory alive while the GPU reads it.
            array = DeviceArray.of(given, device=self._cuda.index, stream=self._cuda.stream)
            if array is not None and array.stream is not None:
                self._cuda.wait_for(array.stream)
            rows = np.ascontiguousarray(given) if array is None else array
            largest = max(profile.maximum[0] for profile in self._info.profiles)
            starts = range(0, max(len(rows), 1), largest)
            parts = [self._run_part(rows[start : start + largest]) for start in starts]
            self._cuda.synchronize()
        return {
            spec.name: np.concatenate([part[spec.name] for part in parts])
            for spec in self._info.outputs
        }

    def _run_part(self, rows: "NDArray[Any] | DeviceArray") -> Arrays:
        """Queue a run and the copies of its outputs, which are filled after ``synchronize``."""
        profile = self._choose_profile(rows.shape, rows.dtype)
        addresses = {name: block.address for name, block in self._memory.items()}
        if isinstance(rows, DeviceArray):
            addresses[self._input.name] = self._address_of(rows)
        else:
            self._cuda.upload(rows, addresses[self._input.name])
        self._contexts.run(profile, self._input.name, rows.shape, addresses)
        return {
            spec.name: self._cuda.download(
                addresses[spec.name], self._shape_of(spec, rows.shape), spec.dtype
            )
            for spec in self._info.outputs
        }

    def _choose_profile(self, shape: Shape, dtype: "np.dtype[Any]") -> int:
        if dtype != self._input.dtype:
            raise EngineError(
                f"{self._input.name} is {dtype}, the engine takes {self._input.dtype}. Convert it first."
            )
        for number, profile in enumerate(self._info.profiles):
            if profile.covers(shape):
                return number
        known = " or ".join(map(str, self._info.profiles))
        raise EngineError(
            f"{self._input.name} has shape {list(shape)}, the engine takes {known}. "
            "Export again for other sizes."
        )

    def _address_of(self, array: DeviceArray) -> int:
        if not self._cuda.holds(array.pointer):
            raise EngineError(
                f"{self._input.name} does not lie on CUDA device {self._cuda.index}, where the engine "
                "runs. Copy it there first."
            )
        if array.pointer % ALIGNMENT:
            raise EngineError(
                f"{self._input.name} starts at device address {array.pointer:#x}, TensorRT needs a "
                f"multiple of {ALIGNMENT}. Copy it into an array of its own on the device first."
            )
        return array.pointer


def _num_bytes(spec: TensorSpec, shape: Shape) -> int:
    return int(np.prod(shape)) * np.dtype(spec.dtype).itemsize

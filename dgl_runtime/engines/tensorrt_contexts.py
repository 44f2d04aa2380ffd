"""Launching a TensorRT engine: contexts that share one activation memory, and CUDA graphs of them.

A launch seen for the second time gets a context of its own and is captured: TensorRT allows a captured
context to run with no other shape or address afterwards. From the third time on it is one graph launch.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dgl_runtime.engines.cuda_device import CudaDevice
from dgl_runtime.engines.engine_file import Shape
from dgl_runtime.engines.tensorrt_library import said_by
from dgl_runtime.errors import EngineError

logger = logging.getLogger(__name__)
# Graphs kept; captions of every length from 2 to 32 fit. The one not used for longest goes first.
MAX_GRAPHS = 32


@dataclass(frozen=True)
class Launch:
    """One way to run an engine."""

    profile: int
    shape: Shape  # of the input
    addresses: tuple[tuple[str, int], ...]  # of every tensor


class Contexts:
    """The execution contexts of an engine; one launch at a time, on the device's stream."""

    def __init__(self, library: Any, engine: Any, cuda: CudaDevice, log: Any) -> None:  # noqa: ANN401
        """Make a context for each optimization profile.

        Raises:
            EngineError: The device has not enough memory for them.
        """
        self._library, self._engine, self._cuda, self._log = library, engine, cuda, log
        self._memory = cuda.allocate(engine.device_memory_size_v2)
        profiles = range(engine.num_optimization_profiles)
        self._contexts = [self._make(profile) for profile in profiles]
        self._seen: OrderedDict[Launch, None] = OrderedDict()
        self._graphs: OrderedDict[Launch, tuple[Any, Any]] = OrderedDict()
        self._can_capture = True

    def __del__(self) -> None:
        for graph, _ in getattr(self, "_graphs", {}).values():
            self._cuda.api.cudaGraphExecDestroy(graph)

    def _make(self, profile: int) -> Any:  # noqa: ANN401
        """A context whose activations lie in the memory that all share: only one runs at a time."""
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        self._check(context, "create_execution_context")
        context.set_device_memory(self._memory.address, self._memory.num_bytes)
        chosen = context.set_optimization_profile_async(profile, self._cuda.stream)
        self._check(chosen, "set_optimization_profile_async")
        return context

    def run(self, profile: int, name: str, shape: Shape, addresses: Mapping[str, int]) -> None:
        """Queue a run on the device's stream.

        Args:
            profile: Index of the optimization profile.
            name: The input.
            shape: Its shape.
            addresses: Device addresses of the input and all outputs.

        Raises:
            EngineError: TensorRT refuses it; the message holds its own words.
        """
        launch = Launch(profile, shape, tuple(sorted(addresses.items())))
        if launch in self._graphs:
            self._graphs.move_to_end(launch)
            graph, _ = self._graphs[launch]
            self._cuda.call("cudaGraphLaunch", graph, self._cuda.stream)
        elif launch in self._seen and self._is_capturable(profile):
            del self._seen[launch]
            context = self._make(profile)
            self._execute(context, launch, name)  # the warm-up is the run that was asked for
            self._capture(context, launch)
        else:
            self._execute(self._contexts[profile], launch, name)
            self._seen[launch] = None
            if len(self._seen) > MAX_GRAPHS:
                self._seen.popitem(last=False)

    def _is_capturable(self, profile: int) -> bool:
        """Whether to try: TensorRT for RTX says no while it still compiles kernels for a shape."""
        ask = getattr(self._contexts[profile], "is_stream_capturable", None)
        return self._can_capture and (ask is None or ask(self._cuda.stream))

    def _execute(self, context: Any, launch: Launch, name: str) -> None:  # noqa: ANN401
        self._check(context.set_input_shape(name, launch.shape), "set_input_shape")
        for tensor, address in launch.addresses:
            self._check(context.set_tensor_address(tensor, address), "set_tensor_address")
        if missing := context.infer_shapes():
            raise EngineError(f"TensorRT does not know the shape of {', '.join(missing)}.")
        self._check(context.execute_async_v3(self._cuda.stream), "execute_async_v3")

    def _capture(self, context: Any, launch: Launch) -> None:  # noqa: ANN401
        """Keep a launch as a CUDA graph; an engine that cannot be captured runs on without."""
        cuda, stream = self._cuda, self._cuda.stream
        # Not the global mode: there, another thread's engine that allocates would end our capture.
        mode = cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        try:
            cuda.call("cudaStreamBeginCapture", stream, mode)
            queued = context.execute_async_v3(stream)
            graph = cuda.call("cudaStreamEndCapture", stream)
            self._check(queued, "execute_async_v3 under capture")
            executable = cuda.call("cudaGraphInstantiate", graph, 0)
            cuda.call("cudaGraphDestroy", graph)
        except EngineError as error:
            self._can_capture = False
            logger.warning("no CUDA graphs for this engine, launches stay single: %s", error)
            return
        self._graphs[launch] = (executable, context)
        if len(self._graphs) > MAX_GRAPHS:
            _, (oldest, _) = self._graphs.popitem(last=False)
            cuda.synchronize()  # it may still run
            cuda.call("cudaGraphExecDestroy", oldest)

    def _check(self, result: Any, what: str) -> None:  # noqa: ANN401
        if result is None or result is False:
            raise EngineError(f"TensorRT's {what} failed: {said_by(self._log)}.")

"""A stand-in for the runtime half of ``tensorrt``: its "engines" are JSON, its kernels are numpy.

It refuses what TensorRT's documentation forbids. Classes have the real names, so that a test can look
every attribute up in the real modules.
"""

import ctypes
import json
from enum import IntEnum

import numpy as np


def compute(x, num_outputs):
    """What the stand-in calculates: sums a row, in two sizes."""
    sums = x.reshape(len(x), -1).astype(np.float32).sum(axis=1)
    return sums[:, None] * np.arange(1, num_outputs + 1, dtype=np.float32)


def make_plan(info):
    """The stand-in's serialized engine for a sidecar."""
    shapes = [[p.minimum, p.maximum] for p in info.profiles]
    (spec,), outputs = info.inputs, [[one.name, one.shape[-1]] for one in info.outputs]
    return json.dumps({"input": spec.name, "outputs": outputs, "profiles": shapes}).encode()


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._profile, self._shape, self._memory = engine, 0, None, None
        self._addresses, self._warm, self._captured = {}, False, False

    def _change(self):
        assert not self._captured, "a captured context was changed: undefined behaviour"

    def set_device_memory(self, memory, size):
        assert memory % 256 == 0
        assert size >= self._engine.device_memory_size_v2
        self._memory = memory

    def set_optimization_profile_async(self, index, stream):
        self._change()
        assert stream == 77
        self._profile, self._shape, self._warm = index, None, False
        return True

    def set_input_shape(self, name, shape):
        self._change()
        low, high = self._engine.plan["profiles"][self._profile]
        if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            self._engine.log(f"Static dimension mismatch for {name}")
            return False
        self._warm = self._warm and shape == self._shape
        self._shape = shape
        return True

    def set_tensor_address(self, name, memory):
        self._change()
        self._addresses[name] = memory
        return memory % 256 == 0

    def infer_shapes(self):
        return [] if self._shape else [self._engine.plan["input"]]

    def execute_async_v3(self, stream):
        plan, cuda = self._engine.plan, self._engine.cuda
        names = {plan["input"], *(name for name, _ in plan["outputs"])}
        assert stream == 77
        assert self._memory
        assert set(self._addresses) == names
        if cuda.capturing is not None:
            if not self._warm or self._engine.uncapturable:
                self._engine.log("the first run of a shape cannot be captured")
                return False
            self._captured = True
        cuda.calls.append("execute")
        shape, addresses = self._shape, dict(self._addresses)
        cuda.queue(lambda: self._engine.kernel(shape, addresses))
        self._warm = True
        return True


class ICudaEngine:
    device_memory_size_v2 = 1024

    def __init__(self, plan, runtime):
        self.plan, self.cuda, self.log = plan, runtime.cuda, runtime.error
        self.uncapturable = runtime.uncapturable

    @property
    def num_optimization_profiles(self):
        return len(self.plan["profiles"])

    def create_execution_context(self, strategy):
        assert strategy.name == "USER_MANAGED"  # the real enumeration or ours
        return IExecutionContext(self)

    def kernel(self, shape, addresses):
        dtype = {"tokens": np.int32, "frames": np.uint8}[self.plan["input"]]
        x = _at(addresses[self.plan["input"]], shape, dtype)
        for name, last in self.plan["outputs"]:
            width = last if isinstance(last, int) else shape[1]
            _at(addresses[name], (shape[0], width), np.float32)[:] = compute(x, width)


class Runtime:
    cuda, uncapturable = None, False  # set by whoever installs the stand-in

    def __init__(self, logger):
        self._logger = logger

    def error(self, message):
        self._logger.log(ILogger.Severity.ERROR, message)

    def deserialize_cuda_engine(self, serialized_engine):
        try:
            return ICudaEngine(json.loads(serialized_engine), self)
        except ValueError:
            self.error("Serialization assertion failed:\n  magic tag does not match")
            return None


def _at(address, shape, dtype):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_byte * size).from_address(address), dtype).reshape(shape)


def unknown_names(real):
    """Names of the stand-in's classes that a real module does not have."""
    classes = (ILogger, ExecutionContextAllocationStrategy, IExecutionContext, ICudaEngine, Runtime)
    names = [f"{one.__name__}.{name}" for one in classes for name in vars(one) if name[0] != "_"]
    names += [f"ILogger.Severity.{one.name}" for one in ILogger.Severity]
    ours = {"Runtime.cuda", "Runtime.uncapturable", "Runtime.error", "ICudaEngine.kernel"}
    return [name for name in names if name not in ours and not _has(real, name)]


def _has(real, name):
    for part in name.split("."):
        real = getattr(real, part, None)
    return real is not None

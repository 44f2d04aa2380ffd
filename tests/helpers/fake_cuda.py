"""A stand-in for ``cuda.bindings.runtime``: device memory is host memory, work on a stream waits for its end.

Each function returns a tuple that starts with an error code, as the real ones do.
"""

# ruff: noqa: N801, N802, N815

import ctypes
import sys
import threading
import time
from enum import IntEnum
from types import ModuleType, SimpleNamespace

import numpy as np


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaMemoryType(IntEnum):
    cudaMemoryTypeUnregistered = 0
    cudaMemoryTypeDevice = 2
    cudaMemoryTypeManaged = 3


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


ERRORS = {2: b"out of memory", 35: b"CUDA driver version is insufficient", 900: b"capturing"}


class FakeCuda:
    """The module; ``calls`` are the names of the functions called, in order."""

    cudaMemcpyKind, cudaMemoryType = cudaMemcpyKind, cudaMemoryType
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking, cudaEventDisableTiming = 1, 2

    def __init__(self, *, name=b"NVIDIA Fake 1", capability=(8, 6), memory=1 << 30):
        self.name, self.capability, self.free = name, capability, memory
        self.code, self.count = 0, 1  # of cudaGetDeviceCount
        self.blocks, self.calls, self.waits = {}, [], []
        self.capturing = None  # what a capture has recorded so far
        self.current_device, self.device_of_memory = 0, 0
        self.work, self.user = [], None  # queued on the stream, by this thread

    def array(self, values):
        """Copy an array into new device memory; its address."""
        values = np.ascontiguousarray(values)
        address = self.cudaMalloc(values.nbytes)[1]
        ctypes.memmove(address, values.ctypes.data, values.nbytes)
        return address

    def cudaGetErrorString(self, code):
        return 0, ERRORS[int(code)]

    def cudaGetDeviceCount(self):
        return (self.code, None) if self.code else (0, self.count)

    def cudaGetDevice(self):
        return 0, self.current_device

    def cudaSetDevice(self, index):
        self.current_device = index
        return (0,)

    def cudaGetDeviceProperties(self, _):
        major, minor = self.capability
        return 0, SimpleNamespace(name=self.name + b"\0" * 8, major=major, minor=minor)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        return 0, 77

    def cudaEventCreateWithFlags(self, flags):
        assert flags == self.cudaEventDisableTiming
        return 0, 88

    def cudaStreamDestroy(self, _):
        return (0,)

    def cudaEventDestroy(self, _):
        return (0,)

    def cudaMalloc(self, size):
        if self.capturing is not None:
            return 900, None
        if size > self.free:
            return 2, None
        self.free -= size
        block = (ctypes.c_byte * (size + 256))()
        address = -(-ctypes.addressof(block) // 256) * 256
        self.blocks[address] = (size, block)
        return 0, address

    def cudaFree(self, address):
        size, _ = self.blocks.pop(address)
        self.free += size
        return (0,)

    def cudaPointerGetAttributes(self, address):
        mine = any(start <= address < start + size for start, (size, _) in self.blocks.items())
        kind = cudaMemoryType.cudaMemoryTypeDevice if mine else cudaMemoryType(0)
        return 0, SimpleNamespace(type=kind, device=self.device_of_memory if mine else -2)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert stream == 77
        self.calls.append(kind.name)
        self.queue(lambda: ctypes.memmove(target, source, size))
        return (0,)

    def cudaStreamSynchronize(self, _):
        self.calls.append("synchronize")
        if self.capturing is not None:
            return (900,)
        for work in self.work:
            work()
        self.work, self.user = [], None
        return (0,)

    def cudaEventRecord(self, event, stream):
        self.waits.append(("record", event, stream))
        return (0,)

    def cudaStreamWaitEvent(self, stream, event, flags):
        self.waits.append(("wait", stream, event, flags))
        return (0,)

    def queue(self, work):
        """Put work on the stream, where it waits for ``cudaStreamSynchronize``, or into a capture."""
        me = threading.get_ident()
        assert self.user in (None, me), "two threads use one stream at a time"
        self.user = me
        time.sleep(0)  # let another thread try
        (self.work if self.capturing is None else self.capturing).append(work)

    def cudaStreamBeginCapture(self, stream, mode):
        assert (stream, mode) == (77, cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        self.calls.append("begin capture")
        self.capturing = []
        return (0,)

    def cudaStreamEndCapture(self, _):
        self.calls.append("end capture")
        graph, self.capturing = self.capturing, None
        return 0, graph

    def cudaGraphInstantiate(self, graph, flags):
        assert flags == 0
        self.calls.append("instantiate")
        return 0, list(graph)

    def cudaGraphDestroy(self, graph):
        graph.clear()
        return (0,)

    def cudaGraphExecDestroy(self, graph):
        self.calls.append("destroy graph")
        graph.clear()
        return (0,)

    def cudaGraphLaunch(self, graph, stream):
        assert stream == 77
        self.calls.append("launch graph")
        self.work += graph
        return (0,)


def install(monkeypatch, cuda):
    """Let ``from cuda.bindings import runtime`` give the stand-in."""
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda
    for name, module in {"cuda": ModuleType("cuda"), "cuda.bindings": bindings}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return cuda

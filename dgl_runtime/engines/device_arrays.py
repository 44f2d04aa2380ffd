"""Arrays that lie on a CUDA device already: taken by address (zero-copy).

Two protocols say where an array lies: DLPack (torch, cupy, jax, NVDEC frames) and
``__cuda_array_interface__`` (pycuda, cupy, numba). DLPack goes first, because it lets the producer
order its work before ours; torch's ``__cuda_array_interface__`` says nothing about its stream.
"""

import ctypes
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dgl_runtime.errors import EngineError, reason_of

LEGACY_DEFAULT_STREAM = 1  # its number in both protocols; 0 would be ambiguous
_CUDA, _CUDA_MANAGED = 2, 13  # DLPack's device types
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLPack's type codes
_STREAM_SINCE = 3  # version of __cuda_array_interface__ that tells the stream


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in the memory of a CUDA device."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None  # whose queued work must come first; None where that is taken care of
    owner: object  # keeps the memory alive

    @classmethod
    def of(cls, array: object, *, device: int, stream: int) -> "DeviceArray | None":
        """Describe an array on a CUDA device; None for anything that lies in the host's memory.

        Args:
            array: Anything.
            device: Index of the device that will read it.
            stream: Handle of the stream that will read it.

        Raises:
            EngineError: On another device, not contiguous, masked, or not to be exported.
        """
        if _dlpack_device(array)[0] in (_CUDA, _CUDA_MANAGED):
            return _from_dlpack(array, device, stream)
        interface = getattr(array, "__cuda_array_interface__", None)
        return None if interface is None else _from_interface(interface, array)

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def __getitem__(self, rows: slice) -> "DeviceArray":
        """Some of the rows, where they lie."""
        start, stop, _ = rows.indices(len(self))
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (stop - start, *self.shape[1:])
        return replace(self, pointer=self.pointer + start * row_bytes, shape=shape)


def lies_on_device(array: object) -> bool:
    """Whether an array lies in the memory of a CUDA device."""
    on_device = _dlpack_device(array)[0] in (_CUDA, _CUDA_MANAGED)
    return on_device or hasattr(array, "__cuda_array_interface__")


def _dlpack_device(array: object) -> tuple[int, int]:
    device = getattr(array, "__dlpack_device__", None)
    if device is None:
        return (0, 0)
    kind, index = device()
    return int(kind), int(index)


def _from_interface(interface: dict[str, Any], owner: object) -> DeviceArray:
    if interface.get("mask") is not None:
        raise EngineError("the device array has a mask; give an array without one.")
    shape, dtype = tuple(map(int, interface["shape"])), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None:
        _check_contiguous(shape, [stride // dtype.itemsize for stride in strides])
    stream = interface.get("stream")
    if interface["version"] < _STREAM_SINCE:
        stream = LEGACY_DEFAULT_STREAM  # where such producers work unless told otherwise
    return DeviceArray(int(interface["data"][0]), shape, dtype, stream, owner)


class _DlTensor(ctypes.Structure):
    """DLPack's DLTensor, the first field of what a capsule points to."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _tensor_in(capsule: object) -> _DlTensor:
    """Read a capsule without consuming it: it goes on owning the tensor and frees it when it goes."""
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return _DlTensor.from_address(pointer_of(capsule, b"dltensor"))


def _from_dlpack(array: Any, device: int, stream: int) -> DeviceArray:  # noqa: ANN401
    try:
        capsule = array.__dlpack__(stream=stream)
        tensor = _tensor_in(capsule)
    except Exception as error:  # each library raises its own
        raise EngineError(f"the device array cannot be shared: {reason_of(error)}.") from error
    if tensor.device_id != device:
        raise EngineError(
            f"the device array lies on CUDA device {tensor.device_id}, the engine runs on {device}. "
            "Copy it there first."
        )
    if tensor.code not in _KINDS or tensor.lanes != 1:
        raise EngineError(
            f"the device array has DLPack type {tensor.code} with {tensor.lanes} lanes, which numpy "
            "does not know. Convert it to the graph's dtype."
        )
    dtype = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides:
        _check_contiguous(shape, tensor.strides[: tensor.ndim])
    address = (tensor.data or 0) + tensor.byte_offset
    return DeviceArray(address, shape, dtype, None, capsule)


def _check_contiguous(shape: tuple[int, ...], strides: list[int]) -> None:
    """Refuse strides, in items, that are not those of a C-contiguous array; an axis of 1 has any."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            raise EngineError(
                f"the device array of shape {list(shape)} is not C-contiguous (strides {strides} "
                "items). Make it contiguous on the device first."
            )
        expected *= size

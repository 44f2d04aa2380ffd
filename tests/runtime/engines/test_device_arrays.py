import ctypes

import numpy as np
import pytest

from dgl_runtime.engines.device_arrays import LEGACY_DEFAULT_STREAM, DeviceArray, _tensor_in
from dgl_runtime.errors import EngineError
from tests.helpers.cuda_arrays import CudaDlpack, CudaInterface

OUR_STREAM = 77


def describe(array, device=0):
    return DeviceArray.of(array, device=device, stream=OUR_STREAM)


def address_of(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("kind", [CudaInterface, CudaDlpack])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "bool"])
def test_address_shape_and_dtype_are_those_of_the_array(kind, dtype):
    array = np.zeros((2, 3, 4), dtype)
    found = describe(kind(array))
    assert (found.pointer, found.shape, found.dtype) == (address_of(array), (2, 3, 4), dtype)


@pytest.mark.parametrize("array", [np.zeros(3), [1, 2], "text", CudaDlpack(np.zeros(3), kind=1)])
def test_what_lies_in_host_memory_is_no_device_array(array):
    assert describe(array) is None


@pytest.mark.parametrize("kind", [CudaInterface, CudaDlpack])
def test_a_part_of_an_array_starts_where_the_part_does(kind):
    array = np.zeros((4, 64), np.int32)
    found = describe(kind(array[2:]))
    assert found.pointer == address_of(array) + 2 * 64 * 4
    assert found.shape == (2, 64)


def test_rows_of_a_description_are_those_of_the_array():
    array = np.zeros((5, 6, 2), np.int32)
    found = describe(CudaInterface(array))
    assert len(found) == 5
    for rows in (slice(0, 2), slice(2, 4), slice(4, 9)):
        part = found[rows]
        assert (part.pointer, part.shape) == (address_of(array[rows]), array[rows].shape)
        assert part.owner is found.owner


@pytest.mark.parametrize("kind", [CudaInterface, CudaDlpack])
@pytest.mark.parametrize(
    "view", [lambda x: x.T, lambda x: x[:, ::2], lambda x: x[::-1], lambda x: x[:, :3]]
)
def test_strided_arrays_are_refused(kind, view):
    with pytest.raises(EngineError, match=r"is not C-contiguous .* Make it contiguous"):
        describe(kind(view(np.zeros((4, 6), np.float32))))


@pytest.mark.parametrize("kind", [CudaInterface, CudaDlpack])
def test_an_axis_of_one_may_have_any_stride(kind):
    assert describe(kind(np.zeros((4, 6), np.float32)[1:2])).shape == (1, 6)
    array = np.lib.stride_tricks.as_strided(np.zeros(8, np.int32), (1, 8), (999, 4))
    assert describe(kind(array)).shape == (1, 8)


@pytest.mark.parametrize(("stream", "waits_for"), [(None, None), (1, 1), (2, 2), (4711, 4711)])
def test_the_stream_of_the_interface_is_waited_for(stream, waits_for):
    assert describe(CudaInterface(np.zeros(2), stream=stream)).stream == waits_for


def test_an_interface_too_old_to_name_its_stream_means_the_default_one():
    assert describe(CudaInterface(np.zeros(2), version=2)).stream == LEGACY_DEFAULT_STREAM


def test_dlpack_is_told_our_stream_and_orders_its_own_work():
    array = CudaDlpack(np.zeros(2))
    assert describe(array).stream is None
    assert array.streams == [OUR_STREAM]


def test_dlpack_goes_before_the_interface():
    array = CudaDlpack(np.zeros(2))
    array.__cuda_array_interface__ = None
    assert describe(array).stream is None


def test_dlpack_of_another_device_is_refused():
    with pytest.raises(EngineError, match=r"lies on CUDA device 1, the engine runs on 0\."):
        describe(CudaDlpack(np.zeros(2), device=1))


def test_a_masked_array_is_refused():
    with pytest.raises(EngineError, match="has a mask"):
        describe(CudaInterface(np.zeros(2), mask=object()))


class Changed(CudaDlpack):
    """Its capsule says something else, by ``change``."""

    def __init__(self, array, change):
        super().__init__(array)
        self.change = change

    def __dlpack__(self, *, stream):
        capsule = super().__dlpack__(stream=stream)
        self.change(_tensor_in(capsule))
        return capsule


@pytest.mark.parametrize(("field", "value"), [("code", 4), ("lanes", 2)])
def test_a_type_that_numpy_lacks_is_refused(field, value):
    array = Changed(np.zeros(2, np.float16), lambda tensor: setattr(tensor, field, value))
    with pytest.raises(EngineError, match=r"DLPack type . with . lanes, which numpy does not know"):
        describe(array)


def test_an_offset_in_bytes_counts():
    def shift(tensor):
        tensor.data, tensor.byte_offset = tensor.data - 64, 64

    array = np.zeros(2)
    assert describe(Changed(array, shift)).pointer == address_of(array)


def test_a_producer_that_refuses_is_quoted():
    class Refusing(CudaDlpack):
        def __dlpack__(self, *, stream):
            raise BufferError("it requires grad")

    with pytest.raises(EngineError, match=r"cannot be shared: it requires grad\."):
        describe(Refusing(np.zeros(2)))


def test_a_capsule_that_was_used_up_is_refused():
    array = CudaDlpack(np.zeros(2))
    rename = ctypes.pythonapi.PyCapsule_SetName
    rename.argtypes = (ctypes.py_object, ctypes.c_char_p)
    capsule = array.__dlpack__(stream=1)
    rename(capsule, b"used_dltensor")
    array.__dlpack__ = lambda **_: capsule
    with pytest.raises(EngineError, match="cannot be shared: PyCapsule_GetPointer"):
        describe(array)
    rename(capsule, b"dltensor")  # so that it is freed


def test_the_memory_lives_as_long_as_the_description():
    array = np.full(1 << 20, 7, np.uint8)
    found = describe(CudaDlpack(array))
    del array
    content = (ctypes.c_uint8 * (1 << 20)).from_address(found.pointer)
    assert set(bytes(content)) == {7}


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["torch", "cupy", "pycuda"])
def test_real_device_arrays_are_found_where_they_lie(library):
    array, address = real_array(library)
    found = describe(array)
    assert (found.pointer, found.shape, found.dtype) == (address, (2, 3), np.uint8)


def real_array(library):
    """uint8 [2, 3] on the GPU, and its address."""
    module = pytest.importorskip(library)
    if library == "torch":
        tensor = module.ones((2, 3), dtype=module.uint8, device="cuda")
        return tensor, tensor.data_ptr()
    if library == "cupy":
        made = module.ones((2, 3), dtype=module.uint8)
        return made, made.data.ptr
    pytest.importorskip("pycuda.autoprimaryctx")
    gpuarray = pytest.importorskip("pycuda.gpuarray")
    made = gpuarray.to_gpu(np.ones((2, 3), np.uint8))
    return made, int(made.gpudata)

"""Arrays of numpy that say they lie on a CUDA device."""

from dgl_runtime.engines.device_arrays import _tensor_in


class CudaInterface:
    """Like a pycuda or cupy array: tells its address in ``__cuda_array_interface__``."""

    def __init__(self, array, **changes):
        given = array.__array_interface__
        kept = {name: given[name] for name in ("shape", "typestr", "data")}
        strides = None if array.flags.c_contiguous else array.strides
        self.__cuda_array_interface__ = {**kept, "strides": strides, "version": 3, **changes}


class CudaDlpack:
    """Like a torch tensor: its DLPack capsule says that it lies on a CUDA device."""

    def __init__(self, array, device=0, kind=2):
        self.array, self.device, self.kind, self.streams = array, device, kind, []

    def __dlpack_device__(self):
        return (self.kind, self.device)

    def __dlpack__(self, *, stream):
        self.streams.append(stream)
        capsule = self.array.__dlpack__()
        tensor = _tensor_in(capsule)
        tensor.device_type, tensor.device_id = self.kind, self.device
        return capsule

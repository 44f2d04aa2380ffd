"""The examples run, on stand-ins of what they need a GPU for."""

import runpy
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.engines.engine_file import Profile
from tests import ROOT
from tests.helpers.cuda_arrays import CudaInterface
from tests.helpers.engine_files import install_stand_ins, make_engine

EXAMPLE = ROOT / "examples/pycuda_frames.py"


@pytest.fixture
def pycuda(monkeypatch):
    """A pycuda whose arrays lie in the memory of the stand-in."""
    cuda = install_stand_ins(monkeypatch)

    def to_gpu(array):
        return CudaInterface(array, data=(cuda.array(array), False))

    package = ModuleType("pycuda")
    package.gpuarray = SimpleNamespace(to_gpu=to_gpu)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.autoprimaryctx", ModuleType("pycuda.autoprimaryctx"))
    return cuda


def test_frames_of_pycuda_give_what_frames_on_the_host_give(
    bundle, pycuda, tmp_path, monkeypatch, capsys
):
    if not EXAMPLE.exists():
        pytest.skip("the examples are in the checkout only")
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    clips = Bundle(folder).manifest.clips
    size = clips.inputs[0].shape[-1]
    profile = Profile((1, 1, 3, size, size), (4, 4, 3, size, size), (4, 4, 3, size, size))
    tensors = (clips.inputs, clips.outputs)
    make_engine(folder / clips.file, tensors=tensors, profiles=(profile,))
    monkeypatch.setattr(sys, "argv", ["pycuda_frames.py", str(folder), "tensorrt"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out == (
        "tensorrt 11.4.0.106 (cuda, NVIDIA Fake 1, fp16): largest difference 0.0e+00\n"
    )
    assert pycuda.calls.count("cudaMemcpyHostToDevice") == 1  # of the frames on the host

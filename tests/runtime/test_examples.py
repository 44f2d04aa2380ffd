"""The examples run, on stand-ins where they need a GPU."""

import re
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.engines.engine_file import Profile
from tests import ROOT
from tests.helpers.cuda_arrays import CudaInterface
from tests.helpers.engine_files import install_stand_ins, make_engine

EXAMPLES = ROOT / "examples"


def run_example(monkeypatch, name, *arguments):
    if not EXAMPLES.exists():
        pytest.skip("the examples are in the checkout only")
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_videos_are_found_and_embedded_again(bundle, videos, tmp_path, monkeypatch, capsys):
    run_example(monkeypatch, "search_videos.py", bundle, videos, tmp_path / "gallery")
    added, hit, again = capsys.readouterr().out.splitlines()
    assert added.endswith(" clips of 3 videos added")
    found = re.fullmatch(r"(.+) ([\d.]+) s to ([\d.]+) s: (-?[\d.]+)", hit)
    assert Path(found[1]).parent == videos
    assert again == f"embedded again: {found[4]}"


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
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    clips = Bundle(folder).manifest.clip_encoder
    size = clips.inputs[0].shape[-1]
    profile = Profile((1, 1, 3, size, size), (4, 4, 3, size, size), (4, 4, 3, size, size))
    tensors = (clips.inputs, clips.outputs)
    make_engine(folder / clips.file, tensors=tensors, profiles=(profile,))
    run_example(monkeypatch, "pycuda_frames.py", folder, "tensorrt")
    assert capsys.readouterr().out == (
        "tensorrt 11.4.0.106 (cuda, NVIDIA Fake 1, fp16): largest difference 0.0e+00\n"
    )
    assert pycuda.calls.count("cudaMemcpyHostToDevice") == 1  # of the frames on the host

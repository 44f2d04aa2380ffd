"""Folders with graphs that only look like graphs, and engines for the stand-in of TensorRT."""

import hashlib
import sys

import numpy as np
import pytest

from dgl_runtime.engines.cuda_device import CudaDevice, Gpu
from dgl_runtime.engines.engine_file import (
    SCHEMA_VERSION,
    EngineInfo,
    Profile,
    engine_path,
    graph_digest,
    save_engines,
)
from dgl_runtime.engines.installed import KINDS
from dgl_runtime.engines.opening import open_engine
from dgl_runtime.engines.tensor_spec import TensorSpec
from tests.helpers import fake_cuda, fake_tensorrt
from tests.helpers.fake_tensorrt import make_plan

VERSION = "11.4.0.106"
RTX_RUNS = (
    "7.5",
    "8.0",
    "8.6",
    "8.9",
    "12.0",
    "12.1",
)  # compute capabilities; H100 and H200 have 9.0
FAKE_GPU = Gpu("NVIDIA Fake 1", "8.6")
EMBEDDING = TensorSpec("embedding", "float32", ("batch", 5))
TENSORS = {
    "text_encoder": ((TensorSpec("tokens", "int32", ("batch", "length")),), (EMBEDDING,)),
    "clip_encoder": (
        (TensorSpec("frames", "uint8", ("batch", "frames", 3, 8, 8)),),
        (EMBEDDING, TensorSpec("frame_weights", "float32", ("batch", "frames"))),
    ),
}
PROFILES = {
    "text_encoder": (Profile((1, 2), (1, 4), (1, 32)), Profile((1, 2), (8, 4), (16, 32))),
    "clip_encoder": (Profile((1, 1, 3, 8, 8), (1, 4, 3, 8, 8), (4, 4, 3, 8, 8)),),
}


def require_on_gpu(engine):
    """Skip a test of TensorRT or TensorRT for RTX where it is not installed or has no such GPU."""
    pytest.importorskip(KINDS[engine].module)
    if engine == "trt-rtx" and (gpu := CudaDevice().gpu).compute_capability not in RTX_RUNS:
        pytest.skip(f"TensorRT for RTX does not run on {gpu}")


def make_graph(folder, kind="text_encoder"):
    graph = folder / f"{kind}.onnx"
    graph.write_bytes(b"graph")
    (folder / f"{kind}.onnx.data").write_bytes(b"weights")
    return graph


def make_engine(
    graph,
    *,
    library="tensorrt",
    version=VERSION,
    gpu=FAKE_GPU,
    plan=None,
    tensors=None,
    profiles=None,
):
    """Write an engine for a graph, of ``make_graph`` unless its tensors are given; its path."""
    inputs, outputs = tensors or TENSORS[graph.stem]
    profiles = profiles or PROFILES[graph.stem]
    digest = graph_digest(graph)
    name, capability = (gpu.name, gpu.compute_capability) if gpu else ("", "")

    def info(engine):
        sha256 = hashlib.sha256(engine).hexdigest()
        about = (SCHEMA_VERSION, library, version, name, capability, "fp16")
        return EngineInfo(*about, inputs, outputs, profiles, digest, sha256)

    plan = make_plan(info(b"")) if plan is None else plan
    path = engine_path(graph, library, version, gpu)
    save_engines({path: (info(plan), plan)})
    return path


def install_stand_ins(monkeypatch):
    """Let tensorrt, tensorrt_rtx and cuda-python be the stand-ins; the one of CUDA."""
    cuda = fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())
    monkeypatch.setattr(fake_tensorrt.Runtime, "cuda", cuda)
    monkeypatch.setattr(fake_tensorrt, "__version__", VERSION, raising=False)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, fake_tensorrt)
    return cuda


def load(folder, kind="text_encoder", **options):
    """An engine of the stand-in."""
    graph = make_graph(folder, kind)
    make_engine(graph, **options)
    return open_engine(graph, device="cuda", threads=0, engine="tensorrt")


def tokens(*shape):
    return np.random.default_rng(0).integers(0, 99, shape).astype(np.int32)


def frames(*shape):
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)

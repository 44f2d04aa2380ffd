"""Folders with graphs that only look like graphs, and engines for the stand-in of TensorRT."""

import hashlib

from fake_tensorrt import make_plan

from dgl_runtime.bundle import TensorSpec
from dgl_runtime.engines.cuda_device import Gpu
from dgl_runtime.engines.engine_file import (
    SCHEMA_VERSION,
    EngineInfo,
    Profile,
    engine_path,
    graph_digest,
    save_engines,
)

FAKE_GPU = Gpu("NVIDIA Fake 1", "8.6")
EMBEDDING = TensorSpec("embedding", "float32", ("batch", 5))
TENSORS = {
    "caption": ((TensorSpec("tokens", "int32", ("batch", "length")),), (EMBEDDING,)),
    "clip": (
        (TensorSpec("frames", "uint8", ("batch", "frames", 3, 8, 8)),),
        (EMBEDDING, TensorSpec("frame_weights", "float32", ("batch", "frames"))),
    ),
}
PROFILES = {
    "caption": (Profile((1, 2), (1, 4), (1, 32)), Profile((1, 2), (8, 4), (16, 32))),
    "clip": (Profile((1, 1, 3, 8, 8), (1, 4, 3, 8, 8), (4, 4, 3, 8, 8)),),
}


def make_graph(folder, kind="caption"):
    graph = folder / f"{kind}.onnx"
    graph.write_bytes(b"graph")
    (folder / f"{kind}.onnx.data").write_bytes(b"weights")
    return graph


def make_engine(graph, *, library="tensorrt", version="11.4.0.106", gpu=FAKE_GPU, plan=None):
    """Write an engine for a graph of ``make_graph``; its path."""
    inputs, outputs = TENSORS[graph.stem]
    digest = graph_digest(graph)
    name, capability = (gpu.name, gpu.compute_capability) if gpu else ("", "")

    def info(engine):
        sha256 = hashlib.sha256(engine).hexdigest()
        about = (SCHEMA_VERSION, library, version, name, capability, "fp16")
        return EngineInfo(*about, inputs, outputs, PROFILES[graph.stem], digest, sha256)

    plan = make_plan(info(b"")) if plan is None else plan
    path = engine_path(graph, library, version, gpu)
    save_engines({path: (info(plan), plan)})
    return path

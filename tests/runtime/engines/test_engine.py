import os
import shutil
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from dgl_runtime import DglError, Retriever
from dgl_runtime.engines.onnx import OnnxEngine
from dgl_runtime.engines.opening import open_engine
from dgl_runtime.errors import EngineError

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 32, 32), np.uint8)
without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this machine has CUDA"
)


@pytest.fixture
def graph(bundle):
    return bundle / "text_encoder.onnx"


def test_a_graph_runs_on_the_cpu_and_says_so(graph):
    engine = open_engine(graph, device="cpu", threads=1)
    out = engine.run({"tokens": np.array([[49406, 320, 49407]], np.int32)})
    assert list(out) == ["embedding"]
    assert out["embedding"].shape == (1, 32)
    assert engine.description == f"ONNX Runtime {ort.__version__} (cpu)"


@without_cuda
def test_cuda_on_a_machine_without_it_lists_what_there_is(bundle):
    retriever = Retriever(bundle, device="cuda")
    with pytest.raises(EngineError) as caught:
        retriever.embed_texts(["a dog"])
    there = ", ".join(ort.get_available_providers())
    assert str(caught.value) == (
        "device 'cuda' needs ONNX Runtime's CUDAExecutionProvider; this installation has "
        f"{there}. Install dgl-retrieval[gpu], or use cpu."
    )


@without_cuda
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_a_listed_provider_that_does_not_start_is_no_silent_fallback(graph, monkeypatch):
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: listed)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    with pytest.raises(EngineError, match=r"'cuda' was asked for, but .* fell back to CPUExec"):
        open_engine(graph, device="cuda", threads=1)


def test_bfloat16_on_the_cpu_names_the_engine_that_has_it(graph):
    with pytest.raises(EngineError, match=r"no bfloat16 on CPUs\. Take engine openvino"):
        open_engine(graph, device="cpu", threads=1, precision="bf16")


def test_onnx_runtime_may_not_fall_back_while_it_runs(graph, monkeypatch):
    given = {}
    real = ort.InferenceSession

    def session(*arguments, **options):
        given.update(options)
        return real(*arguments, **options)

    monkeypatch.setattr(ort, "InferenceSession", session)
    open_engine(graph, device="cpu", threads=1)
    assert given["providers"] == ["CPUExecutionProvider"]
    assert given["enable_fallback"] == 0


class OnDevice:
    """What pycuda's arrays look like, over memory of the host: ONNX Runtime is told it is its device."""

    def __init__(self, array, stream=None):
        self.shape = array.shape
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "version": 3,
            "stream": stream,
        }


@pytest.fixture
def bound(bundle, monkeypatch):
    """The clip encoder run as on CUDA, and the streams that were waited for."""
    engine = OnnxEngine(bundle / "clip_encoder.onnx", device="cpu", threads=1)
    waited = []
    monkeypatch.setattr(
        OnnxEngine, "_wait_for", lambda self, array: waited.append(array.stream), raising=True
    )
    return lambda frames: dict(
        zip(engine._outputs, engine._run_bound({"frames": frames}), strict=True)
    ), waited


def test_arrays_on_the_device_are_bound_by_address_after_their_stream(bundle, bound):
    run, waited = bound
    expected = open_engine(bundle / "clip_encoder.onnx", device="cpu", threads=1).run(
        {"frames": FRAMES}
    )
    for frames in (FRAMES, OnDevice(FRAMES), OnDevice(FRAMES, stream=7)):
        found = run(frames)
        assert found.keys() == expected.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name])
    assert waited == [None, 7]


def test_an_array_of_another_dtype_on_the_device_is_refused(bound):
    run, _ = bound
    with pytest.raises(Exception, match=r"[Uu]nexpected input data type"):
        run(OnDevice(FRAMES.view(np.int8)))


@pytest.mark.gpu
def test_frames_on_a_gpu_give_what_the_hosts_give(bundle):
    torch = pytest.importorskip("torch")
    engine = open_engine(bundle / "clip_encoder.onnx", device="cuda", threads=0)
    expected = engine.run({"frames": FRAMES})
    found = engine.run({"frames": torch.from_numpy(FRAMES).cuda()})
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
    cpu = open_engine(bundle / "clip_encoder.onnx", device="cpu", threads=1).run({"frames": FRAMES})
    np.testing.assert_allclose(found["embedding"], cpu["embedding"], rtol=0, atol=1e-4)


def part(provider, *operators):
    """What ONNX Runtime tells of the nodes that one provider runs."""
    nodes = [SimpleNamespace(op_type=operator) for operator in operators]
    return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)


@pytest.mark.parametrize(
    ("left", "refused"),
    [(["Shape", "Gather", "Unsqueeze"], None), (["Shape", "Gemm", "Conv"], "Conv, Gemm")],
)
def test_arithmetic_that_cuda_leaves_to_the_cpu_is_refused(graph, monkeypatch, left, refused):
    parts = [part("CPUExecutionProvider", *left), part("CUDAExecutionProvider", "MatMul")]
    session = ort.InferenceSession

    def opened(path, options, **how):
        made = session(path, ort.SessionOptions(), providers=["CPUExecutionProvider"])
        made.get_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        made.get_provider_graph_assignment_info = lambda: parts
        return made

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(ort, "InferenceSession", opened)
    if refused is None:
        assert "(cuda)" in OnnxEngine(graph, device="cuda", threads=1).description
    else:
        with pytest.raises(EngineError, match=rf"would run {refused} of .* on the CPU\. Use a"):
            OnnxEngine(graph, device="cuda", threads=1)


@pytest.mark.parametrize("device", ["gpu", "CPU", "", "cuda:0"])
def test_an_unknown_device_lists_the_known_ones(bundle, device):
    with pytest.raises(
        DglError, match=rf"device is '{device}'; it must be one of auto, cpu, cuda\."
    ):
        Retriever(bundle, device=device)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x0a" * 99])
def test_a_damaged_graph_is_named(tmp_path, content):
    (tmp_path / "text_encoder.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"text_encoder\.onnx does not load in ONNX Runtime"):
        open_engine(tmp_path / "text_encoder.onnx", device="cpu", threads=1)


@pytest.mark.parametrize("loss", ["missing", "short"])
def test_a_graph_without_its_weights_is_named(bundle, tmp_path, loss):
    for name in ("text_encoder.onnx", "text_encoder.onnx.data"):
        shutil.copy(bundle / name, tmp_path)
    if loss == "missing":
        (tmp_path / "text_encoder.onnx.data").unlink()
    else:
        os.truncate(tmp_path / "text_encoder.onnx.data", 1000)
    with pytest.raises(EngineError, match=r"text_encoder\.onnx does not load in ONNX Runtime"):
        open_engine(tmp_path / "text_encoder.onnx", device="cpu", threads=1)

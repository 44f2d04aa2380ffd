import os
import shutil

import numpy as np
import onnxruntime as ort
import pytest

from dgl_runtime import DglError, Retriever
from dgl_runtime.engines import open_engine
from dgl_runtime.errors import EngineError

without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this machine has CUDA"
)


@pytest.fixture
def graph(bundle):
    return bundle / "caption.onnx"


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


@pytest.mark.parametrize("device", ["gpu", "CPU", "", "cuda:0"])
def test_an_unknown_device_lists_the_known_ones(bundle, device):
    with pytest.raises(
        DglError, match=rf"device is '{device}'; it must be one of auto, cpu, cuda\."
    ):
        Retriever(bundle, device=device)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x0a" * 99])
def test_a_damaged_graph_is_named(tmp_path, content):
    (tmp_path / "caption.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"caption\.onnx does not load in ONNX Runtime"):
        open_engine(tmp_path / "caption.onnx", device="cpu", threads=1)


@pytest.mark.parametrize("loss", ["missing", "short"])
def test_a_graph_without_its_weights_is_named(bundle, tmp_path, loss):
    for name in ("caption.onnx", "caption.onnx.data"):
        shutil.copy(bundle / name, tmp_path)
    if loss == "missing":
        (tmp_path / "caption.onnx.data").unlink()
    else:
        os.truncate(tmp_path / "caption.onnx.data", 1000)
    with pytest.raises(EngineError, match=r"caption\.onnx does not load in ONNX Runtime"):
        open_engine(tmp_path / "caption.onnx", device="cpu", threads=1)

"""What a TensorRT engine refuses, each in one line; and that the stand-ins are like the real modules."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from dgl_runtime.engines.opening import open_engine
from dgl_runtime.errors import EngineError
from tests.helpers import fake_cuda, fake_tensorrt
from tests.helpers.engine_files import install_stand_ins, load, make_engine, make_graph, tokens


@pytest.fixture
def cuda(monkeypatch):
    return install_stand_ins(monkeypatch)


@pytest.fixture
def captions(cuda, tmp_path):
    return load(tmp_path)


@pytest.mark.parametrize("shape", [(1, 33), (16, 1), (4,), (0, 4)])
def test_a_shape_outside_all_profiles_names_them(captions, shape):
    with pytest.raises(EngineError) as caught:
        captions.run({"tokens": tokens(*shape)})
    assert str(caught.value) == (
        f"tokens has shape {list(shape)}, the engine takes [1, 2] to [1, 32] or [1, 2] to [16, 32]. "
        "Export again for other sizes."
    )


def test_another_dtype_is_refused_not_converted(captions):
    with pytest.raises(EngineError, match="tokens is int64, the engine takes int32"):
        captions.run({"tokens": np.zeros((1, 4), np.int64)})


@pytest.mark.parametrize("names", [[], ["frames"], ["tokens", "lengths"]])
def test_other_inputs_are_refused(captions, names):
    with pytest.raises(EngineError, match="the engine takes tokens"):
        captions.run(dict.fromkeys(names, tokens(1, 4)))


def test_the_cpu_is_refused(cuda, tmp_path):
    with pytest.raises(EngineError, match="'tensorrt' runs on cuda, device is 'cpu'"):
        open_engine(make_graph(tmp_path), device="cpu", threads=0, engine="tensorrt")


@pytest.mark.parametrize(
    ("code", "count", "reason"),
    [(35, None, "CUDA driver version is insufficient"), (0, 0, "it sees no GPU")],
)
def test_without_a_driver_tensorrt_is_never_touched(
    cuda, tmp_path, monkeypatch, code, count, reason
):
    cuda.code, cuda.count = code, count
    graph = make_graph(tmp_path)
    make_engine(graph)
    monkeypatch.delattr(fake_tensorrt, "Runtime")
    with pytest.raises(EngineError, match=rf"CUDA does not start: {reason}\. Install an NVIDIA"):
        open_engine(graph, device="cuda", threads=0, engine="tensorrt")


def test_a_missing_cuda_python_names_the_extra(cuda, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(
        EngineError, match=r"cuda-python, which does not import: .*dgl-retrieval\[trt"
    ):
        load(tmp_path)


def test_an_engine_for_another_gpu_is_refused_with_the_remedy(cuda, tmp_path):
    cuda.name = b"NVIDIA Fake 2"
    with pytest.raises(
        EngineError, match=r"nvidia-fake-2-sm86\.engine is missing.*there is .*fake-1"
    ):
        load(tmp_path)


def test_a_portable_engine_serves_any_gpu(cuda, tmp_path):
    cuda.name = b"NVIDIA Fake 2"
    graph = make_graph(tmp_path)
    make_engine(graph, library="trt-rtx", gpu=None)
    engine = open_engine(graph, device="cuda", threads=0, engine="trt-rtx")
    assert engine.description == "trt-rtx 11.4.0.106 (cuda, NVIDIA Fake 2, fp16)"


def test_a_plan_that_does_not_deserialize_shows_tensorrts_words(cuda, tmp_path):
    words = "Serialization assertion failed: magic tag does not match"
    with pytest.raises(EngineError, match=rf"does not load on NVIDIA Fake 1 \(8\.6\): {words}\."):
        load(tmp_path, plan=b"no plan")


def test_too_little_memory_is_said(cuda, tmp_path):
    cuda.free = 2000
    with pytest.raises(EngineError, match=r"cudaMalloc failed: out of memory\."):
        load(tmp_path)


@pytest.mark.parametrize("method", ["execute_async_v3", "set_tensor_address", "set_input_shape"])
def test_a_refusal_of_tensorrt_is_an_error(captions, monkeypatch, method):
    monkeypatch.setattr(fake_tensorrt.IExecutionContext, method, lambda *_: False)
    with pytest.raises(EngineError, match=rf"TensorRT's {method} failed: it gave no reason\."):
        captions.run({"tokens": tokens(1, 4)})


def test_a_refusal_quotes_the_last_words_of_tensorrt_and_those_only(captions, monkeypatch):
    monkeypatch.setattr(fake_tensorrt.IExecutionContext, "execute_async_v3", refuse)
    for number in range(2):
        with pytest.raises(EngineError) as caught:
            captions.run({"tokens": tokens(2 + number, 4)})
        assert (
            str(caught.value) == f"TensorRT's execute_async_v3 failed: no luck with {2 + number}."
        )


def refuse(context, stream):
    context._engine.log(f"no luck\n  with {context._shape[0]}")
    return False


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module"), ImportError("no libnvinfer.so"), OSError("no .so")])  # fmt: skip  # noqa: E501
@pytest.mark.parametrize(("engine", "extra"), [("tensorrt", "trt"), ("trt-rtx", "trt-rtx")])
def test_a_missing_library_says_what_to_install(monkeypatch, error, engine, extra):
    def fail(name):
        raise error

    library = sys.modules["dgl_runtime.engines.tensorrt_library"]
    monkeypatch.setattr(library, "importlib", SimpleNamespace(import_module=fail))
    with pytest.raises(EngineError) as caught:
        library.load_library(engine)
    assert str(error) in str(caught.value)
    assert str(caught.value).endswith(f"Install it with: pip install 'dgl-retrieval[{extra}]'")


def test_a_tensorrt_that_is_too_old_is_refused(cuda, tmp_path, monkeypatch):
    monkeypatch.setattr(fake_tensorrt, "__version__", "10.11.0.33")
    with pytest.raises(EngineError, match=r"tensorrt is 10\.11\.0\.33; 10\.12 or newer is needed"):
        load(tmp_path)


# ---- the stand-ins are like the real ones ----------------------------------------------------


def test_the_stand_in_of_tensorrt_has_no_name_that_the_real_one_lacks():
    real = pytest.importorskip("tensorrt_rtx")
    assert fake_tensorrt.unknown_names(real) == []


def test_the_stand_in_of_cuda_has_no_name_that_the_real_one_lacks():
    real = pytest.importorskip("cuda.bindings.runtime")
    assert [name for name in dir(fake_cuda.FakeCuda) if name.startswith("cuda") and not hasattr(real, name)] == []  # fmt: skip  # noqa: E501


def test_cuda_without_a_driver_is_one_line(tmp_path):
    runtime = pytest.importorskip("cuda.bindings.runtime")
    pytest.importorskip("tensorrt_rtx")
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("this machine has a GPU")
    graph = make_graph(tmp_path)
    with pytest.raises(EngineError, match=r"CUDA does not start: .*driver.*, or use device cpu\.$"):
        open_engine(graph, device="cuda", threads=0, engine="trt-rtx")

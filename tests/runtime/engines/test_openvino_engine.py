"""OpenVINO against ONNX Runtime on the same graphs, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest

from dgl_runtime.engines.opening import open_engine
from dgl_runtime.errors import EngineError
from tests.helpers.openvino_cpu import require_openvino

openvino = pytest.importorskip("openvino")

TOKENS = np.array([[320, 786, 49407], [518, 49407, 0]], np.int32)
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 32, 32), np.uint8)
INPUTS = {"text_encoder.onnx": {"tokens": TOKENS}, "clip_encoder.onnx": {"frames": FRAMES}}


def opened(graph, **options):
    return open_engine(graph, device="cpu", threads=1, engine="openvino", **options)


@pytest.mark.parametrize("graph", INPUTS)
def test_it_gives_what_onnx_runtime_gives(bundle, graph):
    ours = opened(bundle / graph).run(INPUTS[graph])
    theirs = open_engine(bundle / graph, device="cpu", threads=1).run(INPUTS[graph])
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("graph", INPUTS)
def test_its_own_format_gives_the_same(bundle, tmp_path, graph):
    openvino.save_model(openvino.convert_model(bundle / graph), tmp_path / "graph.xml", False)
    ours = opened(tmp_path / "graph.xml").run(INPUTS[graph])
    theirs = opened(bundle / graph).run(INPUTS[graph])
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=1e-6)


def test_ctrl_c_is_heard_after_another_thread_let_the_engine_go(bundle):
    program = f"""
import os, signal, threading
from pathlib import Path
from dgl_runtime.engines.opening import open_engine

engines = [open_engine(Path({str(bundle / "text_encoder.onnx")!r}), device="cpu", threads=1,
                       engine="openvino")]
thread = threading.Thread(target=engines.clear)
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "heard\n", (done.returncode, done.stderr)


@pytest.mark.parametrize("graph", INPUTS)
def test_bfloat16_is_near_and_not_the_same(bundle, graph):
    require_openvino("bf16")
    ours = opened(bundle / graph, precision="bf16").run(INPUTS[graph])["embedding"]
    theirs = opened(bundle / graph).run(INPUTS[graph])["embedding"]
    assert np.abs(ours - theirs).max() > 1e-5
    assert (ours * theirs).sum(axis=1).min() > 0.999


def test_bfloat16_on_a_cpu_without_it_is_refused(bundle, monkeypatch):
    real = openvino.Core.get_property

    def without(self, *names):
        return ["FP32", "INT8"] if "OPTIMIZATION_CAPABILITIES" in names else real(self, *names)

    monkeypatch.setattr(openvino.Core, "get_property", without)
    with pytest.raises(EngineError, match=r"no bfloat16 \(it has FP32, INT8\); use a bundle of an"):
        opened(bundle / "text_encoder.onnx", precision="bf16")


def test_a_precision_it_does_not_have_is_refused(bundle):
    with pytest.raises(EngineError, match="runs fp32, fp16, bf16, int8; the graph is fp8"):
        opened(bundle / "text_encoder.onnx", precision="fp8")


def test_results_belong_to_the_caller(bundle):
    engine = opened(bundle / "text_encoder.onnx")
    first = engine.run({"tokens": TOKENS})["embedding"]
    kept = first.copy()
    engine.run({"tokens": TOKENS[::-1]})
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_array_equal(engine.run({"tokens": TOKENS})["embedding"], kept)


def test_inputs_of_any_layout_are_read_right(bundle):
    engine = opened(bundle / "clip_encoder.onnx")
    wide = np.repeat(FRAMES, 2, axis=-1)
    apart, read_only = wide[..., ::2], FRAMES.copy()
    read_only.flags.writeable = False
    expected = engine.run({"frames": FRAMES})["embedding"]
    for frames in (apart, np.asfortranarray(FRAMES), read_only):
        np.testing.assert_array_equal(engine.run({"frames": frames})["embedding"], expected)


def test_what_it_cannot_run_is_one_line_with_the_shapes(bundle):
    engine = opened(bundle / "clip_encoder.onnx")
    with pytest.raises(EngineError, match=r"could not run the graph on frames \[2, 4, 3, 32\]"):
        engine.run({"frames": FRAMES[..., 0]})
    with pytest.raises(EngineError, match=r"could not run the graph on pictures"):
        engine.run({"pictures": FRAMES})
    assert engine.run({"frames": FRAMES})["embedding"].shape == (2, 32)


@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_a_damaged_graph_is_named(tmp_path, content):
    (tmp_path / "text_encoder.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"text_encoder\.onnx does not load in OpenVINO"):
        opened(tmp_path / "text_encoder.onnx")

"""dgl-doctor: what works is tried, what does not says why and what to install."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import dgl_runtime
from dgl_runtime.commands.doctor import doctor
from dgl_runtime.encoder import diagnosis
from dgl_runtime.engines import installed, tiny_graph
from dgl_runtime.engines.hardware import NvidiaGpu, nvidia_gpus
from dgl_runtime.engines.tiny_graph import TOLERANCES
from tests.helpers.engine_files import require_on_gpu

without_gpu = pytest.mark.skipif(bool(nvidia_gpus()), reason="this machine has a GPU")
BLOCK = """
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import sys
sys.meta_path.insert(0, Blocked())
from dgl_runtime.commands.doctor import doctor
doctor(prog_name="dgl-doctor")
"""


def run(*arguments):
    return CliRunner().invoke(doctor, [*map(str, arguments)])


def run_without(*modules):
    """Run the doctor in a process where some modules are not installed: exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(modules=modules)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(dgl_runtime.__file__).parents[1])},
    )
    return done.returncode, done.stdout, done.stderr


def trials(report, engine, device):
    (found,) = [
        one for one in report["engines"] if (one["engine"], one["device"]) == (engine, device)
    ]
    return {trial["task"]: trial for trial in found["trials"]}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(diagnosis, "nvidia_gpus", lambda: [NvidiaGpu("NVIDIA L4", "580.1", "8.9")])


# ---- the shipped graphs ----------------------------------------------------------------------


@pytest.mark.parametrize("precision", TOLERANCES)
def test_the_shipped_graphs_are_those_that_are_made(precision):
    onnx = pytest.importorskip("onnx")
    from tests.helpers.tiny_graphs import make_graph

    assert onnx.load(tiny_graph.graph_path(precision)) == make_graph(precision)


def test_tolerances_tell_a_wrong_graph():
    right = tiny_graph.expected(tiny_graph.example())
    wrong = tiny_graph.expected(-tiny_graph.example())
    assert np.abs(right - wrong).max() > 10 * max(TOLERANCES.values())


@pytest.mark.parametrize(
    ("engine", "works"),
    [("onnx", {"fp32", "fp16", "int8"}), ("openvino", {"fp32", "fp16", "int8"})],
)
def test_an_engine_of_the_cpu_works_in_its_precisions(engine, works):
    if find_spec(installed.KINDS[engine].module) is None:
        pytest.skip(f"{engine} is not installed")
    found = trials(diagnosis.diagnose(None, threads=1).to_json(), engine, "cpu")
    assert found.keys() == TOLERANCES.keys()
    assert {task for task, trial in found.items() if trial["works"]} >= works
    for task, trial in found.items():
        assert trial["works"] == (not trial["reason"])
        assert not trial["works"] or trial["error"] <= TOLERANCES[task]


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["onnx", "tensorrt", "trt-rtx"])
def test_every_installed_engine_of_a_gpu_works(engine):
    require_on_gpu(engine)
    report = diagnosis.diagnose(None, threads=1).to_json()
    assert trials(report, engine, "cuda")["fp32"]["works"], report


@without_gpu
def test_a_builder_that_works_without_a_gpu_says_so():
    pytest.importorskip("tensorrt_rtx")
    found = trials(diagnosis.diagnose(None, threads=1).to_json(), "trt-rtx", "cuda")
    for precision in TOLERANCES:
        assert found[precision]["reason"].startswith("its builder works, but CUDA does not start")


def test_a_wrong_result_is_no_success(monkeypatch):
    monkeypatch.setattr(tiny_graph, "expected", lambda x, real=tiny_graph.expected: real(-x))
    found = diagnosis.diagnose(None, threads=1)
    assert not found.works
    trial = trials(found.to_json(), "onnx", "cpu")["fp32"]
    assert trial["reason"].startswith("its result is off by ")


# ---- the page --------------------------------------------------------------------------------


def test_one_screen_names_machine_engines_and_what_to_add():
    result = run("--threads", 1)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) <= 40
    assert lines[0].startswith("dgl-retrieval ")
    assert lines[1].startswith("CPU: ")
    assert lines[2].startswith("GPU: ")
    for engine, kind in installed.KINDS.items():
        for device in kind.devices:
            (row,) = [line for line in lines if line.startswith(f"| {engine} on {device} ")]
            assert ("not installed" in row) == (not installed.is_installed(engine))


@without_gpu
def test_without_a_gpu_nothing_for_gpus_is_recommended():
    said = run().stdout
    assert "an NVIDIA GPU with its driver" in said
    assert "dgl-retrieval[trt]" not in said.partition("To add:")[2]


def test_with_a_gpu_what_is_missing_is_named(gpu, monkeypatch):
    monkeypatch.setattr(diagnosis, "is_installed", lambda engine: engine == "onnx")
    monkeypatch.setattr(diagnosis, "_try_tiny", lambda pair, threads: (
        diagnosis.Trial("fp32", pair.device == "cpu" and pair.engine == "onnx", 0.0, None, None, "-"),
    ))  # fmt: skip
    said = run().stdout
    assert "GPU: NVIDIA L4, compute capability 8.9, driver 580.1" in said
    assert "- onnx on cuda: pip install 'dgl-retrieval[gpu]'" in said
    assert "- openvino on cpu: pip install 'dgl-retrieval[openvino]'" in said
    assert "- tensorrt on cuda: pip install 'dgl-retrieval[trt]'" in said
    assert "- trt-rtx on cuda: pip install 'dgl-retrieval[trt-rtx]'" in said


def test_the_json_file_holds_all_and_no_path_of_the_user(tmp_path):
    result = run("--json", tmp_path / "doctor.json", "--threads", 1)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "doctor.json").read_text()
    document = json.loads(text)
    assert document["machine"]["versions"]["numpy"] == np.__version__
    assert trials(document, "onnx", "cpu")["fp32"]["works"]
    assert str(Path(dgl_runtime.__file__).parent) not in text


def test_it_runs_without_torch_and_onnx():
    code, out, err = run_without("torch", "onnx", "onnxscript", "open_clip", "matplotlib")
    assert (code, err) == (0, "")
    assert "| onnx on cpu " in out


def test_without_any_engine_it_fails_and_says_what_to_install():
    code, out, err = run_without("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
    assert (code, err) == (
        1,
        "Error: no engine works here; above it says why, and what to install.\n",
    )
    assert "- onnx on cpu: pip install 'dgl-retrieval[cpu]'" in out
    assert "- openvino on cpu: pip install 'dgl-retrieval[openvino]'" in out


# ---- with a bundle ---------------------------------------------------------------------------


def test_a_bundle_is_checked_and_timed_in_each_engine(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis, "ROUNDS", 3)
    result = run(bundle, "--json", tmp_path / "doctor.json", "--threads", 1)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "doctor.json").read_text())
    assert document["bundle"] == "onnx"
    assert str(bundle) not in json.dumps(document)
    for engine in ("onnx", "openvino"):
        if not installed.is_installed(engine):
            continue
        found = trials(document, engine, "cpu")
        assert found.keys() == {"text_encoder", "clip_encoder"}
        for trial in found.values():
            assert trial["works"]
            assert trial["error"] <= 1e-4
            assert trial["min_cosine"] == pytest.approx(1, abs=1e-5)
            assert trial["time_ms"] > 0
        row = next(line for line in result.stdout.splitlines() if f"| {engine} on cpu" in line)
        assert row.count(" ms, cosine 1.000000") == 2


def test_no_bundle_is_one_line(tmp_path):
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {tmp_path} is not a bundle: it has no manifest.json. "
        "Give the folder that dgl-export wrote.\n"
    )

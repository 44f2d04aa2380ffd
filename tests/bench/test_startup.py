import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from benchmarks.cli import bench
from benchmarks.installed_size import measure_size
from benchmarks.startup import STEPS, ColdStart, bench_startup
from click.testing import CliRunner

from benchmarks import startup, startup_probe
from dgl_export.cli import export
from dgl_runtime.errors import BundleError, EngineError


@pytest.fixture(scope="module")
def bundle(backbone_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("startup") / "bundle"
    options = ["--zero-shot", "--backbone", str(backbone_folder), "--num-frames", "3"]
    result = CliRunner().invoke(export, [*options, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def test_every_step_of_a_cold_start_is_measured_and_written(bundle, tmp_path):
    command = ["startup", str(bundle), "--engine", "onnx", "--rounds", "2", "--threads", "1"]
    result = CliRunner().invoke(bench, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    files = sorted((tmp_path / "out").iterdir())
    assert [path.suffix for path in files] == [".json", ".md"]
    assert result.stdout == files[1].read_text()
    document = json.loads(files[0].read_text())
    assert str(bundle) not in files[0].read_text()  # a folder's path is nobody's business
    (engine,) = document["engines"]
    assert engine["description"].startswith("ONNX Runtime")
    for start in engine["starts"]:
        assert 0 < sum(start["steps"].values()) < start["process_s"]
    sizes = {size["requirement"]: size for size in document["sizes"]}
    assert sizes["torch"]["total_bytes"] > 1e8
    assert sizes["dgl-retrieval[cpu]"]["sizes"]["onnxruntime"] > 1e7


def test_an_engine_that_is_not_installed_is_skipped_with_its_reason(bundle, monkeypatch):
    start = ColdStart("ONNX Runtime", dict.fromkeys(STEPS, 0.5), 3.0)
    answers = {"onnx": start, "tensorrt": "the package 'tensorrt' is not installed"}
    monkeypatch.setattr(startup, "start_apart", lambda bundle, engine, *_: answers[engine])
    result = bench_startup(bundle, list(answers), device="cpu", threads=1, rounds=3)
    assert result.skipped == {"tensorrt": "the package 'tensorrt' is not installed"}
    assert len(result.starts["onnx"]) == 3
    assert result.answer_s("onnx").median == 1.5
    with pytest.raises(EngineError, match="no engine runs here: tensorrt: the package"):
        bench_startup(bundle, ["tensorrt"], device="cpu", threads=1, rounds=1)


def test_the_probe_says_why_an_engine_does_not_run(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = json.loads(startup_probe.main([str(bundle), "onnx", "cpu", "1"]))
    assert "'onnxruntime', which is not installed" in said["fault"]


def test_the_probe_names_any_other_package_that_is_missing(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    said = json.loads(startup_probe.main([str(bundle), "onnx", "cpu", "1"]))
    assert said == {"fault": "the package 'tokenizers' is not installed"}


def test_the_probe_says_why_a_device_does_not_run(bundle):
    said = json.loads(startup_probe.main([str(bundle), "onnx", "no-such", "1"]))
    assert said["fault"].startswith("device is 'no-such'")


def test_no_bundle_is_told_before_anything_is_measured(tmp_path):
    with pytest.raises(BundleError):
        bench_startup(tmp_path, ["onnx"], device="cpu", threads=1, rounds=1)


def test_importing_the_probe_loads_nothing_it_measures():
    code = "import sys, benchmarks.startup_probe; print({'numpy', 'dgl_runtime'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_installation_counts_what_its_packages_need():
    alone, whole = measure_size("numpy"), measure_size("onnxruntime")
    assert alone.sizes.keys() == {"numpy"}
    assert alone.total_bytes > 1e7
    assert whole.sizes["numpy"] == alone.total_bytes
    assert whole.total_bytes > whole.sizes["onnxruntime"] + alone.total_bytes


def test_an_installation_with_something_missing_has_no_size():
    size = measure_size("no-such-package")
    assert (size.missing, size.total_bytes) == (("no-such-package",), None)
    assert version("pytest")
    assert measure_size("pytest[no-such-extra]").missing == ("pytest[no-such-extra]",)


@pytest.mark.parametrize("failing", [(), ("search", "train")])
def test_all_goes_on_after_a_failure_and_says_so(tmp_path, monkeypatch, failing):
    ran = []

    def run(command, *, check):
        name = "export" if "dgl-export" in command[2] else command[3]
        ran.append(name)
        return subprocess.CompletedProcess(command, 2 if name in failing else 0)

    monkeypatch.setattr("benchmarks.all.subprocess.run", run)
    result = CliRunner().invoke(bench, ["all", "--quick", "--out", str(tmp_path)])
    assert ran == ["export", "encode", "decode", "search", "startup", "quality", "train"]
    assert result.exit_code == bool(failing)
    assert result.stdout.count("failed (2)") == len(failing)
    if failing:
        assert "Error: search, train failed" in result.stderr

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from dgl_bench.cli import bench
from dgl_bench.startup import PROBE, STEPS, installed_size, measure, startup
from dgl_export.cli import export
from dgl_runtime.errors import EngineError


@pytest.fixture(scope="module")
def bundle(backbone_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("startup") / "bundle"
    options = ["--zero-shot", "--backbone", str(backbone_folder), "--num-frames", "3"]
    result = CliRunner().invoke(export, [*options, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def test_every_step_of_a_cold_start_is_measured_and_written(bundle, measured):
    _, (rows, sizes) = measured(startup, bundle, "--engine", "onnx", "--rounds", 2, "--threads", 1)
    (row,) = rows
    assert row["is"].startswith("ONNX Runtime")
    assert len(row["starts"]) == 2
    for start in row["starts"]:
        assert 0 < sum(start[step] for step in STEPS) < start["process"]
        assert all(start[step] > 0 for step in STEPS)
    found = {size["pip install"]: size for size in sizes}
    assert found["torch"]["MB"] > 100
    assert found["dgl-retrieval[cpu]"]["bytes"]["onnxruntime"] > 1e7


def test_an_engine_that_does_not_run_here_is_skipped_with_its_reason(bundle):
    engines = ("no-such", "onnx")
    starts, skipped = measure(bundle, engines, device="cpu", threads=1, rounds=1)
    assert starts.keys() == {"onnx"}
    assert skipped["no-such"].startswith("engine is 'no-such'")
    with pytest.raises(EngineError, match="no engine runs here: no-such: engine is"):
        measure(bundle, engines[:1], device="cpu", threads=1, rounds=1)


def test_the_probe_names_a_package_that_is_missing(bundle):
    block = "import sys; sys.modules['tokenizers'] = None\n"
    command = [sys.executable, "-c", block + PROBE, str(bundle), "onnx", "cpu", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"fault": "the package 'tokenizers' is not installed"}


def test_no_bundle_is_told_before_anything_is_measured(tmp_path):
    result = CliRunner().invoke(startup, [str(tmp_path), "--out", str(tmp_path / "out")])
    assert (result.exit_code, "is not a bundle" in result.stderr) == (1, True)
    assert "first start" not in result.stderr


def test_an_installation_counts_what_its_packages_need():
    alone, whole = installed_size("numpy"), installed_size("onnxruntime")
    assert alone["bytes"].keys() == {"numpy"}
    assert alone["MB"] > 10
    assert whole["bytes"]["numpy"] == alone["bytes"]["numpy"]
    assert whole["MB"] > (whole["bytes"]["onnxruntime"] + alone["bytes"]["numpy"]) / 1e6


def test_an_installation_with_something_missing_has_no_size():
    size = installed_size("no-such-package")
    assert (size["largest, MB"], size["MB"]) == ("not installed: no-such-package", None)
    assert "pytest[no-such-extra]" in installed_size("pytest[no-such-extra]")["largest, MB"]


@pytest.mark.parametrize("failing", [(), ("search", "train")])
def test_all_goes_on_after_a_failure_and_says_so(tmp_path, monkeypatch, failing):
    ran = []

    def run(command, *, check):
        name = "export" if "dgl-export" in command[2] else command[3]
        ran.append(name)
        return subprocess.CompletedProcess(command, 2 if name in failing else 0)

    monkeypatch.setattr("dgl_bench.cli.subprocess.run", run)
    result = CliRunner().invoke(bench, ["all", "--quick", "--out", str(tmp_path)])
    assert ran == ["export", "encode", "decode", "search", "startup", "train"]
    assert result.exit_code == bool(failing)
    assert result.stdout.count("failed (2)") == len(failing)
    if failing:
        assert "Error: search, train failed" in result.stderr

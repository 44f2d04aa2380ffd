import json

import pytest
from benchmarks.cli import bench
from benchmarks.encode_variants import TARGETS, variant_name
from click.testing import CliRunner


def test_operators_account_for_each_engine_s_time(backbone_folder, small_peaks, tmp_path):
    options = ["--method", "dgl-linear", "--num-frames", "3", "--rounds", "5", "--threads", "1"]
    fixed = ["operators", "--backbone", str(backbone_folder), "--out", str(tmp_path)]
    result = CliRunner().invoke(bench, [*fixed, *options])
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("operators-1-thread-*.json")
    assert path.with_suffix(".md").read_text() == result.stdout
    profiles = json.loads(path.read_text())["profiles"]
    variants = [variant_name(target) for target in TARGETS["cpu"]]
    assert {(one["variant"], one["task"]) for one in profiles} == {
        (variant, task) for variant in variants for task in ("query", "clip")
    }
    for one in profiles:
        took = sum(share["ms"] for share in one["shares"])
        assert one["outside_ms"] == pytest.approx(one["ms"] - took)
        # Each of 3 and 2 blocks multiplies tokens with weights, whatever an engine calls that.
        layers = 3 if one["task"] == "clip" else 2
        products = [
            share for share in one["shares"]
            if any(part in share["operator"] for part in ("MatMul", "Gemm", "FullyConnected"))
        ]  # fmt: skip
        assert sum(share["nodes"] for share in products) >= 4 * layers
        assert all(share["ms"] > 0 for share in products)

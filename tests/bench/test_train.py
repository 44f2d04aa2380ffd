import json
from dataclasses import replace

import pytest
from benchmarks.cli import bench
from benchmarks.train_memory import TrainSpec, bench_train, measure_apart
from click.testing import CliRunner

from benchmarks import train_memory
from dgl_runtime.errors import EngineError
from dgl_train.recipes.recipe import read_recipe

METHODS = ["dgl-linear", "dgl-transformer"]


@pytest.fixture
def spec(backbone_folder):
    settings = [f"backbone={backbone_folder}", "pretrained=", "batch_size=2", "num_frames=3"]
    return TrainSpec(read_recipe("default", settings), steps=2, threads=1, device="cpu")


def test_every_method_is_measured_and_written(backbone_folder, tmp_path):
    command = ["train", "--backbone", str(backbone_folder), "--methods", ",".join(METHODS)]
    command += ["--batch-size", "2", "--num-frames", "3", "--steps", "2", "--rounds", "1"]
    command += ["--threads", "1", "--device", "cpu", "--set", "max_words=12"]
    result = CliRunner().invoke(bench, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    files = sorted((tmp_path / "out").iterdir())
    assert [path.suffix for path in files] == [".json", ".md"]
    assert result.stdout == files[1].read_text()
    document = json.loads(files[0].read_text())
    assert document["settings"]["backbone"] == "backbone"  # a folder's path is nobody's business
    assert document["settings"]["max_words"] == 12
    assert [one["method"] for one in document["methods"]] == METHODS
    linear, transformer = document["methods"]
    assert 0 < linear["trained_parameters"] < transformer["trained_parameters"]
    for one in document["methods"]:
        (measured,) = one["measurements"]
        assert len(measured["step_s"]) == 2
        assert measured["loss"] > 0
        assert 0 < one["memory_bytes"] < one["process_bytes"] < 4e9


def test_a_larger_batch_takes_more_memory(spec):
    small, large = (
        measure_apart(replace(spec, steps=1, recipe=replace(spec.recipe, batch_size=size)))
        for size in (2, 256)
    )
    assert large.peak_bytes - large.start_bytes > small.peak_bytes - small.start_bytes + 2e7


def test_methods_take_turns_over_the_rounds(spec, monkeypatch):
    order = []
    specs = {
        method: replace(spec, recipe=replace(spec.recipe, method=method)) for method in METHODS
    }

    def measure(one):
        order.append(one.recipe.method)
        return train_memory.Measurement("cpu", 1, [1.0 + len(order)], 0.5, 10, 10 + len(order))

    monkeypatch.setattr(train_memory, "measure_apart", measure)
    result = bench_train(specs, 2)
    assert order == [*METHODS, *METHODS[::-1]]
    assert result.step_s(METHODS[0]).median == 3.5
    assert result.peak_bytes(METHODS[0]) == (2.5, 12.5)


def test_an_unknown_backbone_is_one_line(tmp_path):
    command = ["train", "--backbone", "no-such", "--methods", "dgl-linear", "--device", "cpu"]
    result = CliRunner().invoke(bench, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: backbone 'no-such'")


def test_an_unknown_method_is_told_before_anything_is_measured(tmp_path):
    command = ["train", "--methods", "dgl-linear,no-such", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(bench, command)
    assert result.exit_code == 1
    assert "method is 'no-such'" in result.stderr
    assert "round" not in result.stderr


def kill_itself(_):
    import os

    os.kill(os.getpid(), 9)


def test_a_process_killed_for_memory_is_one_line(spec, monkeypatch):
    monkeypatch.setattr(train_memory, "measure_method", kill_itself)
    with pytest.raises(EngineError, match=r"'dgl-transformer' with batches of 2 was killed"):
        measure_apart(spec)

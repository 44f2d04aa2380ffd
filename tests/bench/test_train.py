import os
from dataclasses import replace
from functools import partial

import pytest
from click.testing import CliRunner

from dgl_bench.processes import apart
from dgl_bench.train import measure, row_of, train
from dgl_runtime.errors import EngineError
from dgl_train.recipes.recipe import read_recipe

METHODS = ["dgl-linear", "dgl-transformer"]


@pytest.fixture
def recipe(backbone_folder):
    settings = [f"backbone={backbone_folder}", "pretrained=", "batch_size=2", "num_frames=3"]
    return read_recipe("default", settings)


def test_every_method_is_measured_and_written(backbone_folder, measured):
    options = ["--backbone", backbone_folder, "--methods", ",".join([*METHODS, "vpt"])]
    options += ["--batch-size", 2, "--num-frames", 3, "--steps", 2, "--rounds", 1]
    options += ["--threads", 1, "--device", "cpu", "--set", "max_tokens=12"]
    settings, (rows,) = measured(train, *options)
    assert settings["backbone"] == "backbone"  # a folder's path is nobody's business
    assert settings["max_tokens"] == 12
    assert [one["method"] for one in rows] == [*METHODS, "vpt"]
    linear, transformer, vpt = rows
    assert 0 < vpt["trained"] < linear["trained"] < transformer["trained"]
    for one in rows:
        (found,) = one["measured"]
        assert len(found["step_s"]) == 2
        assert found["loss"] > 0
        assert 0 < one["memory GB"] < one["process GB"] < 4


@pytest.mark.soak
def test_a_larger_batch_takes_more_memory(recipe):
    small, large = (
        apart(partial(measure, replace(recipe, batch_size=size), 1, 1, "cpu"), "")
        for size in (2, 256)
    )
    took = [one["peak_bytes"] - one["start_bytes"] for one in (small, large)]
    assert took[1] > took[0] + 2e7


def test_medians_of_rounds():
    one = {"device": "cpu", "trained": 7, "loss": 0.5, "start_bytes": 10}
    rows = [
        {**one, "step_s": [1.0, 2.0], "peak_bytes": 11},
        {**one, "step_s": [9.0], "peak_bytes": 15},
    ]
    row = row_of("bias", rows)
    assert row["s a step"].median == 2
    assert (row["trained"], row["memory GB"], row["process GB"]) == (7, 3e-9, 13e-9)


def test_an_unknown_backbone_is_one_line(tmp_path):
    command = ["--backbone", "no-such", "--methods", "dgl-linear", "--device", "cpu"]
    result = CliRunner().invoke(train, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: backbone 'no-such'")


def test_an_unknown_method_is_told_before_anything_is_measured(tmp_path):
    command = ["--methods", "dgl-linear,no-such", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(train, command)
    assert result.exit_code == 1
    assert "method is 'no-such'" in result.stderr
    assert "round" not in result.stderr


def test_a_process_killed_for_memory_is_one_line():
    with pytest.raises(EngineError, match=r"was killed, most likely for want of memory\. Lower it"):
        apart(partial(os._exit, 9), "Lower it.")

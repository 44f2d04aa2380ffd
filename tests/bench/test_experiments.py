"""The tables of experiments: every variant trains, and what was finished is not done again."""

from dataclasses import replace

import pytest
from benchmarks.cli import bench
from benchmarks.experiments import SUITES, ZERO_SHOT, finish_run, run_experiments
from benchmarks.experiments_report import make_report, mean_and_spread
from click.testing import CliRunner

from benchmarks import experiments
from dgl_runtime.errors import ConfigError
from dgl_train.shapes.clips import make_shapes
from tests.helpers.tiny import write_tiny_backbone

SETTINGS = ("num_frames=2", "max_words=24", "epochs=1", "batch_size=16", "num_workers=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Few shapes, and a tiny backbone without pretraining in place of the one that takes minutes."""
    folder = tmp_path_factory.mktemp("experiments")
    make_shapes(folder / "shapes0", num_train=16, num_val=16, num_test=16, progress=False)
    write_tiny_backbone(folder / "shapes0" / "backbone")
    return folder


@pytest.fixture
def here(monkeypatch):
    """Shapes as they are, and runs one after another in this process."""

    monkeypatch.setattr(experiments, "_finish_all", lambda runs, _: map(finish_run, runs))
    monkeypatch.setattr(experiments, "_make_shapes", lambda *_: None)


@pytest.mark.parametrize("suite", SUITES)
def test_every_variant_has_a_row_and_its_flags(folder, here, suite):
    outcomes = run_experiments(suite, folder, seeds=1, jobs=1, threads=1, settings=SETTINGS)
    assert [outcome.variant for outcome in outcomes] == [ZERO_SHOT, *SUITES[suite]]
    assert outcomes[0].trained_parameters == 0
    assert all(outcome.trained_parameters > 0 for outcome in outcomes[1:])
    text = make_report(suite, outcomes, {}).to_markdown()
    for variant, overrides in SUITES[suite].items():
        assert f"| {variant} " in text
        assert " ".join(f"--set {one}" for one in overrides) in text


def test_what_was_finished_is_kept_unless_the_recipe_differs(folder, here, monkeypatch):
    plan = experiments._plan("DGL-linear", ("method=dgl-linear",), folder, 0, 1, SETTINGS)
    first = finish_run(plan)
    other = experiments._plan(
        "DGL-linear", ("method=dgl-linear",), folder, 0, 1, [*SETTINGS, "learning_rate=0.5"]
    )
    assert finish_run(other).report != first.report
    monkeypatch.setattr(experiments, "_measure", lambda _: pytest.fail("measured again"))
    assert finish_run(plan) == first


def test_runs_have_processes_of_their_own_and_a_fault_ends_all(folder):
    plan = experiments._plan(ZERO_SHOT, (), folder, 0, 1, SETTINGS)
    (outcome,) = experiments._finish_all([plan], 1)
    assert outcome.variant == ZERO_SHOT
    elsewhere = replace(plan.recipe, backbone=str(folder / "absent"))
    lost = replace(plan, recipe=elsewhere, run=folder / "lost")
    with pytest.raises(ConfigError):
        list(experiments._finish_all([lost, plan, plan], 1))


def test_mean_and_spread():
    assert mean_and_spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert mean_and_spread([1.0]) == "1.0"


def test_an_unknown_suite_is_a_usage_error(tmp_path):
    assert CliRunner().invoke(bench, ["experiments", "all", str(tmp_path)]).exit_code == 2

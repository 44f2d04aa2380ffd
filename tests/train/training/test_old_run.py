"""A run that commit e8f5187 began goes on, and ends where its own code ended it."""

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from dgl_train.commands.train import train
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.checkpoint import load_checkpoint
from dgl_train.model.methods import trained_parameters
from tests.helpers.old_files import unpack


@pytest.fixture
def old(tmp_path):
    return unpack(tmp_path)


def test_the_run_resumes_where_it_stopped(old):
    run = old / "run"
    options = ["--dataset", old / "clips" / "clips.csv", "--recipe", run / "recipe.toml"]
    done = CliRunner().invoke(train, list(map(str, [*options, "--out", run, "--resume"])))
    assert done.exit_code == 0, done.output
    assert "best epoch" in done.stdout
    now, then = load_file(run / "last.safetensors"), load_file(old / "ended.safetensors")
    assert now.keys() == then.keys()
    for name, tensor in then.items():
        np.testing.assert_allclose(now[name], tensor, atol=1e-5, err_msg=name)


def test_its_checkpoint_loads(old):
    tuned = load_checkpoint(
        old / "run" / "best.safetensors", load_backbone(BackboneSource(str(old / "backbone")))
    )
    kept = load_file(old / "run" / "best.safetensors")
    assert {name: tensor.tolist() for name, tensor in trained_parameters(tuned.model).items()} == {
        name: tensor.tolist() for name, tensor in kept.items()
    }

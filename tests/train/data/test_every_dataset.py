"""Every data set in its published layout, damaged videos in it, from the check to the exported bundle."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from dgl_export.cli import export
from dgl_train.commands.data import data as data_command
from dgl_train.commands.evaluate import evaluate
from dgl_train.commands.train import train
from dgl_train.data.datasets import read_dataset
from dgl_train.data.published import PUBLISHED
from dgl_train.training.step import TrainingStep
from tests.helpers.annotations import damage_all, write_layout
from tests.helpers.tiny import SETTINGS

pytestmark = pytest.mark.slow

VIDEOS = {"train": 30, "val": 4, "test": 10}
DAMAGED = {"train": 14, "test": 6}  # of these, twenty in all
CAPTIONS_A_CLIP = {"msvd": 3, "vatex": 2}  # of a test clip; 1 elsewhere


@dataclass(frozen=True)
class Data:
    """A data set on the disk, and which of its videos are damaged."""

    name: str
    root: Path
    damaged: dict[str, list[Path]]

    @property
    def arguments(self):
        if self.name in PUBLISHED:
            return ["--dataset", self.name, "--data-root", self.root]
        return ["--dataset", self.root / self.name, "--data-root", self.root / "videos"]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def write_data(name, folder):
    root = write_layout(name, folder / "set", **VIDEOS)
    data = Data(name, root, {})
    _, dataset, _, data_root = data.arguments
    clips = read_dataset(str(dataset), data_root)
    for split, count in DAMAGED.items():
        data.damaged[split] = sorted({c.video for c in clips if c.split == split})[:count]
    damage_all([path for paths in data.damaged.values() for path in paths])
    return data


@pytest.fixture(scope="module", params=[*PUBLISHED, "clips.csv", "clips.jsonl"])
def data(request, tmp_path_factory):
    return write_data(request.param, tmp_path_factory.mktemp("data"))


def invoke(command, *args):
    return CliRunner().invoke(command, [str(arg) for arg in args])


def succeed(command, *args):
    result = invoke(command, *args)
    assert result.exit_code == 0, result.output
    return result


def training_arguments(data, backbone_folder):
    """What dgl-train is given, but for where the run goes."""
    settings = [part for item in SETTINGS.items() for part in ("--set", "{}={}".format(*item))]
    return [*data.arguments, "--backbone", backbone_folder, "--device", "cpu", *settings]


@pytest.fixture(scope="module")
def arguments(data, backbone_folder):
    return training_arguments(data, backbone_folder)


@pytest.fixture(scope="module")
def run_folder(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    succeed(train, *arguments, "--out", folder)
    return folder


def ids(paths):
    """What names a video: a folder in its place is no file, so that its extension is unknown."""
    return sorted(Path(path).stem.removesuffix(".mov") for path in paths)


def test_all_twenty_are_named_by_the_check(data):
    _, dataset, *root = data.arguments
    result = invoke(data_command, "check", dataset, *root, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    damaged = [path for paths in data.damaged.values() for path in paths]
    assert len(damaged) == 20
    assert ids([*found["missing"], *found["broken"]]) == ids(damaged)


def test_an_epoch_is_trained_without_the_damaged_and_names_them(data, run_folder):
    with (run_folder / "dropped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert ids(row["video"] for row in rows) == ids(data.damaged["train"])
    assert all(row["reason"].endswith(".") for row in rows)
    (line,) = (run_folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["epoch"] == 1


def test_a_stopped_run_resumes_and_equals_an_undisturbed_one(
    arguments, run_folder, tmp_path, monkeypatch
):
    def interrupted_step(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    real = TrainingStep.take
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "take", interrupted_step)
        stopped = invoke(train, *arguments, "--out", tmp_path / "run")
    assert stopped.exit_code == 130, stopped.output
    assert "Stopped and saved after step 1 of " in stopped.stderr
    succeed(train, *arguments, "--out", tmp_path / "run", "--resume")
    for name in ("best.safetensors", "last.safetensors"):
        resumed, whole = load_file(tmp_path / "run" / name), load_file(run_folder / name)
        assert resumed.keys() == whole.keys()
        for tensor in whole:
            np.testing.assert_array_equal(resumed[tensor], whole[tensor], err_msg=tensor)


def test_a_run_and_its_bundle_give_the_same_figures_with_queries_as_published(
    data, run_folder, tmp_path
):
    bundle = tmp_path / "bundle"
    succeed(export, "--ckpt", run_folder, "--format", "onnx", "--out", bundle)
    evaluated = [*data.arguments, "--device", "cpu", "--json"]
    results = [succeed(evaluate, model, *evaluated) for model in (run_folder, bundle)]
    of_run, of_bundle = (json.loads(result.stdout) for result in results)
    clips = VIDEOS["test"] - DAMAGED["test"]
    captions = clips * CAPTIONS_A_CLIP.get(data.name, 1)
    assert of_run["text_to_video"]["num_queries"] == captions
    assert of_run["video_to_text"]["num_queries"] == clips
    for way in ("text_to_video", "video_to_text"):
        assert of_run[way] == of_bundle[way]
    for result in results:
        assert result.stderr.startswith("6 videos could not be read and are left out: ")


def test_the_same_from_a_shell(backbone_folder, tmp_path):
    arguments = training_arguments(write_data("msvd", tmp_path), backbone_folder)
    command = [sys.executable, "-m", "dgl_train", *arguments, "--out", tmp_path / "run"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"{tmp_path / 'run'}: best epoch 1 of 1, validation R@1 ")
    assert "14 videos could not be read and are left out; " in result.stderr

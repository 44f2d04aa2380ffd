"""Every command of training and export in a folder whose name is no UTF-8."""

import csv
import json
import os
import shutil

import pytest
from click.testing import CliRunner

from dgl_export.cli import export
from dgl_runtime.retriever import Retriever
from dgl_train.commands.data import data
from dgl_train.commands.evaluate import evaluate
from dgl_train.commands.train import shapes, train
from dgl_train.recipes.recipe import read_recipe, write_recipe
from dgl_train.shapes import clips as synthetic
from tests.helpers.tiny import SETTINGS, write_tiny_backbone, write_tiny_clips

pytestmark = pytest.mark.slow

LATIN = os.fsdecode(b"caf\xe9")


def invoke(command, *arguments):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips, their list and a backbone, in folders named with a Latin-1 byte."""
    folder = tmp_path_factory.mktemp("any") / LATIN
    clips = write_tiny_clips(folder / "clips", 24)
    write_tiny_backbone(folder / "backbone")
    with (folder / f"{LATIN}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "caption", "split"])
        for number, clip in enumerate(clips):
            split = "test" if number % 4 == 0 else "train"
            writer.writerow([clip.video.name, clip.caption, split])
    (clips[1].video).write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def data_options(folder):
    return (
        "--dataset", folder / f"{LATIN}.csv", "--data-root", folder / "clips", "--device", "cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(folder, data_options):
    settings = [part for item in SETTINGS.items() for part in ("--set", "{}={}".format(*item))]
    out = folder / f"run {LATIN}"
    arguments = (*data_options, "--backbone", folder / "backbone", "--out", out, *settings)
    said = invoke(train, *arguments, "--method", "dgl-linear")
    assert said.startswith(os.fsencode(out) + b": best epoch 1 of 1")
    invoke(train, *arguments, "--method", "dgl-linear", "--resume")
    return out


def test_a_run_keeps_paths_as_they_are(folder, run_folder):
    assert read_recipe(run_folder / "recipe.toml").backbone == str(folder / "backbone")
    with (run_folder / "dropped.csv").open("rb") as file:
        assert os.fsencode(folder / "clips") in file.read()


def test_a_recipe_keeps_letters_of_any_kind(tmp_path):
    for name in ("größe", "\U0001f600", "a\x7fb", 'quote"\\', "猫", LATIN):
        write_recipe(tmp_path / "recipe.toml", read_recipe("default", [f"backbone={name}"]))
        assert read_recipe(tmp_path / "recipe.toml").backbone == name


def test_a_data_set_is_checked(folder, data_options):
    arguments = ["check", data_options[1], *data_options[2:4]]
    result = CliRunner().invoke(data, list(map(str, arguments)))
    assert result.exit_code == 1
    assert b"broken videos: 1\n  " + os.fsencode(folder) in result.stdout_bytes


def test_a_run_is_evaluated_with_a_report_and_pictures(folder, run_folder, data_options):
    out = folder / "report"
    assert os.fsencode(run_folder) in invoke(evaluate, run_folder, *data_options, "--out", out)
    assert json.loads((out / "report.json").read_text())
    said = invoke(evaluate, run_folder, *data_options, "--attention", folder / "pictures")
    assert said.startswith(os.fsencode(folder / "pictures"))
    renamed = shutil.copy(run_folder / "best.safetensors", folder / f"{LATIN}.safetensors")
    invoke(evaluate, renamed, *data_options, "--json")


@pytest.mark.parametrize(
    ("file_format", "precision"),
    [
        ("onnx", "fp16"),  # float32 is written before and read again
        *[
            pytest.param(*form, marks=pytest.mark.soak)
            for form in (("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "fp16"))
        ],
    ],
)
def test_a_run_is_exported(folder, run_folder, data_options, file_format, precision):
    out = folder / f"{file_format} {precision} {LATIN}"
    form = ["--format", file_format, "--precision", precision]
    if precision != "fp32":
        form += ["--calibrate", *data_options[1:4]]
    said = invoke(export, "--ckpt", run_folder, *form, "--out", out)
    assert said.startswith(os.fsencode(out))
    Retriever(out, threads=1).check()
    invoke(evaluate, out, *data_options)


def test_shapes_are_made(folder, monkeypatch):
    real = synthetic.make_shapes
    monkeypatch.setattr(
        synthetic,
        "make_shapes",
        lambda folder, *, seed: real(
            folder, num_train=16, num_val=16, num_test=16, seed=seed, progress=False
        ),
    )
    made = folder / "shapes"
    assert invoke(shapes, made, "--clips-only") == os.fsencode(made) + b": 48 clips\n"
    invoke(data, "check", made / "captions.csv")

"""dgl-train and dgl-shapes: exit codes and what they print."""

import csv
import os
import signal
from dataclasses import asdict, replace

import pytest
import torch
from click.testing import CliRunner

import dgl_train.data.datasets as datasets
import dgl_train.shapes.backbone as stills_backbone
import dgl_train.shapes.clips as synthetic
from dgl_train.commands.evaluate import evaluate
from dgl_train.commands.train import shapes, train
from dgl_train.model.methods import METHODS
from dgl_train.recipes.recipe import read_recipe
from dgl_train.shapes.clips import make_shapes
from dgl_train.training.step import TrainingStep
from tests.helpers.tiny import SETTINGS, write_tiny_backbone


@pytest.fixture(scope="module")
def captions(clips, tmp_path_factory):
    path = tmp_path_factory.mktemp("captions") / "clips.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "caption"])
        writer.writerows((clip.video.name, clip.caption) for clip in clips)
    return path


@pytest.fixture(scope="module")
def arguments(captions, clips, backbone_folder):
    settings = [part for item in SETTINGS.items() for part in ("--set", "{}={}".format(*item))]
    data = ["--dataset", str(captions), "--data-root", str(clips[0].video.parent)]
    return [*data, "--backbone", str(backbone_folder), "--device", "cpu", *settings]


def invoke(command, *args):
    return CliRunner().invoke(command, [str(arg) for arg in args])


def error_line(result):
    """The only line on stderr, of a command that failed."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return result.stderr


def test_training_reports_the_best_epoch(arguments, tmp_path, monkeypatch, captions):
    monkeypatch.chdir(tmp_path)
    result = invoke(train, *arguments, "--method", "dgl-linear")
    assert result.exit_code == 0, result.output
    line = "runs/clips-dgl-linear: best epoch 1 of 1, validation R@1 "
    assert result.stdout.startswith(line)
    assert result.stdout.endswith(" over 2 captions\n")
    recipe = read_recipe(tmp_path / "runs" / "clips-dgl-linear" / "recipe.toml")
    assert asdict(recipe).items() >= {**SETTINGS, "method": "dgl-linear", "pretrained": ""}.items()


def test_a_stopped_run_says_how_to_go_on_and_does(arguments, tmp_path, monkeypatch):
    def interrupted_step(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    real = TrainingStep.take
    arguments = [*arguments, "--out", tmp_path / "run", "--set", "batch_size=2"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "take", interrupted_step)
        result = invoke(train, *arguments)
    assert result.exit_code == 130
    assert result.stderr.endswith(
        "\nStopped and saved after step 1 of 3. Resume with the same command and --resume.\n"
    )
    assert error_line(invoke(train, *arguments)) == (
        f"Error: {tmp_path / 'run'} holds a run at step 1. Resume it with --resume, or give "
        "another folder with --out.\n"
    )
    assert invoke(train, *arguments, "--resume").exit_code == 0


def test_several_seeds_make_several_runs_and_go_on_where_they_were(arguments, tmp_path):
    several = [*arguments, "--method", "dgl-linear", "--out", tmp_path, "--set", "training_seed=3"]
    assert invoke(train, *several, "--seeds", 1).exit_code == 0
    (tmp_path / "seed3").mkdir()
    for path in list(tmp_path.iterdir()):
        if path.name != "seed3":
            path.rename(tmp_path / "seed3" / path.name)
    result = invoke(train, *several, "--seeds", 2, "--resume")
    assert result.exit_code == 0, result.output
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == [
        str(tmp_path / "seed3"),
        str(tmp_path / "seed4"),
    ]
    assert read_recipe(tmp_path / "seed4" / "recipe.toml").training_seed == 4


def test_runs_of_several_seeds_are_not_hidden_beside_another(arguments, tmp_path):
    (tmp_path / "recipe.toml").touch()
    result = invoke(train, *arguments, "--out", tmp_path, "--seeds", 2)
    assert "the runs of several seeds would be hidden beside it" in error_line(result)


def test_a_dry_run_shows_the_plan_and_leaves_nothing(arguments, tmp_path):
    result = invoke(train, *arguments, "--method", "lora", "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    for part in ("recipe\n  method = 'lora'", "trained parameters\n", "steps\n", "memory of one"):
        assert part in result.stdout
    assert not (tmp_path / "run").exists()


def test_captions_that_are_cut_are_counted_once(arguments, tmp_path):
    for max_tokens, lines in ((5, []), (3, ["Warning: 8 of 8 captions are longer than max_tokens, 3 tokens, "
                                          "and only their beginning is read."])):  # fmt: skip
        settings = ("--method", "dgl-linear", "--set", f"max_tokens={max_tokens}")
        result = invoke(train, *arguments, *settings, "--out", tmp_path / "run", "--dry-run")
        assert (result.exit_code, result.stderr.splitlines()) == (0, lines)


@pytest.fixture
def three_splits(captions, clips, arguments, tmp_path):
    """Arguments for a data set of 3 clips to train on, 2 to validate on and 3 to test with, or no val."""

    def of(*splits):
        rows = captions.read_text().splitlines()
        table = tmp_path / "clips.csv"
        with_splits = [f"{row},{split}" for row, split in zip(rows[1:], splits, strict=True)]
        table.write_text("\n".join([f"{rows[0]},split", *with_splits, ""]))
        return [table if str(part) == str(captions) else part for part in arguments]

    return of


WITH_VAL = ["train"] * 3 + ["val"] * 2 + ["test"] * 3
WITHOUT_VAL = ["train"] * 5 + ["test"] * 3


@pytest.mark.parametrize(
    ("splits", "on_test", "parts"),
    [
        (WITH_VAL, False, (3, 2)),
        (WITH_VAL, True, (3, 3)),
        (WITHOUT_VAL, False, (4, 1)),
        (WITHOUT_VAL, True, (5, 3)),
    ],
)
def test_test_clips_choose_no_epoch_unless_asked_to(three_splits, tmp_path, splits, on_test, parts):
    settings = ["--set", "select_on_test=true"] if on_test else []
    plan = invoke(train, *three_splits(*splits), "--dry-run", *settings)
    assert plan.exit_code == 0, plan.output
    assert f"  {parts[0]} captioned clips to train on, {parts[1]} to validate on" in plan.stdout
    assert f"select_on_test = {on_test}" in plan.stdout


@pytest.mark.parametrize("on_test", [False, True])
def test_an_epoch_chosen_on_test_is_said(three_splits, tmp_path, on_test):
    settings = ["--set", "select_on_test=true"] if on_test else []
    run = tmp_path / "run"
    result = invoke(train, *three_splits(*WITH_VAL), "--out", run, *settings)
    assert result.exit_code == 0, result.output
    chosen_on, captions = ("TEST", 3) if on_test else ("validation", 2)
    assert f", {chosen_on} R@1 " in result.stdout
    assert result.stdout.endswith(f" over {captions} captions\n")
    assert read_recipe(run / "recipe.toml").select_on_test == on_test
    test_set = ["--dataset", tmp_path / "clips.csv", "--data-root", three_splits(*WITH_VAL)[3]]
    first = invoke(evaluate, run, *test_set, "--device", "cpu").stdout.splitlines()[0]
    assert first.startswith("EPOCH CHOSEN ON THE TEST SET" if on_test else "epoch chosen on val")


def test_training_does_not_open_test_videos(three_splits, clips, tmp_path):
    """They are not even there."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for clip in clips[:5]:
        (videos / clip.video.name).symlink_to(clip.video)
    arguments = three_splits(*WITH_VAL)
    arguments[3] = videos
    result = invoke(train, *arguments, "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "")
    chosen = invoke(train, *arguments, "--dry-run", "--set", "select_on_test=true")
    assert chosen.exit_code == 1


def test_faults_of_the_recipe_come_on_one_line(captions):
    result = invoke(train, "--dataset", captions, "--method", "dgl", "--set", "epoch=3")
    assert error_line(result) == (
        f"Error: recipe default has 2 faults: method is 'dgl', expected one of {', '.join(METHODS)}; "
        "'epoch' is not a setting (did you mean 'epochs'?).\n"
    )


def test_a_backbone_without_weights_is_refused(arguments):
    result = invoke(train, *arguments, "--backbone", "ViT-B-32-quickgelu", "--pretrained", "")
    assert error_line(result) == (
        "Error: backbone 'ViT-B-32-quickgelu' has no weights: it is no folder and pretrained is "
        "empty. Give --pretrained, such as openai, or a folder with weights.\n"
    )


def test_a_folder_and_other_weights_are_refused(arguments, backbone_folder):
    chosen = ("--backbone", backbone_folder, "--pretrained", "openai", "--dry-run")
    assert error_line(invoke(train, *arguments, *chosen)) == (
        f"Error: backbone '{backbone_folder}' has weights of its own, and pretrained names others, "
        "'openai'. Give --pretrained '', or a model's name.\n"
    )


@pytest.mark.parametrize("option", ["--backbone", "--set"])
def test_a_folder_takes_the_place_of_a_recipe_s_weights(arguments, backbone_folder, option):
    chosen = backbone_folder if option == "--backbone" else f"backbone={backbone_folder}"
    result = invoke(train, *arguments, option, chosen, "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_asked_for_must_be_there(arguments, captions):
    assert error_line(invoke(train, *arguments, "--device", "cuda")) == (
        "Error: device 'cuda' was requested, but torch sees no CUDA GPU. Use --device cpu, or "
        "install a torch with CUDA and check nvidia-smi.\n"
    )


@pytest.fixture
def small(monkeypatch):
    """Few shapes and a backbone without pretraining, in place of those that take minutes."""

    def make_few(folder, *, seed=0):
        return make_shapes(folder, num_train=16, num_val=16, num_test=16, seed=seed, progress=False)

    def make_backbone(folder, *, seed=0):
        def write(staging):
            write_tiny_backbone(staging / "inner", seed)
            for path in (staging / "inner").iterdir():
                path.rename(staging / path.name)
            (staging / "inner").rmdir()
            return {"R@1": 0.2}

        return synthetic.build_once(folder, {"seed": seed}, write)

    monkeypatch.setattr(synthetic, "make_shapes", make_few)
    monkeypatch.setattr(datasets, "make_shapes", make_few)
    monkeypatch.setattr(stills_backbone, "make_backbone", make_backbone)


def test_shapes_command_makes_clips_and_backbone_once(tmp_path, small):
    folder = tmp_path / "shapes"
    assert invoke(shapes, folder, "--clips-only").stdout == f"{folder}: 48 clips\n"
    assert not (folder / "backbone").exists()
    for _ in range(2):
        result = invoke(shapes, folder)
        assert result.stdout == (
            f"{folder}: 48 clips\n{folder / 'backbone'}: recall on new stills {{'R@1': 0.2}}\n"
        )
    assert "Give another folder or delete it." in error_line(invoke(shapes, folder, "--seed", 1))


def test_shapes_train_and_evaluate_without_any_preparation(tmp_path, small, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [part for item in SETTINGS.items() for part in ("--set", "{}={}".format(*item))]
    result = invoke(train, "--dataset", "shapes", "--method", "dgl-transformer", *settings)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(" over 16 captions\n")
    recipe = read_recipe("runs/shapes-dgl-transformer/recipe.toml")
    expected = read_recipe("shapes", ["method=dgl-transformer"])
    assert recipe == replace(
        expected, **SETTINGS, backbone=str(tmp_path / "shapes" / "backbone"), pretrained=""
    )
    report = invoke(evaluate, "runs/shapes-dgl-transformer", "--dataset", "shapes")
    assert "clips closer to their caption than to its reverse" in report.stdout

"""dgl-eval: what it prints, what it writes, and what it says of how an epoch was chosen."""

import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner

from dgl_train.commands.evaluate import evaluate
from dgl_train.evaluation.models import expand_runs, selection_line
from tests.helpers.runs import write_csv, write_run


@pytest.fixture(scope="module")
def run_folder(backbone_folder, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", backbone_folder)


@pytest.fixture(scope="module")
def data(clips, tmp_path_factory):
    """8 test clips, and the same 8 in 4 train and 4 val."""
    more = [replace(clip, split="train" if i < 4 else "val") for i, clip in enumerate(clips)]
    tests = [replace(clip, split="test") for clip in clips]
    path = write_csv(tmp_path_factory.mktemp("captions") / "clips.csv", [*more, *tests])
    return ["--dataset", path, "--device", "cpu"]


def invoke(*args):
    return CliRunner().invoke(evaluate, [str(arg) for arg in args])


def printed(*args):
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def error_line(*args):
    """The only line on stderr, of a command that failed."""
    result = invoke(*args)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return result.stderr


def test_a_report_begins_with_how_the_epoch_was_chosen(run_folder, data):
    lines = printed(run_folder, *data).splitlines()
    assert lines[0] == "epoch chosen on validation"
    assert lines[1] == f"{run_folder} on {data[1]} test"
    assert [line[:13] for line in lines[-2:]] == ["text to video", "video to text"]
    assert [line[-1] for line in lines[-2:]] == ["8", "8"]


def test_captions_that_are_cut_are_counted_once(run_folder, clips, tmp_path):
    long = replace(clips[0], caption="dog " * 23)
    data = write_csv(
        tmp_path / "clips.csv", [replace(clip, split="test") for clip in (long, *clips)]
    )
    result = invoke(run_folder, run_folder, "--dataset", data, "--device", "cpu")
    assert result.exit_code == 0, result.output
    told = "Warning: 1 of 9 captions are longer than max_tokens, 24 tokens, and only their beginning is read.\n"
    assert result.stderr.count(told) == 1


def test_an_epoch_chosen_on_test_is_shouted(backbone_folder, data, tmp_path):
    run = write_run(tmp_path / "run", backbone_folder, select_on_test=True)
    first = printed(run, *data).splitlines()[0]
    assert first == "EPOCH CHOSEN ON THE TEST SET: compare only with results chosen that way"


def test_what_is_not_known_of_the_selection_is_said(run_folder, tmp_path):
    assert selection_line(run_folder / "best.safetensors") == "epoch chosen on validation"
    assert selection_line(run_folder / "last.safetensors") == "last epoch, not chosen"
    assert selection_line(run_folder, zero_shot=True) == "untuned backbone: no epoch was chosen"
    unknown = "selection not recorded: no recipe.toml beside the checkpoint"
    assert selection_line(tmp_path / "ckpt.best.pth.tar") == unknown
    (tmp_path / "manifest.json").touch()
    assert selection_line(tmp_path) == "selection not recorded in the bundle"


def test_one_document_holds_figures_and_settings(run_folder, data):
    tuned = json.loads(printed(run_folder / "last.safetensors", *data, "--json"))
    untuned = json.loads(printed(run_folder, *data, "--json", "--zero-shot"))
    assert (tuned["zero_shot"], untuned["zero_shot"]) == (False, True)
    assert tuned["text_to_video"] != untuned["text_to_video"]
    assert tuned["text_to_video"]["num_queries"] == 8
    assert (tuned["direction_score"], tuned["split"], tuned["post_processed"]) == (None, "test", [])
    assert not tuned["group_captions"]
    assert json.loads(printed(run_folder, *data, "--json", "--group-captions"))["group_captions"]


def test_runs_of_several_seeds_give_mean_and_spread(backbone_folder, data, tmp_path):
    for seed in (0, 10, 9):
        write_run(tmp_path / "run" / f"seed{seed}", backbone_folder, seed=seed)
    runs = [tmp_path / "run" / f"seed{seed}" for seed in (0, 9, 10)]
    assert expand_runs([tmp_path / "run"]) == runs
    text = printed(tmp_path / "run", *data)
    assert text.splitlines()[1] == f"3 models on {data[1]} test"
    assert re.search(r"text to video, mean +[\d. ]+\n", text)
    assert re.search(r"video to text, spread +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+$", text)
    several = json.loads(printed(*runs, *data, "--json"))
    recalls = [model["text_to_video"]["r5"] for model in several["models"]]
    assert several["summary"]["mean"]["text_to_video"]["r5"] == pytest.approx(sum(recalls) / 3)


def test_corrections_stand_apart_with_what_they_use(run_folder, data):
    text = printed(run_folder, *data, "--post-process")
    raw, dual, qb = text.split("\n\n")[1:]
    assert raw.startswith("similarity as it is\n")
    where = r"beta chosen on the val split \(4 captions\)"
    assert re.match(rf"dual softmax, uses the whole test set; {where}\n", dual)
    assert re.match(rf"QB-Norm, uses a bank of 4 training captions; {where}\n", qb)
    assert "video to text" in dual
    assert "video to text" not in qb


def test_corrections_are_refused_on_what_they_learn_from(run_folder, data):
    result = invoke(run_folder, *data, "--post-process", "--split", "val")
    assert result.exit_code == 2
    assert "--post-process needs --split test, not val" in result.stderr


def test_without_a_val_split_a_part_of_train_is_held_out(run_folder, clips, tmp_path):
    rows = [replace(clip, split="train" if i < 6 else "test") for i, clip in enumerate(clips)]
    path = write_csv(tmp_path / "clips.csv", rows)
    text = printed(run_folder, "--dataset", path, "--device", "cpu", "--post-process")
    assert "chosen on a part held out of train (1 captions)" in text


def test_no_temperature_is_chosen_on_what_the_model_was_trained_on(
    run_folder, backbone_folder, clips, tmp_path
):
    rows = [replace(clip, split="train" if i < 6 else "test") for i, clip in enumerate(clips)]
    path = write_csv(tmp_path / "clips.csv", rows)
    on_test = write_run(tmp_path / "on_test", backbone_folder, select_on_test=True)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run_folder / "best.safetensors").read_bytes())
    for model, why in ((on_test, "all of train"), (alone, "no recipe.toml")):
        line = error_line(model, "--dataset", path, "--device", "cpu", "--post-process")
        assert f"--post-process needs clips that {model} was not trained on" in line
        assert why in line


def test_a_report_is_written_only_when_asked_for_and_replaces_the_old_one(
    run_folder, data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    printed(run_folder, *data)
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        printed(run_folder, *data, "--out", "report")
        assert {path.name for path in (tmp_path / "report").iterdir()} == {
            "report.html",
            "report.json",
        }
    report = json.loads((tmp_path / "report" / "report.json").read_text("utf-8"))
    assert report["selection"] == ["epoch chosen on validation"]
    assert set(report["versions"]) == {"dgl-retrieval", "torch", "numpy", "av"}
    (model,) = report["models"]
    ranks = [query["rank"] for query in model["queries"]]
    assert sum(ranks) / 8 == model["text_to_video"]["mean_rank"]
    assert sum(clip["rank"] for clip in model["clips"]) / 8 == model["video_to_text"]["mean_rank"]
    assert model["queries"][0]["caption"] == "the ant"
    assert model["queries"][0]["clip"].endswith("train0.mp4")


def test_attention_of_a_run_is_drawn(run_folder, data, tmp_path):
    out = tmp_path / "pictures"
    text = printed(run_folder, *data, "--attention", out, "--count", 2)
    assert text == f"{out}: 2 pictures and attention.json\n"
    assert sorted(p.name for p in out.iterdir()) == ["000.png", "001.png", "attention.json"]


def test_what_does_not_go_together_is_said(run_folder, data, tmp_path):
    twice = error_line(run_folder, run_folder, *data, "--attention", tmp_path)
    assert twice == "Error: --attention got 2 models, expected one. Name one run.\n"
    result = invoke(run_folder, *data, "--attention", tmp_path, "--json")
    assert (result.exit_code, "--attention only draws" in result.stderr) == (2, True)


def test_what_is_missing_is_named(tmp_path, run_folder, data, clips):
    path = write_csv(tmp_path / "train.csv", clips)
    assert error_line(run_folder, "--dataset", path, "--device", "cpu") == (
        f"Error: data set {path} has no clips of split 'test'; it has train. Choose one of "
        "these, or all.\n"
    )
    absent = error_line(tmp_path / "absent", *data)
    assert absent.startswith(f"Error: checkpoint {tmp_path / 'absent'} does not exist.")
    (tmp_path / "manifest.json").touch()
    assert error_line(tmp_path, *data, "--zero-shot") == (
        f"Error: {tmp_path} is an exported bundle, which has no backbone of its own. "
        "Give --zero-shot with the run it was exported from.\n"
    )


def test_a_damaged_recipe_beside_a_checkpoint_is_named(backbone_folder, data, tmp_path):
    run = write_run(tmp_path / "run", backbone_folder)
    (run / "recipe.toml").write_text("method = ")
    assert error_line(run, *data).startswith(f"Error: recipe {run / 'recipe.toml'} cannot be read:")

"""Training: what learns, what does not, and that a run goes on exactly where it was stopped."""

import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dgl_train.training.fit as fit_module
from dgl_runtime.errors import ConfigError, MediaError
from dgl_train.model.checkpoint import load_checkpoint
from dgl_train.recipes.recipe import read_recipe
from dgl_train.training.fit import fit
from dgl_train.training.step import StepResult, TrainingStep
from dgl_train.training.stopping import StopRequest
from tests.helpers.tiny import tiny_backbone, tiny_recipe

CPU = torch.device("cpu")


def run(folder, clips, backbone, *, resume=False, **changes):
    return fit(
        tiny_recipe(**changes),
        clips,
        clips,
        folder,
        backbone=backbone,
        device=CPU,
        resume=resume,
        progress_bar=False,
    )


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["clips_per_s"] <= line["clips_per_s_without_waiting"]
        for key in [key for key in line if "_s" in key]:
            del line[key]
    return lines


def same_tensors(one, other):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_run_killed_after_any_step_and_resumed_equals_an_undisturbed_one(
    tmp_path, clips, backbone, monkeypatch
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, clips, backbone, save_every_steps=1)  # 2 epochs of 2 steps
    steps = 0
    take = TrainingStep.take

    def killing_step(*args):
        nonlocal steps
        if steps == 1:
            steps = 0
            raise SystemError("killed")
        steps += 1
        return take(*args)

    monkeypatch.setattr(TrainingStep, "take", killing_step)
    for resume in (False, True, True):
        with pytest.raises(SystemError, match="killed"):
            run(broken, clips, backbone, save_every_steps=1, resume=resume)
    result = run(broken, clips, backbone, save_every_steps=1, resume=True)
    assert result == replace(run(whole, clips, backbone, resume=True), run=broken)
    same_tensors(whole / "last.safetensors", broken / "last.safetensors")
    same_tensors(whole / "best.safetensors", broken / "best.safetensors")
    assert metrics(whole) == metrics(broken)
    assert [line["epoch"] for line in metrics(whole)] == [1, 2]


def test_ctrl_c_ends_the_run_after_the_step_and_it_goes_on_exactly(
    tmp_path, clips, backbone, monkeypatch
):
    take = TrainingStep.take

    def interrupted_step(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return take(*args)

    run(tmp_path / "whole", clips, backbone)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "take", interrupted_step)
        result = run(tmp_path / "broken", clips, backbone)
    assert (result.step, result.total_steps, result.best_epoch) == (1, 4, 0)
    assert run(tmp_path / "broken", clips, backbone, resume=True).step == 4
    same_tensors(tmp_path / "whole" / "last.safetensors", tmp_path / "broken" / "last.safetensors")


def test_a_second_ctrl_c_is_not_held_back():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_best_checkpoint_is_of_the_first_epoch_with_the_best_recall(
    tmp_path, clips, backbone, monkeypatch
):
    recalls = iter([20.0, 30.0, 30.0, 10.0])
    real = fit_module.evaluate

    def staged(*args, **kwargs):
        report = real(*args, **kwargs)
        return replace(report, text_to_video=replace(report.text_to_video, r1=next(recalls)))

    monkeypatch.setattr(fit_module, "evaluate", staged)
    result = run(tmp_path / "run", clips, backbone, epochs=4)
    assert (result.best_epoch, result.best_recall) == (2, 30.0)


def test_run_folder_holds_the_recipe_and_a_checkpoint_that_loads(tmp_path, clips, backbone):
    run(tmp_path / "run", clips, backbone, epochs=1)
    assert read_recipe(tmp_path / "run" / "recipe.toml") == tiny_recipe(epochs=1)
    tuned = load_checkpoint(tmp_path / "run", tiny_backbone())
    assert (tuned.settings.num_frames, tuned.settings.max_tokens) == (2, 24)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "best.safetensors",
        "dropped.csv",
        "environment.json",
        "events",
        "last.safetensors",
        "metrics.jsonl",
        "recipe.toml",
        "resume.pt",
    ]


def error_of(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        run(*args, **kwargs)
    return str(caught.value)


def test_a_run_is_not_overwritten(tmp_path, clips, backbone):
    run(tmp_path / "run", clips, backbone, epochs=1)
    assert error_of(tmp_path / "run", clips, backbone, epochs=1) == (
        f"{tmp_path / 'run'} holds a run at step 2. Resume it with --resume, or give another "
        "folder with --out."
    )


def test_resume_needs_the_same_run(tmp_path, clips, backbone):
    folder = tmp_path / "run"
    assert error_of(folder, clips, backbone, resume=True) == (
        f"{folder} holds no run to resume. Leave out --resume."
    )
    run(folder, clips, backbone, epochs=1)
    changes = {"epochs": 3, "learning_rate": 0.02, "num_workers": 2}
    assert error_of(folder, clips, backbone, resume=True, **changes) == (
        f"{folder} holds a run with another recipe: epochs was 1, is 3, learning_rate was 0.01, is "
        "0.02. Give the same settings, or another folder with --out."
    )
    assert error_of(folder, clips[:-1], backbone, resume=True, epochs=1) == (
        f"{folder} holds a run on other clips. Give the same data set, or another folder with --out."
    )
    (folder / "resume.pt").write_bytes(b"no state")
    assert "resume.pt cannot be read: " in error_of(folder, clips, backbone, resume=True, epochs=1)


def test_a_loss_that_is_not_finite_names_the_videos(tmp_path, clips, backbone, monkeypatch):
    monkeypatch.setattr(TrainingStep, "take", lambda *_: StepResult(math.nan, 0.0, 0.0))
    message = error_of(tmp_path / "run", clips[:2], backbone, batch_size=2)
    for clip in clips[:2]:
        assert str(clip.video) in message
    assert message.startswith("the loss is nan and its gradient's norm 0.0 at step 1. Lower lear")


def test_an_unreadable_video_stops_training(tmp_path, clips, backbone):
    broken = replace(clips[0], video=tmp_path / "broken.mp4")
    broken.video.write_bytes(b"no video")
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        run(tmp_path / "run", [broken, *clips[1:3]], backbone, batch_size=3)


def test_training_needs_2_clips_and_captions_that_fit(tmp_path, clips, backbone):
    assert error_of(tmp_path / "run", clips[:1], backbone) == (
        "there is 1 captioned clip to train on; give 2 or more."
    )
    assert error_of(tmp_path / "run", clips, backbone, max_tokens=77) == (
        "max_tokens is 77, but backbone 'tiny' reads captions of 24 tokens at most. Lower max_tokens."
    )

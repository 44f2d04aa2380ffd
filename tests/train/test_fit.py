"""Training: what learns, what does not, and that a run goes on exactly where it was stopped."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import FRAME_SIZE, tiny_backbone

import dgl_train.fit as fit_module
from dgl_runtime.errors import ConfigError, MediaError
from dgl_train.checkpoint import METHODS, load_checkpoint
from dgl_train.config import read_recipe
from dgl_train.data import Batch, FrameFormat, evaluation_batches, read_batches
from dgl_train.evaluate import evaluate, torch_encoders
from dgl_train.fit import fit, make_model, train_step
from dgl_train.optimizer import make_optimizer, rate_factor
from dgl_train.stopping import StopRequest
from dgl_train.vocabulary import clip_tokenizer

CPU = torch.device("cpu")


def recipe(**changes):
    plain = replace(
        read_recipe("default"),
        num_frames=2,
        max_words=24,
        batch_size=3,
        epochs=2,
        learning_rate=0.01,
        weight_decay=0.01,
        num_workers=0,
    )
    return replace(plain, **changes)


def run(folder, clips, backbone, *, resume=False, **changes):
    return fit(
        recipe(**changes),
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
        del line["seconds"]
    return lines


def same_tensors(one, other):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize(
    ("method", "learning_rate", "seed"), [("dgl-linear", 0.01, 2), ("dgl-transformer", 0.004, 5)]
)
def test_30_steps_learn_8_pairs(clips, method, learning_rate, seed):
    settings = recipe(method=method, learning_rate=learning_rate, training_seed=seed, num_frames=4)
    # A random network is harder to steer than a pretrained one: more width, more prompts.
    settings = replace(settings, global_prompts=8, frame_prompts=8, caption_prompts=16)
    model = make_model(settings, tiny_backbone(width=128)).model
    optimizer = make_optimizer(model.prompts, settings)
    (batch,) = read_batches(clips, FrameFormat(4, FRAME_SIZE), evaluation_batches(8, 8))
    tokens = torch.from_numpy(clip_tokenizer()([clip.caption for clip in clips], 24))
    for step in range(30):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate_factor(step, 30, 0.1)
        train_step(model, optimizer, tokens, batch.frames, max_grad_norm=1.0)
    encoders = torch_encoders(model, num_frames=4, max_words=24, device=CPU)
    assert evaluate(encoders, clips, progress=False).text_to_video.r1 == 100.0


@pytest.mark.parametrize("method", METHODS)
def test_prompts_get_gradients_and_the_backbone_none(backbone, method):
    tuned = make_model(recipe(method=method), backbone)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    optimizer = make_optimizer(tuned.model.prompts, recipe())
    tokens = torch.from_numpy(clip_tokenizer()(["a cat", "two dogs"], 24))
    frames = torch.randint(0, 256, (2, 2, 3, 16, 16), dtype=torch.uint8)
    train_step(tuned.model, optimizer, tokens, frames, max_grad_norm=1.0)
    for name, parameter in tuned.model.prompts.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    for name, tensor in backbone.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_gradient_norm_is_limited(backbone):
    tuned = make_model(recipe(), backbone)
    optimizer = make_optimizer(tuned.model.prompts, recipe())
    tokens = torch.from_numpy(clip_tokenizer()(["a cat", "two dogs"], 24))
    frames = torch.randint(0, 256, (2, 2, 3, 16, 16), dtype=torch.uint8)
    train_step(tuned.model, optimizer, tokens, frames, max_grad_norm=1e-3)
    norms = [parameter.grad.norm() for parameter in tuned.model.prompts.parameters()]
    np.testing.assert_allclose(torch.stack(norms).norm(), 1e-3, rtol=1e-3)


def test_biases_and_norms_do_not_decay_and_kinds_have_their_rates(backbone):
    settings = recipe(
        method="dgl-transformer", global_lr_factor=3.0, latent_lr_factor=5.0, weight_decay=0.2
    )
    prompts = make_model(settings, backbone).model.prompts
    groups = dict(
        zip(dict(prompts.named_parameters()), make_optimizer(prompts, settings).param_groups,
            strict=True)
    )  # fmt: skip
    peaks = {name: group["peak_lr"] for name, group in groups.items()}
    decays = {name: group["weight_decay"] for name, group in groups.items()}
    assert (peaks["global_prompts"], peaks["latent"], peaks["mixer.fc.weight"]) == (
        pytest.approx(0.03),
        pytest.approx(0.05),
        pytest.approx(0.01),
    )
    assert {name for name, decay in decays.items() if not decay} == {
        name for name in decays if name.endswith("bias") or ".ln_" in name
    }


def test_rate_warms_up_and_falls_along_a_cosine():
    rates = [rate_factor(step, 20, 0.2) for step in range(20)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    np.testing.assert_allclose(rates[12], 0.5)
    assert 0 < rates[-1] < 0.01
    assert rate_factor(0, 1, 0.0) == 1.0


def test_a_run_killed_after_any_step_and_resumed_equals_an_undisturbed_one(
    tmp_path, clips, backbone, monkeypatch
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, clips, backbone, save_every_steps=1)  # 2 epochs of 2 steps
    steps = 0

    def killing_step(*args, **kwargs):
        nonlocal steps
        if steps == 1:
            steps = 0
            raise SystemError("killed")
        steps += 1
        return train_step(*args, **kwargs)

    monkeypatch.setattr(fit_module, "train_step", killing_step)
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
    def interrupted_step(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return train_step(*args, **kwargs)

    run(tmp_path / "whole", clips, backbone)
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "train_step", interrupted_step)
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
    assert read_recipe(tmp_path / "run" / "recipe.toml") == recipe(epochs=1)
    tuned = load_checkpoint(tmp_path / "run", tiny_backbone())
    assert (tuned.settings.num_frames, tuned.settings.max_words) == (2, 24)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "best.safetensors",
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
        f"{tmp_path / 'run'} holds a run at step 2. Go on with it with --resume, or give another "
        "folder with --out."
    )


def test_resume_needs_the_same_run(tmp_path, clips, backbone):
    folder = tmp_path / "run"
    assert error_of(folder, clips, backbone, resume=True) == (
        f"{folder} holds no run to go on with. Leave out --resume."
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
    monkeypatch.setattr(fit_module, "train_step", lambda *_, **__: float("nan"))
    message = error_of(tmp_path / "run", clips[:2], backbone, batch_size=2)
    for clip in clips[:2]:
        assert str(clip.video) in message
    assert message.startswith("the loss is nan at step 1. Lower learning_rate, or look at the ")


def test_a_loss_that_is_not_finite_changes_nothing(backbone):
    tuned = make_model(recipe(), backbone)
    before = {name: tensor.clone() for name, tensor in tuned.model.prompts.state_dict().items()}
    tokens = torch.from_numpy(clip_tokenizer()(["a cat", "two dogs"], 24))
    batch = Batch([0, 1], torch.full((2, 2, 3, 16, 16), torch.nan))
    optimizer = make_optimizer(tuned.model.prompts, recipe())
    assert np.isnan(train_step(tuned.model, optimizer, tokens, batch.frames, max_grad_norm=1.0))
    for name, tensor in tuned.model.prompts.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)


def test_an_unreadable_video_stops_training(tmp_path, clips, backbone):
    broken = replace(clips[0], video=tmp_path / "broken.mp4")
    broken.video.write_bytes(b"no video")
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        run(tmp_path / "run", [broken, *clips[1:3]], backbone, batch_size=3)


def test_training_needs_2_clips_and_captions_that_fit(tmp_path, clips, backbone):
    assert error_of(tmp_path / "run", clips[:1], backbone) == (
        "there is 1 captioned clip to train on; give 2 or more."
    )
    assert error_of(tmp_path / "run", clips, backbone, max_words=77) == (
        "max_words is 77, but backbone 'tiny' reads captions of 24 tokens at most. Lower max_words."
    )

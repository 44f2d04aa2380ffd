"""One step: what learns, what does not, and that parts of a batch give the gradient of the whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dgl_runtime.errors import ConfigError
from dgl_train.data.batches import FrameFormat, evaluation_batches, read_batches
from dgl_train.evaluation.evaluate import evaluate, torch_encoders
from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from dgl_train.model.dual_encoder import FrameMeanModel
from dgl_train.model.methods import METHODS, PROMPT_METHODS, trained_parameters
from dgl_train.training.gradient_cache import PairBatch, backward_contrastive
from dgl_train.training.losses import Logits, softmax_loss
from dgl_train.training.optimizer import make_optimizer, rate_factor
from dgl_train.training.processes import Processes
from dgl_train.training.step import TrainingStep, autocast, make_batch, make_model
from tests.helpers.specs import frame_spec
from tests.helpers.tiny import FRAME_SIZE, tiny_backbone, tiny_recipe

CPU = torch.device("cpu")
CAPTIONS = ["a cat", "two dogs", "an elk runs over the hill", "the bee"]


def random_batch(size=2, num_frames=2, *, reverse=False):
    tokens = torch.from_numpy(clip_tokenizer(24)(CAPTIONS[:size]).ids)
    generator = torch.Generator().manual_seed(0)
    shape = (size, num_frames, 3, FRAME_SIZE, FRAME_SIZE)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return PairBatch(tokens, frames, torch.arange(size) != 1 if reverse else None)


def step_of(model, recipe, total_steps=30):
    return TrainingStep(model, recipe, total_steps=total_steps, device=CPU, processes=Processes())


def gradients(model):
    return {name: tensor.grad for name, tensor in trained_parameters(model).items()}


@pytest.mark.parametrize(
    ("method", "learning_rate", "seed"), [("dgl-linear", 0.01, 2), ("dgl-transformer", 0.004, 5)]
)
def test_30_steps_learn_8_pairs(clips, method, learning_rate, seed):
    settings = tiny_recipe(
        method=method, learning_rate=learning_rate, training_seed=seed, num_frames=4
    )
    # A random network is harder to steer than a pretrained one: more width, more prompts.
    settings = replace(settings, global_prompts=8, frame_prompts=8, caption_prompts=16)
    model = make_model(settings, tiny_backbone(width=128)).model
    step = step_of(model, settings)
    (batch,) = read_batches(clips, FrameFormat(frame_spec(4, FRAME_SIZE)), evaluation_batches(8, 8))
    pairs = make_batch(clips, batch.frames, step)
    for number in range(30):
        step.take(number, pairs)
    encoders = torch_encoders(model, CPU)
    assert evaluate(encoders, clips, progress=False).text_to_video.r1 == 100.0


@pytest.mark.parametrize("method", METHODS)
def test_only_what_the_method_trains_moves(method):
    backbone = tiny_backbone()
    frozen = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    tuned = make_model(tiny_recipe(method=method), backbone)
    step = step_of(tuned.model, tiny_recipe(method=method))
    before = {name: tensor.clone() for name, tensor in tuned.model.state_dict().items()}
    for number in range(2):
        step.take(number, random_batch())
    trained = trained_parameters(tuned.model)
    still = {n for n, tensor in tuned.model.state_dict().items() if torch.equal(tensor, before[n])}
    unread = {"backbone.text.token_embedding.weight"}  # rows of words that no caption holds
    assert not still & trained.keys() - unread
    assert still >= tuned.model.state_dict().keys() - trained.keys()
    if method in PROMPT_METHODS:
        for name, tensor in backbone.state_dict().items():
            np.testing.assert_array_equal(tensor, frozen[name], err_msg=name)
        assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("method", ["lora", "adapter-attention", "adapter-mlp", "bias", "full"])
def test_alternatives_start_as_the_untuned_backbone(method):
    batch = random_batch()
    tuned, untuned = make_model(tiny_recipe(method=method), tiny_backbone()).model, tiny_backbone()
    untuned = FrameMeanModel(untuned)
    with torch.no_grad():
        torch.testing.assert_close(
            tuned.encode_clips(batch.frames), untuned.encode_clips(batch.frames)
        )
        torch.testing.assert_close(
            tuned.encode_captions(batch.tokens), untuned.encode_captions(batch.tokens)
        )


def test_frame_positions_start_as_the_paper_and_make_order_visible():
    frames = random_batch(4, 3).frames
    plain = make_model(tiny_recipe(method="dgl-linear", num_frames=3), tiny_backbone()).model
    placed = make_model(
        tiny_recipe(method="dgl-linear", num_frames=3, frame_positions=True), tiny_backbone()
    ).model
    with torch.no_grad():
        there = plain.encode_clips(frames)
        torch.testing.assert_close(placed.encode_clips(frames), there, rtol=0, atol=1e-6)
        torch.testing.assert_close(plain.encode_clips(frames.flip(1)), there, rtol=0, atol=2e-6)
        placed.prompts.frame_positions.normal_()
        back = placed.encode_clips(frames.flip(1))
        assert (placed.encode_clips(frames) - back).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["dgl-linear", "dgl-transformer", "full"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(method, reverse, micro_batch_size):
    found = []
    for size in (0, micro_batch_size):
        model = make_model(tiny_recipe(method=method), tiny_backbone()).model.double()
        loss = backward_contrastive(
            model,
            random_batch(4, reverse=reverse),
            processes=Processes(),
            micro_batch_size=size,
        )
        found.append((loss, gradients(model)))
    (loss, whole), (loss_of_parts, parts) = found
    assert loss == pytest.approx(loss_of_parts, rel=1e-6)
    for name, gradient in whole.items():
        limit = 1e-5 * float(gradient.abs().max()) + 1e-9
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=limit, msg=name)


@pytest.mark.parametrize("method", ["dgl-linear", "dgl-transformer", "full"])
def test_computing_blocks_again_changes_no_bit(method):
    plain, again = (
        make_model(tiny_recipe(method=method, recompute_blocks=on), tiny_backbone()).model
        for on in (False, True)
    )
    for model in (plain, again):
        backward_contrastive(model, random_batch(4), processes=Processes())
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(again)[name], gradient, rtol=0, atol=0, msg=name)


def test_a_reversed_clip_is_one_more_wrong_answer():
    torch.manual_seed(0)
    captions, clips, backwards = torch.nn.functional.normalize(torch.randn(3, 4, 8), dim=-1)
    backwards[1] = 0  # looks the same backwards
    loss = softmax_loss(captions, clips, Logits(torch.tensor(5.0)), backwards)
    rows, columns = [], []
    for i in range(4):
        logits = [5.0 * float(captions[i] @ clip) for clip in clips]
        others = [5.0 * float(captions[i] @ backwards[i])] if i != 1 else []
        rows.append(np.logaddexp.reduce(logits + others) - logits[i])
        column = [5.0 * float(caption @ clips[i]) for caption in captions]
        columns.append(np.logaddexp.reduce(column) - column[i])
    assert float(loss) == pytest.approx((np.mean(rows) + np.mean(columns)) / 2, rel=1e-5)


def test_only_clips_that_look_different_backwards_are_reversed(clips):
    settings = tiny_recipe(method="dgl-transformer", reversed_negatives=True)
    step = step_of(make_model(settings, tiny_backbone()).model, settings)
    reverses = ["it falls", "it rises", None, "it rises", "it rises"]  # None: not known
    rising = [replace(clips[0], caption="it rises", reversed_caption=one) for one in reverses]
    frames = torch.zeros(5, 2, 3, FRAME_SIZE, FRAME_SIZE, dtype=torch.uint8)
    pairs = make_batch(rising, frames, step)
    assert pairs.has_reverse.tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_follows_full_precision(precision):
    losses = {}
    for kind in ("fp32", precision):
        settings = tiny_recipe(method="dgl-linear", precision=kind)
        step = step_of(make_model(settings, tiny_backbone()).model, settings)
        losses[kind] = [step.take(number, random_batch(4)).loss for number in range(5)]
    assert losses[precision][0] == pytest.approx(losses["fp32"][0], rel=0.01)
    assert losses[precision][0] != losses["fp32"][0]
    # The first step in float16 finds that its loss scale is too large, and is not taken.
    assert losses[precision][-1] == pytest.approx(losses["fp32"][-1], rel=0.1)


@pytest.mark.parametrize("method", ["dgl-linear", "dgl-transformer", "full"])
@pytest.mark.parametrize("micro_batch_size", [0, 1])
def test_gradients_in_mixed_precision_point_where_they_should(method, micro_batch_size):
    found = {}
    for precision, size in (("fp32", 0), ("bf16", micro_batch_size)):
        model = make_model(tiny_recipe(method=method), tiny_backbone()).model
        backward_contrastive(
            model,
            random_batch(4),
            processes=Processes(),
            micro_batch_size=size,
            encoding=lambda precision=precision: autocast(CPU, precision),
        )
        found[precision] = gradients(model)
    for name, gradient in found["fp32"].items():
        other = found["bf16"][name]
        if gradient.norm() > 1e-3 * max(one.norm() for one in found["fp32"].values()):
            cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), other.flatten(), 0)
            assert cosine > 0.98, name


def test_a_gradient_that_is_not_finite_changes_nothing(backbone):
    settings = tiny_recipe(method="dgl-linear")
    model = make_model(settings, backbone).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.prompts.latent.register_hook(lambda gradient: gradient * torch.nan)
    step = step_of(model, settings)
    result = step.take(0, random_batch())
    assert np.isfinite(result.loss)
    assert not step.is_sound(result)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)


def test_a_trained_temperature_stays_below_the_limit_of_clip():
    settings = tiny_recipe(method="full", learning_rate=5.0)
    model = make_model(settings, tiny_backbone()).model
    with torch.no_grad():
        model.backbone.logit_scale.fill_(4.6)
    step = step_of(model, settings)
    for number in range(3):
        step.take(number, random_batch(4))
        assert model.logit_scale <= 100 * 1.0001


@pytest.mark.parametrize("method", ["dgl-linear", "unshared", "lora"])
def test_reversed_negatives_need_a_model_that_sees_order(method):
    with pytest.raises(ConfigError, match=f"but {method} without frame_positions gives a clip"):
        make_model(tiny_recipe(method=method, reversed_negatives=True), tiny_backbone())
    assert make_model(
        tiny_recipe(method="dgl-linear", reversed_negatives=True, frame_positions=True),
        tiny_backbone(),
    )


def test_gradient_norm_is_limited(backbone):
    settings = tiny_recipe(max_grad_norm=1e-3)
    tuned = make_model(settings, backbone)
    assert step_of(tuned.model, settings).take(0, random_batch()).grad_norm > 1e-3
    norms = [gradient.norm() for gradient in gradients(tuned.model).values()]
    np.testing.assert_allclose(torch.stack(norms).norm(), 1e-3, rtol=1e-3)


def test_biases_and_norms_do_not_decay_and_kinds_have_their_rates(backbone):
    settings = tiny_recipe(
        method="dgl-transformer", global_lr_factor=3.0, latent_lr_factor=5.0, weight_decay=0.2
    )
    model = make_model(settings, backbone).model
    groups = dict(
        zip(trained_parameters(model), make_optimizer(model, settings).param_groups, strict=True)
    )
    peaks = {name: group["peak_lr"] for name, group in groups.items()}
    decays = {name: group["weight_decay"] for name, group in groups.items()}
    assert peaks["prompts.global_prompts"] == pytest.approx(0.03)
    assert peaks["prompts.latent"] == pytest.approx(0.05)
    assert peaks["prompts.mixer.fc.weight"] == pytest.approx(0.01)
    assert {name for name, decay in decays.items() if not decay} == {
        name for name in decays if name.endswith("bias") or ".ln_" in name
    }


def test_rate_warms_up_and_falls_along_a_cosine():
    rates = [rate_factor(step, 20, 0.2) for step in range(20)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    np.testing.assert_allclose(rates[12], 0.5)
    assert 0 < rates[-1] < 0.01
    assert rate_factor(0, 1, 0.0) == 1.0


def test_a_loss_that_is_not_finite_changes_nothing(backbone):
    tuned = make_model(tiny_recipe(), backbone)
    before = {name: tensor.clone() for name, tensor in tuned.model.state_dict().items()}
    batch = replace(random_batch(), frames=torch.full((2, 2, 3, 16, 16), torch.nan))
    assert np.isnan(step_of(tuned.model, tiny_recipe()).take(0, batch).loss)
    for name, tensor in tuned.model.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)

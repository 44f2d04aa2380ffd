"""The losses by name: their numbers by hand, who may take which, and the gradient of a whole batch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgl_runtime.errors import ConfigError
from dgl_train.model.backbones.backbone import LOSSES, OWN_LOSS
from dgl_train.model.dual_encoder import FrameMeanModel
from dgl_train.training import losses
from dgl_train.training.gradient_cache import PairBatch, backward_contrastive
from dgl_train.training.losses import Logits, choose_loss, sigmoid_loss, softmax_loss
from dgl_train.training.processes import Processes
from tests.helpers.tiny import FRAME_SIZE, tiny_backbone


def sigmoid_model():
    """A tiny CLIP as if the sigmoid loss had trained it, all of it trained."""
    backbone = tiny_backbone()
    backbone.logit_bias = nn.Parameter(torch.tensor(-2.0))
    backbone.requires_grad_(True)
    return FrameMeanModel(backbone).double()


def test_every_loss_has_a_function():
    assert tuple(losses._FUNCTIONS) == LOSSES


def test_the_sigmoid_loss_of_two_pairs_by_hand():
    """Similarities [[.8, .6], [0, 1]], scale 2, bias -1: logits [[.6, .2], [-1, 1]]."""
    captions = torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    logits = Logits(torch.tensor(2.0), torch.tensor(-1.0))
    right = np.log1p(np.exp(-0.6)) + np.log1p(np.exp(-1.0))
    wrong = np.log1p(np.exp(0.2)) + np.log1p(np.exp(-1.0))
    loss = sigmoid_loss(captions, torch.eye(2), logits)
    assert float(loss) == pytest.approx((right + wrong) / 2)
    reversed_clips = torch.tensor([[0.0, 1.0], [0.0, 0.0]])  # the second is none
    more = np.log1p(np.exp(2 * 0.6 - 1))
    loss = sigmoid_loss(captions, torch.eye(2), logits, reversed_clips)
    assert float(loss) == pytest.approx((right + wrong + more) / 2)


def test_a_recipe_may_name_another_loss_than_the_backbone_s():
    model = sigmoid_model()
    assert choose_loss(OWN_LOSS, model) is softmax_loss  # what its family says
    assert choose_loss("sigmoid", model) is sigmoid_loss
    assert choose_loss("softmax", model) is softmax_loss


def test_the_sigmoid_loss_without_a_bias_is_refused():
    with pytest.raises(ConfigError, match=r"loss is 'sigmoid', which needs .* a bias .*'tiny' was"):
        choose_loss("sigmoid", FrameMeanModel(tiny_backbone()))
    with pytest.raises(
        ValueError, match=r"^the sigmoid loss needs a bias, and these logits have none"
    ):
        sigmoid_loss(torch.eye(2), torch.eye(2), Logits(torch.tensor(1.0)))


@pytest.mark.parametrize("micro_batch_size", [0, 2])
def test_the_sigmoid_loss_has_the_gradient_of_the_whole_batch(micro_batch_size):
    """Scale and bias included; also where they are added to."""
    model = sigmoid_model()
    captions = ["a cat", "two dogs", "an elk runs over the hill", "the bee", "a hen"]
    tokens = torch.from_numpy(model.tokenizer(captions).ids)
    generator = torch.Generator().manual_seed(0)
    shape = (5, 2, 3, FRAME_SIZE, FRAME_SIZE)
    batch = PairBatch(tokens, torch.randint(0, 256, shape, generator=generator).to(torch.uint8))
    cosines = model.encode_captions(batch.tokens) @ model.encode_clips(batch.frames).T
    logits = model.logit_scale * cosines + model.logit_bias
    expected = (
        F.binary_cross_entropy_with_logits(logits, torch.eye(5).double(), reduction="sum") / 5
    )
    names = [name for name, _ in model.named_parameters()]
    right = torch.autograd.grad(expected, model.parameters())
    for times in (1, 2):
        loss = backward_contrastive(
            model,
            batch,
            processes=Processes(),
            loss=sigmoid_loss,
            micro_batch_size=micro_batch_size,
        )
        assert loss == pytest.approx(expected.item(), rel=1e-6)
        for name, parameter, gradient in zip(names, model.parameters(), right, strict=True):
            limit = 1e-5 * float(gradient.abs().max()) + 1e-9
            torch.testing.assert_close(
                parameter.grad, times * gradient, rtol=0, atol=limit, msg=name
            )


def test_a_bias_that_the_loss_does_not_read_is_not_moved():
    """A backbone of the sigmoid loss, all of it trained, by the softmax loss."""
    model = sigmoid_model()
    tokens = torch.from_numpy(model.tokenizer(["a cat", "two dogs"]).ids)
    frames = torch.zeros(2, 2, 3, FRAME_SIZE, FRAME_SIZE, dtype=torch.uint8)
    frames[1] = 255
    backward_contrastive(model, PairBatch(tokens, frames), processes=Processes())
    assert model.logit_bias.grad == 0
    assert model.backbone.vision.projection.grad.abs().sum() > 0

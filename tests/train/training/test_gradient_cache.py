"""The loss of a batch by hand, and what its gradient reaches; whole and in parts, see test_step.py."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
import torch

from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from dgl_train.model.dual_encoder import FrameMeanModel
from dgl_train.model.methods import trained_parameters
from dgl_train.training.gradient_cache import PairBatch, backward_contrastive
from dgl_train.training.losses import Logits, softmax_loss
from dgl_train.training.processes import Processes
from dgl_train.training.step import make_model
from tests.helpers.tiny import FRAME_SIZE, tiny_backbone, tiny_recipe

CAPTIONS = ["a cat", "two dogs", "an elk runs over the hill", "the bee", "a hen"]


def batch_of(size, *, has_reverse=None):
    tokens = torch.from_numpy(clip_tokenizer(24)(CAPTIONS[:size]).ids)
    generator = torch.Generator().manual_seed(0)
    shape = (size, 2, 3, FRAME_SIZE, FRAME_SIZE)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return PairBatch(tokens, frames, has_reverse)


def model_of(method, **changes):
    return make_model(tiny_recipe(method=method, **changes), tiny_backbone()).model.double()


def backward(model, batch, **options):
    return backward_contrastive(model, batch, processes=Processes(), **options)


def gradients(model):
    return {name: tensor.grad for name, tensor in trained_parameters(model).items()}


def loss_of(model, batch):
    """The loss as one graph of torch, whose gradient is right by construction."""
    captions, clips = model.encode_captions(batch.tokens), model.encode_clips(batch.frames)
    logits = model.logit_scale * captions @ clips.T
    target = torch.arange(len(logits))
    columns = torch.nn.functional.cross_entropy(logits.T, target)
    if batch.has_reverse is not None:
        backwards = model.encode_clips(batch.frames.flip(1))
        own = model.logit_scale * (captions * backwards).sum(dim=1, keepdim=True)
        own = torch.where(batch.has_reverse[:, None], own, float("-inf"))
        logits = torch.cat([logits, own], dim=1)
    return (torch.nn.functional.cross_entropy(logits, target) + columns) / 2


def test_the_loss_of_two_pairs_by_hand():
    """Similarities [[.8, .6], [0, 1]] at scale 2: rows and columns have different losses."""
    captions = torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    loss = softmax_loss(captions, torch.eye(2), Logits(torch.tensor(2.0)))
    rows = np.log1p(np.exp(1.2 - 1.6)) + np.log1p(np.exp(0 - 2))
    columns = np.log1p(np.exp(0 - 1.6)) + np.log1p(np.exp(1.2 - 2))
    assert float(loss) == pytest.approx((rows / 2 + columns / 2) / 2)


def test_a_reversed_clip_that_is_none_changes_nothing():
    torch.manual_seed(0)
    captions, clips = torch.nn.functional.normalize(torch.randn(2, 4, 8), dim=-1)
    alone = softmax_loss(captions, clips, Logits(torch.tensor(5.0)))
    without = softmax_loss(captions, clips, Logits(torch.tensor(5.0)), torch.zeros(4, 8))
    torch.testing.assert_close(without, alone)


@pytest.mark.parametrize("method", ["dgl-linear", "full"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("micro_batch_size", [0, 2])
def test_gradients_are_those_of_the_whole_batchs_loss(method, reverse, micro_batch_size):
    """Five pairs in parts of two: the last part is smaller."""
    has_reverse = torch.tensor([True, False, True, True, False]) if reverse else None
    batch, model = batch_of(5, has_reverse=has_reverse), model_of(method)
    expected = loss_of(model, batch)
    expected.backward()
    right = {name: tensor.grad.clone() for name, tensor in trained_parameters(model).items()}
    for tensor in trained_parameters(model).values():
        tensor.grad = None
    for times in (1, 2):  # they are added to
        loss = backward(model, batch, micro_batch_size=micro_batch_size)
        assert loss == pytest.approx(expected.item(), rel=1e-6)
        for name, gradient in gradients(model).items():
            limit = 1e-5 * float(right[name].abs().max()) + 1e-9
            torch.testing.assert_close(gradient, times * right[name], rtol=0, atol=limit, msg=name)


@pytest.mark.parametrize("micro_batch_size", [0, 2])
def test_a_scaled_loss_gives_scaled_gradients_and_is_told_unscaled(micro_batch_size):
    plain, scaled = model_of("full"), model_of("full")
    loss = backward(plain, batch_of(4), micro_batch_size=micro_batch_size)
    again = backward(
        scaled,
        batch_of(4),
        micro_batch_size=micro_batch_size,
        scale_loss=lambda one: 1024 * one,
    )
    assert again == loss
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(scaled)[name], 1024 * gradient, msg=name)


class OfTwo(Processes):
    """One of two processes, here two threads."""

    def __init__(self, rank, slots, meet):
        self.count, self.rank, self.slots, self.meet = 2, rank, slots, meet

    def _all(self, tensor):
        self.slots[self.rank] = tensor.detach().clone()
        self.meet.wait(timeout=60)
        both = list(self.slots)
        self.meet.wait(timeout=60)
        return both

    def gather(self, tensor):
        return torch.cat(self._all(tensor))

    def sum(self, tensor):
        tensor.copy_(torch.stack(self._all(tensor)).sum(dim=0))


@pytest.mark.parametrize("method", ["dgl-linear", "full"])
def test_two_processes_have_the_loss_and_the_gradients_of_one(method):
    """Their shares differ in what has a reverse; torchrun starts real ones in test_processes.py."""
    has_reverse = torch.tensor([True, False, False, True])
    batch, (whole, *both) = batch_of(4, has_reverse=has_reverse), [model_of(method) for _ in "abc"]
    for model in both:
        model.unread = torch.nn.Parameter(torch.zeros(1))
    loss = backward(whole, batch)
    slots, meet = [None, None], Barrier(2)

    def share(rank):
        own = slice(2 * rank, 2 * rank + 2)
        part = PairBatch(batch.tokens[own], batch.frames[own], has_reverse[own])
        return backward_contrastive(both[rank], part, processes=OfTwo(rank, slots, meet))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(share, (0, 1))) == pytest.approx([loss, loss], rel=1e-6)
    for model in both:
        assert model.unread.grad is None
        for name, gradient in gradients(whole).items():
            limit = 1e-5 * float(gradient.abs().max()) + 1e-9
            found = gradients(model)[name]
            torch.testing.assert_close(found, gradient, rtol=0, atol=limit, msg=name)


class Watched(FrameMeanModel):
    """A model that notes how many clips it encodes at once, and whether gradients are kept."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.calls = []

    def encode_clips(self, frames):
        self.calls.append((len(frames), torch.is_grad_enabled()))
        return super().encode_clips(frames)


@pytest.mark.parametrize(
    ("parts", "calls"),
    [
        ({}, [(5, True)]),
        ({"micro_batch_size": 0}, [(5, True)]),
        ({"micro_batch_size": 5}, [(5, True)]),
        ({"micro_batch_size": 9}, [(5, True)]),
        (
            {"micro_batch_size": 2},
            [(2, False), (2, False), (1, False), (2, True), (2, True), (1, True)],
        ),
    ],
)
def test_no_more_clips_than_asked_for_are_in_memory_at_once(parts, calls):
    model = Watched(tiny_backbone())
    for parameter in model.parameters():
        parameter.requires_grad_()
    backward(model, batch_of(5), **parts)
    assert model.calls == calls


def test_encoders_run_in_the_context_given_and_the_loss_does_not():
    inside = []

    @contextmanager
    def encoding():
        inside.append(True)
        yield
        inside.pop()

    class Encoder(Watched):
        def encode_clips(self, frames):
            assert inside
            return super().encode_clips(frames)

        def encode_captions(self, tokens):
            assert inside
            return super().encode_captions(tokens)

        @property
        def logit_scale(self):
            assert not inside
            return super().logit_scale

    for size in (0, 2):
        model = Encoder(tiny_backbone())
        for parameter in model.parameters():
            parameter.requires_grad_()
        backward(model, batch_of(4), micro_batch_size=size, encoding=encoding)
        assert model.calls


@pytest.mark.parametrize("micro_batch_size", [0, 2])
def test_gradients_are_left_alone_by_a_loss_that_is_not_finite(micro_batch_size):
    model = model_of("full")
    frames = batch_of(4).frames.double()
    frames[3] = torch.nan  # one clip of the batch is enough
    batch = replace(batch_of(4), frames=frames)
    assert np.isnan(backward(model, batch, micro_batch_size=micro_batch_size))
    assert set(gradients(model).values()) == {None}

"""One process of several: the gradient of its share of a batch, saved by the first; see test_processes.py."""

import sys

import torch

from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from dgl_train.model.methods import trained_parameters
from dgl_train.training.gradient_cache import PairBatch, backward_contrastive
from dgl_train.training.processes import Processes
from dgl_train.training.step import make_model
from tests.helpers.tiny import tiny_backbone, tiny_recipe

CAPTIONS = ["a cat", "two dogs", "an elk runs over the hill", "the bee"]


def gradients_of_share(method, micro_batch_size):
    """Loss and gradients after this process has trained on its part of 4 pairs, in float64."""
    processes = Processes()
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (4, 2, 3, 16, 16), dtype=torch.uint8, generator=generator)
    size = 4 // processes.count
    own = slice(processes.rank * size, (processes.rank + 1) * size)
    tokens = torch.from_numpy(clip_tokenizer(24)(CAPTIONS).ids)
    model = make_model(tiny_recipe(method=method), tiny_backbone()).model.double()
    batch = PairBatch(tokens[own], frames[own], torch.tensor([True, False, True, True])[own])
    loss = backward_contrastive(
        model, batch, processes=processes, micro_batch_size=micro_batch_size
    )
    found = {name: tensor.grad for name, tensor in trained_parameters(model).items()}
    return processes, {"loss": torch.tensor(loss), **found}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for method in ("dgl-linear", "dgl-transformer", "full"):
        processes, found = gradients_of_share(method, micro_batch_size=1)
        if processes.is_main:
            torch.save({**found, "processes": processes.count}, f"{sys.argv[1]}/{method}.pt")

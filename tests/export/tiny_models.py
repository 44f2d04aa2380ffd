"""Tuned and untuned models on the tiny backbone."""

import torch

from dgl_train.checkpoint import ModelSettings, make_prompts
from dgl_train.model import DglModel, FrameMeanModel
from dgl_train.prompts import PromptCounts

NUM_FRAMES = 3
COUNTS = {"dgl-linear": PromptCounts(3, 2, 6), "dgl-transformer": PromptCounts(2, 3, 4)}


def make_model(backbone, method):
    """A model whose prompts are as strong as trained ones."""
    if method == "zero-shot":
        return FrameMeanModel(backbone)
    torch.manual_seed(0)
    settings = ModelSettings(method, COUNTS[method], NUM_FRAMES, max_words=20)
    prompts = make_prompts(backbone, settings)
    with torch.no_grad():
        for tensor in prompts.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
    return DglModel(backbone, prompts).eval()

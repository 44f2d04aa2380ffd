"""Tuned and untuned models on the tiny backbone."""

import torch

from dgl_train.model.dual_encoder import FrameMeanModel
from dgl_train.model.methods import ModelSettings, build_model, trained_parameters
from dgl_train.model.prompts import PromptCounts
from tests.helpers.tiny import tiny_backbone

NUM_FRAMES = 3
SETTINGS = {
    "dgl-linear": ("dgl-linear", PromptCounts(3, 2, 6), {}),
    "dgl-transformer": ("dgl-transformer", PromptCounts(2, 3, 4), {}),
    "text to visual": ("dgl-linear", PromptCounts(1, 3, 2), {"projection": "text-to-visual"}),
    "frame positions": ("dgl-linear", PromptCounts(3, 2, 6), {"frame_positions": True}),
    "unshared": ("unshared", PromptCounts(2, 2, 4), {}),
    "visual prompts": ("unshared", PromptCounts(0, 4, 0), {"visual_output": "mean-frames"}),
    "no global prompts": (
        "dgl-transformer",
        PromptCounts(0, 2, 4),
        {"visual_output": "mean-frames"},
    ),
    "lora": ("lora", PromptCounts(), {}),
    "bias": ("bias", PromptCounts(), {}),
}
BOUND_TO_FRAMES = ("dgl-transformer", "no global prompts", "frame positions")


def make_tuned(name, backbone=None):
    """A tuned model whose trained tensors are as strong as trained ones."""
    method, counts, others = SETTINGS[name]
    settings = ModelSettings(method, counts, NUM_FRAMES, max_tokens=20, **others)
    torch.manual_seed(0)
    tuned = build_model(backbone or tiny_backbone(), settings)
    with torch.no_grad():
        for tensor in trained_parameters(tuned.model).values():
            tensor.add_(0.3 * torch.randn_like(tensor))
    return tuned


def make_model(backbone, name):
    """The model alone, or the untuned one."""
    return FrameMeanModel(backbone) if name == "zero-shot" else make_tuned(name, backbone).model

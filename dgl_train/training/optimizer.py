"""AdamW, with a learning rate schedule for each kind of tensor."""

import math

import torch

from dgl_train.model.dual_encoder import DualEncoder
from dgl_train.model.methods import trained_parameters
from dgl_train.recipes.recipe import Recipe


def make_optimizer(model: DualEncoder, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW, one group a trained tensor: learning rates by kind, no decay on biases and norms."""
    factors = {"global_prompts": recipe.global_lr_factor, "latent": recipe.latent_lr_factor}
    groups = [
        {
            "params": [parameter],
            "peak_lr": recipe.learning_rate * factors.get(name.rpartition(".")[2], 1.0),
            "weight_decay": recipe.weight_decay if parameter.ndim > 1 else 0.0,
        }
        for name, parameter in trained_parameters(model).items()
    ]
    return torch.optim.AdamW(groups)


def rate_factor(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Linear up to 1 over the warm-up, then a cosine that would be 0 one step after the last."""
    warmup = round(warmup_fraction * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))

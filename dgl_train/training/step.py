"""One training step: the batch's gradient, norm limit, optimizer; in full or mixed precision."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from dgl_runtime.errors import ConfigError
from dgl_train.data.datasets import CaptionedClip
from dgl_train.model.backbones.backbone import Backbone
from dgl_train.model.dual_encoder import DualEncoder
from dgl_train.model.methods import (
    PROMPT_METHODS,
    ModelSettings,
    TunedModel,
    build_model,
    trained_parameters,
)
from dgl_train.model.prompts import PromptCounts
from dgl_train.recipes.recipe import Recipe
from dgl_train.training.gradient_cache import PairBatch, backward_contrastive
from dgl_train.training.losses import choose_loss
from dgl_train.training.optimizer import make_optimizer, rate_factor
from dgl_train.training.processes import Processes

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context for a recipe's precision; with fp32 it does nothing."""
    dtype = _DTYPES[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def make_model(recipe: Recipe, backbone: Backbone) -> TunedModel:
    """An untrained model of a recipe; what it starts from depends on the seed alone.

    Raises:
        ConfigError: If settings do not go together, or the backbone cannot take such captions.
    """
    longest = backbone.facts.inputs.texts.max_tokens
    if recipe.max_tokens > longest:
        raise ConfigError(
            f"max_tokens is {recipe.max_tokens}, but backbone {backbone.facts.source.name!r} reads "
            f"captions of {longest} tokens at most. Lower max_tokens."
        )
    sees_order = recipe.method in PROMPT_METHODS and (
        recipe.method == "dgl-transformer" or recipe.frame_positions
    )
    if recipe.reversed_negatives and not sees_order:
        raise ConfigError(
            f"reversed_negatives is true, but {recipe.method} without frame_positions gives a clip "
            "and its reverse the same embedding. Set frame_positions=true, or take dgl-transformer."
        )
    settings = ModelSettings(
        recipe.method,
        PromptCounts(recipe.global_prompts, recipe.frame_prompts, recipe.caption_prompts),
        recipe.num_frames,
        recipe.max_tokens,
        recipe.visual_output,
        recipe.projection,
        recipe.frame_positions,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training_seed)
        return build_model(backbone, settings, recompute_blocks=recipe.recompute_blocks)


def make_batch(clips: Sequence[CaptionedClip], frames: Tensor, step: "TrainingStep") -> PairBatch:
    """Captioned clips with their frames, uint8 [B, F, 3, S, S], as a step takes them, on its device."""
    recipe, model, device = step.recipe, step.model, step.device
    tokens = model.tokenizer([clip.caption for clip in clips]).ids
    has_reverse = None
    if recipe.reversed_negatives:
        # An event that looks the same backwards has its own caption for the reversed one.
        has_reverse = torch.tensor([clip.reversed_caption != clip.caption for clip in clips])
        has_reverse = has_reverse.to(device)
    return PairBatch(
        torch.from_numpy(tokens).to(device), frames.to(device, non_blocking=True), has_reverse
    )


@dataclass(frozen=True)
class StepResult:
    """What a step shows: the loss before it, the gradient's norm, the learning rate at its peak's share."""

    loss: float
    grad_norm: float
    learning_rate: float


class TrainingStep:
    """The optimizer's side of a run; ``state_dict`` is all that a resumed run needs of it."""

    def __init__(
        self,
        model: DualEncoder,
        recipe: Recipe,
        *,
        total_steps: int,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.model, self.recipe, self.total_steps = model, recipe, total_steps
        self.device, self.processes = device, processes
        self.loss = choose_loss(recipe.loss, model)
        self.optimizer = make_optimizer(model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")

    def take(self, number: int, batch: PairBatch) -> StepResult:
        """Train on a batch; nothing is changed where loss or gradient is not finite.

        Args:
            number: Steps taken before, which decide the learning rates.
            batch: This process's share.
        """
        recipe = self.recipe
        factor = rate_factor(number, self.total_steps, recipe.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
        self.optimizer.zero_grad()
        loss = backward_contrastive(
            self.model,
            batch,
            processes=self.processes,
            loss=self.loss,
            micro_batch_size=recipe.micro_batch_size,
            encoding=lambda: autocast(self.device, recipe.precision),
            scale_loss=self.scaler.scale,
        )
        norm = math.nan
        if math.isfinite(loss):
            self.scaler.unscale_(self.optimizer)
            parameters = trained_parameters(self.model).values()
            norm = float(clip_grad_norm_(parameters, recipe.max_grad_norm))
            # Where losses are scaled, infinite gradients say that the scale is too large: the scaler
            # takes no step and lowers it. Elsewhere they would destroy the weights.
            if math.isfinite(norm) or self.scaler.is_enabled():
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.model.limit_temperature()
        return StepResult(loss, norm, factor * recipe.learning_rate)

    def is_sound(self, result: StepResult) -> bool:
        """Whether a step was taken, or left out for a reason that mends itself."""
        return math.isfinite(result.loss) and (
            math.isfinite(result.grad_norm) or self.scaler.is_enabled()
        )

    def state_dict(self) -> dict[str, Any]:
        """State of optimizer and loss scale."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

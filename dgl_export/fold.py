"""Fold a model into two encoders without prompts: exact algebra, no approximation.

After training, prompts do not depend on the input. So the generators are evaluated once, and:

- frame prompts and caption prompts become constant keys and values of each block, because the
  block's output at their places is overwritten before anybody reads it;
- caption prompts behind the end token never existed under a causal mask (see dgl_train.model.prompts);
- under a causal mask the start token attends only to itself, so its state is constant: one more cached key
  and value;
- tokens behind the end token reach nothing where a mask hides them: a caption is as long as the longest of
  its batch;
- the last block computes query and MLP only for what is read, where that is one token or
  the global prompts;
- pixel mean, deviation and the factor 255 disappear into the patch embedding;
- at block 0 the global prompts are constants, with their queries, keys and values;
- the query of a map pooling is constant: its keys are one vector a head, its values follow the average.

How a model folds depends on its kind, and how an encoder folds on its own: what has no blocks of ours is
exported as it is.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import nn

from dgl_export.folded_clip_encoder import ClipEncoder, FrameMeanEncoder
from dgl_export.folded_ends import Pixels
from dgl_export.folded_text_encoder import TextEncoder
from dgl_export.plain import PlainClipEncoder, PlainTextEncoder
from dgl_runtime.errors import ExportError
from dgl_train.model.backbones.towers import TextTower, VisionTower
from dgl_train.model.dgl import DglModel, own_output
from dgl_train.model.dual_encoder import DualEncoder, FrameMeanModel
from dgl_train.model.peft import has_adapters, merge_lora
from dgl_train.model.prompts import Prompts


@dataclass(frozen=True)
class FoldedModel:
    """The two encoders of a bundle."""

    text_encoder: nn.Module  # tokens int32 [B, L] -> unit-norm embeddings float32 [B, E]
    clip_encoder: nn.Module  # pixels [B, F, 3, S, S] -> the same, and frame weights [B, F]
    any_frames: bool = True  # whether clips may have any number of frames


@torch.no_grad()
def fold(model: DualEncoder, *, uint8: bool = True) -> FoldedModel:
    """Fold a tuned or untuned model.

    Args:
        model: The model; it is not changed.
        uint8: Take pixels as uint8; otherwise as floats that are normalised already.

    Returns:
        Encoders in evaluation mode, float32.

    Raises:
        ExportError: The vision tower has a single block, the model is one that does not fold, or it holds
            what is no number.
    """
    _check_numbers(model)
    folded = fold_model(model, uint8)
    folded.text_encoder.eval()
    folded.clip_encoder.eval()
    return folded


def _check_numbers(model: DualEncoder) -> None:
    for name, tensor in model.state_dict().items():
        if count := int((~tensor.isfinite()).sum()):
            raise ExportError(
                f"the model's {name} holds {count} NaN or infinite numbers of {tensor.numel()}; none may "
                "be. Export a checkpoint from before training diverged."
            )


@singledispatch
def fold_model(model: DualEncoder, uint8: bool) -> FoldedModel:
    """Fold a model of one kind; kinds register here.

    Raises:
        ExportError: No kind that folds.
    """
    raise ExportError(
        f"a {type(model).__name__} has no way to be exported. Give a model of dgl-train, or a backbone."
    )


@fold_model.register
def _(model: FrameMeanModel, uint8: bool) -> FoldedModel:
    backbone = model.backbone
    if has_adapters(backbone):
        raise ExportError(
            "the model has adapters, layers of its own that no weight can absorb; they are not "
            "exported. Train a method that folds: dgl-linear, dgl-transformer, lora."
        )
    text, vision = deepcopy(backbone.text), deepcopy(backbone.vision)
    for encoder in (text, vision):
        merge_lora(encoder)
    pixels = Pixels(backbone.mean, backbone.std, uint8)
    return FoldedModel(fold_text(text, None), fold_vision(vision, None, pixels))


@fold_model.register
def _(model: DglModel, uint8: bool) -> FoldedModel:
    wanted = own_output(model.backbone)
    if model.prompts.counts.global_prompts and model.visual_output != wanted:
        raise ExportError(
            f"the model reads clips from {model.visual_output}, which is there to be compared and "
            f"is not exported. Train with visual_output {wanted}."
        )
    backbone, prompts = model.backbone, model.prompts()
    pixels = Pixels(backbone.mean, backbone.std, uint8)
    is_bound = max(prompts.frames.shape[1] - 1, prompts.frame_positions.shape[1]) > 0
    return FoldedModel(
        fold_text(backbone.text, prompts),
        fold_vision(backbone.vision, None if model.frame_wise else prompts, pixels),
        any_frames=not is_bound,
    )


@singledispatch
def fold_text(text: nn.Module, prompts: Prompts | None) -> nn.Module:
    """Fold a text encoder; of one without blocks of ours nothing is known, and nothing folds.

    Args:
        text: The encoder.
        prompts: What it was tuned with, if anything.
    """
    _refuse(text, prompts)
    return PlainTextEncoder(text)


@fold_text.register
def _(text: TextTower, prompts: Prompts | None) -> TextEncoder:
    none = torch.empty(len(text.blocks), 0, text.width)
    return TextEncoder(text, none if prompts is None else prompts.captions)


@singledispatch
def fold_vision(vision: nn.Module, prompts: Prompts | None, pixels: Pixels) -> nn.Module:
    """Fold an image encoder; of one without blocks of ours nothing is known, and nothing folds.

    Args:
        vision: The encoder.
        prompts: What it was tuned with, if anything.
        pixels: What the graph is given.
    """
    _refuse(vision, prompts)
    return PlainClipEncoder(vision, pixels)


@fold_vision.register
def _(
    vision: VisionTower, prompts: Prompts | None, pixels: Pixels
) -> ClipEncoder | FrameMeanEncoder:
    if len(vision.blocks) < 2:
        raise ExportError(
            "the vision tower has 1 block; folding needs its first and last to be two. "
            "Give a backbone of 2 blocks or more."
        )
    if prompts is None:
        none = torch.empty(len(vision.blocks), 1, 0, vision.width)
        return FrameMeanEncoder(vision, none, pixels, unit_frames=True)
    if len(prompts.globals):
        return ClipEncoder(vision, prompts, pixels)
    return FrameMeanEncoder(vision, prompts.frames, pixels, unit_frames=False)


def _refuse(encoder: nn.Module, prompts: Prompts | None) -> None:
    if prompts is not None:
        raise ExportError(f"prompts in a {type(encoder).__name__} have no way to be folded yet.")

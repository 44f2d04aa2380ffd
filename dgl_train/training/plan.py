"""What ``dgl-train --dry-run`` shows: recipe, trained parameters, steps, and the memory they need.

The memory is measured, not guessed: one and two clips go through the real model, and what it keeps for
the backward pass is counted and multiplied.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from dgl_train.data.batches import steps_per_epoch
from dgl_train.data.datasets import CaptionedClip
from dgl_train.model.backbones.backbone import Backbone
from dgl_train.model.dual_encoder import DualEncoder
from dgl_train.model.methods import trained_parameters
from dgl_train.recipes.recipe import Recipe
from dgl_train.training.losses import Logits, choose_loss
from dgl_train.training.step import autocast, make_model

ADAMW_BYTES = 12  # of a trained float32 number: gradient and two moments


def describe_plan(
    recipe: Recipe,
    backbone: Backbone,
    *,
    clips_train: Sequence[CaptionedClip],
    clips_val: Sequence[CaptionedClip],
    processes: int = 1,
) -> str:
    """The plan as text; the backbone is used up by methods that change it."""
    model = make_model(recipe, backbone).model
    steps = steps_per_epoch(len(clips_train), recipe.batch_size)
    settings = "\n".join(f"  {key} = {value!r}" for key, value in asdict(recipe).items())
    groups = "\n".join(f"  {name:24} {count:12,}" for name, count in _groups(model).items())
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in trained_parameters(model).values())
    memory = "\n".join(
        f"  {name:24} {size / 2**30:9.2f} GiB"
        for name, size in memory_estimate(recipe, model, processes).items()
    )
    return (
        f"recipe\n{settings}\n"
        f"trained parameters\n{groups}\n  {'together':24} {trained:12,} of {total:,}\n"
        f"steps\n  {len(clips_train):,} captioned clips to train on, {len(clips_val):,} to validate on\n"
        f"  {steps:,} steps an epoch, {steps * recipe.epochs:,} in all\n"
        f"memory of one process, estimated from two clips\n{memory}"
    )


def memory_estimate(recipe: Recipe, model: DualEncoder, processes: int = 1) -> dict[str, int]:
    """Bytes of one process by what they hold; the framework's own workspace is not counted."""
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in trained_parameters(model).values())
    share = recipe.batch_size // processes
    together = min(recipe.micro_batch_size or share, share)
    one, two = (kept_bytes(recipe, model, clips) for clips in (1, 2))
    # What does not grow with the clips, 2 * one - two, is the prompt generator's.
    found = {
        "weights": weights,
        "gradients, AdamW": trained * ADAMW_BYTES,
        f"kept for {together} clips": one + (together - 1) * (two - one),
    }
    return {**found, "together": sum(found.values())}


def kept_bytes(recipe: Recipe, model: DualEncoder, clips: int) -> int:
    """Bytes that clips and their captions keep for the backward pass, weights left out."""
    size = model.inputs.frames.size
    frames = torch.zeros(clips, recipe.num_frames, 3, size, size, dtype=torch.uint8)
    texts = model.inputs.texts
    tokens = torch.ones(clips, texts.pad_to or texts.max_tokens, dtype=torch.int32)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with autocast(torch.device("cpu"), recipe.precision):
            embeddings = [model.encode_captions(tokens), model.encode_clips(frames)]
            if recipe.reversed_negatives:
                embeddings.append(model.encode_clips(frames.flip(1)))
        loss = choose_loss(recipe.loss, model)
        loss(embeddings[0], embeddings[1], Logits.of(model), *embeddings[2:])
    return sum(kept.values())


def _groups(model: DualEncoder) -> dict[str, int]:
    """Trained numbers by part: a prompt table, a generator's layer, or a tower."""
    counts: dict[str, int] = defaultdict(int)
    for name, parameter in trained_parameters(model).items():
        part = name.split(".")[1]
        counts[part] += parameter.numel()
    return dict(counts)

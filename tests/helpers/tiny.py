"""A backbone and clips so small that a training step takes milliseconds; see each function."""

import json
from dataclasses import replace

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from dgl_train.data.datasets import CaptionedClip
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.clip import Kind, clip_backbone
from dgl_train.recipes.recipe import read_recipe
from dgl_train.shapes.clips import write_mp4

FRAME_SIZE = 16
# What dgl-train is given where runs go through the command line.
SETTINGS = {
    "num_frames": 2,
    "max_tokens": 24,
    "batch_size": 4,
    "epochs": 1,
    "num_workers": 0,
    "validation_fraction": 0.25,
}
WORDS = "ant bee cat dog elk fox gnu hen".split()


def config(width=32):
    """The network for open_clip: 2 blocks in each tower, 16-px frames, 8-px patches."""
    vision = {"image_size": FRAME_SIZE, "patch_size": 8, "head_width": width // 2}
    text = {"context_length": 24, "vocab_size": 49408, "heads": 2}
    return {
        "embed_dim": width,
        "quick_gelu": True,
        "vision_cfg": {**vision, "width": width, "layers": 2},
        "text_cfg": {**text, "width": width, "layers": 2},
    }


def tiny_clip(seed=0, width=32):
    """A random CLIP of open_clip."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config(width))
        for name, tensor in model.named_parameters():
            if "resblocks" in name and tensor.ndim == 2:  # strong, so that prompts have a say
                torch.nn.init.normal_(tensor, std=tensor.shape[1] ** -0.5)
    return model


def tiny_backbone(seed=0, width=32):
    """The same network as our frozen backbone, without a file."""
    kind = Kind(vision_heads=2, text_heads=2, quick_gelu=True)
    return clip_backbone(tiny_clip(seed, width).state_dict(), BackboneSource("tiny"), kind)


def write_tiny_backbone(folder, seed=0):
    """The same network as a folder that ``--backbone`` takes; returns the folder."""
    folder.mkdir(parents=True)
    preprocess = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
    }
    published = {"model_cfg": config(), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(published))
    save_file(tiny_clip(seed).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def write_tiny_clips(folder, count=8, split="train"):
    """``count`` videos of 8 slightly different frames, with one of WORDS for a caption each."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(20, 236, (2, 2, 3)) + rng.integers(-20, 20, (8, 2, 2, 3))
        path = folder / f"{split}{number}.mp4"
        write_mp4(path, coarse.astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2))
        clips.append(CaptionedClip(path, f"the {WORDS[number % len(WORDS)]}", split=split))
    return clips


def tiny_recipe(**changes):
    """Settings for which a step takes milliseconds."""
    plain = replace(
        read_recipe("default"),
        num_frames=2,
        max_tokens=24,
        batch_size=3,
        epochs=2,
        learning_rate=0.01,
        weight_decay=0.01,
        num_workers=0,
    )
    return replace(plain, **changes)

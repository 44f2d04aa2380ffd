"""Every model that is compared, as the settings of dgl-train that make it."""

from collections.abc import Mapping

_LINEAR = ("method=dgl-linear",)
_NO_GLOBALS = ("global_prompts=0", "visual_output=mean-frames")

PAPER: Mapping[str, tuple[str, ...]] = {
    "DGL-linear": _LINEAR,
    "DGL-transformer": ("method=dgl-transformer",),
    "unshared prompts": ("method=unshared",),
    "projection text to visual": (*_LINEAR, "projection=text-to-visual"),
    "without global-local attention": (*_LINEAR, *_NO_GLOBALS),
    "output: mean of globals": (*_LINEAR, "visual_output=mean-globals"),
    "output: mean of frames": (*_LINEAR, "visual_output=mean-frames"),
    "output: mean of both": (*_LINEAR, "visual_output=mean-all"),
    "output: global and local": (*_LINEAR, "visual_output=global-local"),
    "2 frame, 4 caption prompts": (*_LINEAR, "frame_prompts=2", "caption_prompts=4"),
    "4 frame, 8 caption prompts": (*_LINEAR, "frame_prompts=4", "caption_prompts=8"),
    "1 global prompt": (*_LINEAR, "global_prompts=1"),
}
"""The paper's experiments, each a change to DGL-linear."""

ORDER: Mapping[str, tuple[str, ...]] = {
    "DGL-linear + frame positions": (*_LINEAR, "frame_positions=true"),
    "... + reversed negatives": (*_LINEAR, "frame_positions=true", "reversed_negatives=true"),
    "DGL-transformer + frame positions": ("method=dgl-transformer", "frame_positions=true"),
}
"""Ours: what the order of frames is worth. They stand in the paper's table, below it."""

VPT = ("method=unshared", *_NO_GLOBALS, "caption_prompts=0")

ALTERNATIVES: Mapping[str, tuple[str, ...]] = {
    "full": ("method=full", "learning_rate=3e-4"),
    "bias": ("method=bias",),
    "lora": ("method=lora",),
    "adapter-attention": ("method=adapter-attention",),
    "adapter-mlp": ("method=adapter-mlp",),
    "vpt": (*VPT, "learning_rate=1e-2"),
}
"""Other ways to tune the same backbone.

Learning rates are for shapes, by the best R@1 on val of seed 0 in runs of 8 to 10 epochs: full of 1e-4,
3e-4, 1e-3; bias, lora and adapter-mlp of 1e-3 and the recipe's 4e-3; vpt of 4e-3 and 1e-2.
adapter-attention has that of adapter-mlp. Where none is given, 4e-3 was best.
"""

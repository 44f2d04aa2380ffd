"""Prompt generators: one shared latent space that gives prompts to both towers (DGL, section 3.2).

A generator's output does not depend on the input, so export evaluates it once. Counts: G global prompts,
K frame prompts per frame and block, C caption prompts per block in front of the caption. The paper's
caption prompts come in two halves; the half behind the end token reaches nothing under the causal mask,
so only the front half (C = caption_prompts / 2) exists here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dgl_runtime.errors import ConfigError
from dgl_train.backbone import Backbone, Block, activate, attend_within


@dataclass(frozen=True)
class PromptCounts:
    """How many prompts there are; the paper's are 4, 4 and 8."""

    global_prompts: int = 4
    frame_prompts: int = 4
    caption_prompts: int = 8

    def __post_init__(self) -> None:
        if self.global_prompts < 1 or self.frame_prompts < 1:
            raise ConfigError(
                f"global_prompts is {self.global_prompts} and frame_prompts {self.frame_prompts}; "
                "both must be at least 1."
            )
        if self.caption_prompts < 2 or self.caption_prompts % 2:
            raise ConfigError(
                f"caption_prompts is {self.caption_prompts}; it must be an even number from 2, "
                "because half of them stand in front of the caption."
            )

    @property
    def prefix(self) -> int:
        """C, the caption prompts in front of the caption."""
        return self.caption_prompts // 2


@dataclass(frozen=True)
class Prompts:
    """What one evaluation of a generator gives the towers."""

    globals: Tensor  # [G, D] at block 0; from there on they carry on through all blocks
    frames: Tensor  # [vision blocks, F, K, D]; F is 1 where all frames share their prompts
    captions: Tensor  # [text blocks, C, D of the text tower]


class PromptGenerator(nn.Module):
    """Shared part of the generators: the global prompts and the sizes both towers ask for."""

    def __init__(self, backbone: Backbone, counts: PromptCounts) -> None:
        super().__init__()
        vision, text = backbone.vision, backbone.text
        self.counts = counts
        self.vision_blocks, self.text_blocks = len(vision.blocks), len(text.blocks)
        self.latent_blocks = max(self.vision_blocks, self.text_blocks)
        self.width, self.text_width = vision.positions.shape[1], text.positions.shape[1]
        # Uniform in the range of a patch embedding's Xavier initialisation, as in VPT.
        self.bound = math.sqrt(6 / (3 * vision.patch**2 + self.width))
        # Beside the class token, so that an untrained model reads what the backbone reads. The paper
        # starts from noise alone and spends its first epoch on getting there (docs/decisions.md).
        with torch.no_grad():
            class_token = vision.ln_pre(vision.class_embedding + vision.positions[0])
            noise = self.uniform(counts.global_prompts, self.width)
        self.global_prompts = nn.Parameter(class_token + noise)

    def uniform(self, *shape: int) -> Tensor:
        """A new prompt tensor of this shape."""
        return torch.empty(shape).uniform_(-self.bound, self.bound)

    def forward(self) -> Prompts:
        """Evaluate the generator."""
        raise TypeError(f"{type(self).__name__} is the shared part of generators, not one itself")


class LinearPrompts(PromptGenerator):
    """DGL-linear: frame prompts are the latent vectors, caption prompts their linear image.

    All frames share the frame prompts, so a model trained at one number of frames runs at any other. The
    latent space holds max(K, C) vectors a block and each side reads as many as it needs; with the paper's
    counts (K = C = 4) that is the paper's table.
    """

    def __init__(self, backbone: Backbone, counts: PromptCounts) -> None:
        super().__init__(backbone, counts)
        rows = max(counts.frame_prompts, counts.prefix)
        self.latent = nn.Parameter(self.uniform(self.latent_blocks, rows, self.width))
        self.to_caption = nn.Linear(self.width, self.text_width)

    def forward(self) -> Prompts:
        """Evaluate the generator; F is 1."""
        frames = self.latent[: self.vision_blocks, : self.counts.frame_prompts]
        captions = self.to_caption(self.latent[: self.text_blocks, : self.counts.prefix])
        return Prompts(self.global_prompts, frames[:, None], captions)


class TransformerPrompts(PromptGenerator):
    """DGL-transformer: a table of caption and frame rows that one transformer block mixes.

    Every frame has prompts of its own, so the number of frames is fixed. Each CLIP block's rows are a
    sequence of their own; all 2C caption rows take part in the mixing, though only the first C become
    caption prompts.
    """

    def __init__(self, backbone: Backbone, counts: PromptCounts, num_frames: int) -> None:
        super().__init__(backbone, counts)
        self.num_frames = num_frames
        self.caption_rows = counts.caption_prompts
        rows = self.caption_rows + counts.frame_prompts * num_frames
        heads = backbone.vision.blocks[0].heads
        self.latent = nn.Parameter(torch.randn(self.latent_blocks, rows, self.width))
        self.mixer = Block(self.width, heads, 4 * self.width, quick_gelu=True, eps=1e-5)
        nn.init.xavier_uniform_(self.mixer.qkv.weight)
        nn.init.zeros_(self.mixer.qkv.bias)
        nn.init.zeros_(self.mixer.out.bias)
        self.caption_fc = nn.Linear(self.width, 2 * self.width)
        self.caption_proj = nn.Linear(2 * self.width, self.text_width)

    def forward(self) -> Prompts:
        """Evaluate the generator; F is ``num_frames``."""
        mixed = attend_within(self.mixer, self.latent)
        captions = mixed[: self.text_blocks, : self.counts.prefix]
        captions = self.caption_proj(activate(self.caption_fc(captions), quick_gelu=True))
        frames = mixed[: self.vision_blocks, self.caption_rows :]
        frames = frames.unflatten(1, (self.num_frames, self.counts.frame_prompts))
        return Prompts(self.global_prompts, frames, captions)

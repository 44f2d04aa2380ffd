"""Prompt generators: what is learned, and how it becomes prompts for both towers (DGL, section 3.2).

The paper's two share a latent space between the towers; ``UnsharedPrompts`` is its baseline. A
generator's output does not depend on the input, so export evaluates it once. Counts: G global prompts,
K frame prompts per frame and block, C caption prompts per block. The paper's caption prompts come in two
halves, before and behind the caption. Under a causal mask the half behind the end token reaches nothing, so
that C is the front half alone; where all tokens see each other both halves are live, and C is all of them.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_runtime.errors import ConfigError
from dgl_train.model.backbones.backbone import Backbone, require_text_tower, require_towers
from dgl_train.model.backbones.block import Block, BlockShape, attend_within, quick_gelu
from dgl_train.model.backbones.towers import TextTower, VisionTower


@dataclass(frozen=True)
class PromptCounts:
    """How many prompts there are; the paper's are 4, 4 and 8. A kind with 0 does not exist."""

    global_prompts: int = 4
    frame_prompts: int = 4
    caption_prompts: int = 8

    def __post_init__(self) -> None:
        counts = (self.global_prompts, self.frame_prompts, self.caption_prompts)
        if min(counts) < 0 or self.caption_prompts % 2 or not any(counts):
            raise ConfigError(
                f"global_prompts is {counts[0]}, frame_prompts {counts[1]}, caption_prompts "
                f"{counts[2]}; none may be below 0, one must be above, and caption_prompts must be "
                "even, because half of them stand in front of the caption."
            )

    @property
    def prefix(self) -> int:
        """The caption prompts in front of the caption."""
        return self.caption_prompts // 2


@dataclass(frozen=True)
class Prompts:
    """What one evaluation of a generator gives the towers."""

    globals: Tensor  # [G, D] at block 0; from there on they carry on through all blocks
    frames: Tensor  # [vision blocks, F, K, D]; F is 1 where all frames share their prompts
    captions: Tensor  # [text blocks, C, D of the text tower]
    # [vision blocks, F, D], added to the frames' keys when global prompts read them; F is 0 without
    frame_positions: Tensor


_PATCH = 16  # pixels, of an image encoder that has no patches


def _prompted(backbone: Backbone, counts: PromptCounts) -> tuple[VisionTower | None, TextTower]:
    """The towers that get prompts; without prompts for frames the image encoder may be any.

    Raises:
        ConfigError: One that gets prompts is no tower.
    """
    if not counts.global_prompts and not counts.frame_prompts:
        text = require_text_tower(backbone, "a caption prompt")
        return (backbone.vision if isinstance(backbone.vision, VisionTower) else None), text
    alone = ""
    if isinstance(backbone.text, TextTower):
        alone = ", caption prompts alone (method=unshared global_prompts=0 frame_prompts=0)"
    return require_towers(backbone, "a prompt", f"full, bias or lora{alone}")


class PromptGenerator(nn.Module):
    """Shared part of the generators: the global prompts and the sizes both towers ask for.

    ``num_positions`` frames get a learned position each on the keys that the global prompts read;
    0 is the paper's model, and positions start at zero, so that training starts from it.
    """

    def __init__(self, backbone: Backbone, counts: PromptCounts, *, num_positions: int = 0) -> None:
        super().__init__()
        vision, text = _prompted(backbone, counts)
        self.counts = counts
        self.is_causal = text.shape.is_causal
        self.num_captions = counts.prefix if self.is_causal else counts.caption_prompts  # C
        self.vision_blocks = 0 if vision is None else len(vision.blocks)
        self.text_blocks = len(text.blocks)
        self.latent_blocks = max(self.vision_blocks, self.text_blocks)
        self.text_width = text.width
        self.reads_normal = text.shape.block.norms_last
        self.width, patch = (text.width, _PATCH) if vision is None else (vision.width, vision.patch)
        # Uniform in the range of a patch embedding's Xavier initialisation, as in VPT.
        self.bound = math.sqrt(6 / (3 * patch**2 + self.width))
        # Beside what the backbone reads, so that an untrained model reads the same. The paper
        # starts from noise alone and spends its first epoch on getting there (docs/decisions.md).
        with torch.no_grad():
            noise = self.uniform(counts.global_prompts, self.width)
            anchor = 0 if vision is None else vision.prompt_anchor()
            self.global_prompts = nn.Parameter(anchor + noise)
        self.frame_positions = nn.Parameter(
            torch.zeros(self.vision_blocks, num_positions, self.width)
        )

    def uniform(self, *shape: int) -> Tensor:
        """A new prompt tensor of this shape."""
        return torch.empty(shape).uniform_(-self.bound, self.bound)

    def as_read(self, captions: Tensor) -> Tensor:
        """Caption prompts in the scale in which the text blocks read tokens.

        Blocks with their norms in front normalise what they read, prompts like tokens. Those with their
        norms behind (BERT, and so BLIP) get tokens that are normal already; prompts as small as they start
        would hardly be read.
        """
        return F.layer_norm(captions, captions.shape[-1:]) if self.reads_normal else captions

    def forward(self) -> Prompts:
        """Evaluate the generator."""
        raise TypeError(f"{type(self).__name__} is the shared part of generators, not one itself")


class LinearPrompts(PromptGenerator):
    """DGL-linear: one tower's prompts are the latent vectors, the other's their linear image.

    In the paper the latent vectors are the frame prompts (visual to text); ``from_text`` turns the
    projection round. All frames share the frame prompts, so a model trained at one number of frames runs
    at any other. The latent space holds max(K, C) vectors a block and each side reads as many as it
    needs; with the paper's counts (K = C = 4) that is the paper's table.
    """

    def __init__(
        self,
        backbone: Backbone,
        counts: PromptCounts,
        *,
        from_text: bool = False,
        num_positions: int = 0,
    ) -> None:
        super().__init__(backbone, counts, num_positions=num_positions)
        self.from_text = from_text
        captions = self.num_captions if from_text else counts.prefix
        rows = max(counts.frame_prompts, captions)
        if from_text:
            self.latent = nn.Parameter(self.uniform(self.latent_blocks, rows, self.text_width))
            self.to_frame = nn.Linear(self.text_width, self.width)
            return
        self.latent = nn.Parameter(self.uniform(self.latent_blocks, rows, self.width))
        self.to_caption = nn.Linear(self.width, self.text_width)
        if not self.is_causal:
            self.to_caption_behind = nn.Linear(self.width, self.text_width)

    def forward(self) -> Prompts:
        """Evaluate the generator; F is 1."""
        frames = self.latent[: self.vision_blocks, : self.counts.frame_prompts]
        if self.from_text:
            frames = self.to_frame(frames)
            captions = self.latent[: self.text_blocks, : self.num_captions]
        else:
            latent = self.latent[: self.text_blocks, : self.counts.prefix]
            captions = self.to_caption(latent)
            if not self.is_causal:
                captions = torch.cat([captions, self.to_caption_behind(latent)], dim=1)
        return Prompts(
            self.global_prompts, frames[:, None], self.as_read(captions), self.frame_positions
        )


class UnsharedPrompts(PromptGenerator):
    """The paper's baseline: prompts of each tower on their own; without globals and captions, VPT."""

    def __init__(self, backbone: Backbone, counts: PromptCounts, *, num_positions: int = 0) -> None:
        super().__init__(backbone, counts, num_positions=num_positions)
        self.frames = nn.Parameter(
            self.uniform(self.vision_blocks, counts.frame_prompts, self.width)
        )
        self.captions = nn.Parameter(
            self.uniform(self.text_blocks, self.num_captions, self.text_width)
        )

    def forward(self) -> Prompts:
        """Evaluate the generator; F is 1."""
        captions = self.as_read(self.captions)
        return Prompts(self.global_prompts, self.frames[:, None], captions, self.frame_positions)


class TransformerPrompts(PromptGenerator):
    """DGL-transformer: a table of caption and frame rows that one transformer block mixes.

    Every frame has prompts of its own, so the number of frames is fixed. Each block's rows are a
    sequence of their own; the rows of both halves of the caption prompts take part in the mixing, also where
    only the front half becomes caption prompts.
    """

    def __init__(
        self,
        backbone: Backbone,
        counts: PromptCounts,
        num_frames: int,
        *,
        num_positions: int = 0,
    ) -> None:
        super().__init__(backbone, counts, num_positions=num_positions)
        self.num_frames = num_frames
        self.caption_rows = counts.caption_prompts
        rows = self.caption_rows + counts.frame_prompts * num_frames
        heads = require_towers(backbone, "a prompt").vision.blocks[0].shape.heads
        self.latent = nn.Parameter(torch.randn(self.latent_blocks, rows, self.width))
        self.mixer = Block(BlockShape(self.width, heads, 4 * self.width, "quick_gelu"))
        nn.init.xavier_uniform_(self.mixer.qkv.weight)
        nn.init.zeros_(self.mixer.qkv.bias)
        nn.init.zeros_(self.mixer.out.bias)
        self.caption_fc = nn.Linear(self.width, 2 * self.width)
        self.caption_proj = nn.Linear(2 * self.width, self.text_width)

    def forward(self) -> Prompts:
        """Evaluate the generator; F is ``num_frames``."""
        mixed = attend_within(self.mixer, self.latent)
        captions = mixed[: self.text_blocks, : self.num_captions]
        captions = self.caption_proj(quick_gelu(self.caption_fc(captions)))
        frames = mixed[: self.vision_blocks, self.caption_rows :]
        frames = frames.unflatten(1, (self.num_frames, self.counts.frame_prompts))
        return Prompts(self.global_prompts, frames, self.as_read(captions), self.frame_positions)

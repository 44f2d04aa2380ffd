"""Towers of transformer blocks into which prompts can be put: what DGL needs of a backbone.

A method that puts prompts between tokens asks a tower for its tokens before block 0, chooses in every
block who attends to whom, and hands the last tokens back to be read. What lies around a block's attention
(norms, residuals, activation) is the block's own affair: ``project_qkv`` before it, ``finish`` behind it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


class Block(nn.Module):
    """One residual attention block of CLIP; callers choose who attends to whom."""

    def __init__(
        self, width: int, heads: int, hidden: int, *, quick_gelu: bool, eps: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.quick_gelu = quick_gelu
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.fc = nn.Linear(width, hidden)
        self.proj = nn.Linear(hidden, width)

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a block's input: [..., T, D] -> three [..., H, T, D/H]."""
        q, k, v = self.qkv(self.ln_1(x)).chunk(3, dim=-1)
        return split_heads(q, self.heads), split_heads(k, self.heads), split_heads(v, self.heads)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output from its input [..., T, D] and what each head attended to [..., H, T, D/H]."""
        return self.mlp(x + self.out(merge_heads(attended)))

    def mlp(self, x: Tensor) -> Tensor:
        """The residual MLP: [..., D] -> [..., D], residual included.

        Frozen, it is computed again in the backward pass: its inner activations are the larger half of
        all, and without a gradient for its weights nothing else needs them.
        """
        return self._mlp(x) if self.fc.weight.requires_grad else recomputed(self._mlp, x)

    def _mlp(self, x: Tensor) -> Tensor:
        hidden = self.fc(self.ln_2(x))
        projected: Tensor = self.proj(activate(hidden, quick_gelu=self.quick_gelu))
        return x + projected


class Tower(nn.Module, ABC):
    """Blocks in a row, with a way in and a way out."""

    blocks: Sequence[Block]
    recompute_blocks = False
    """Keep only the inputs of blocks for the backward pass and compute the rest again: less memory, a
    third more time, the same numbers."""

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.blocks[0].out.out_features

    def run(self, attend: Callable[..., Result], *args: object) -> Result:
        """Call what passes tokens through a block, as ``recompute_blocks`` says."""
        return recomputed(attend, *args) if self.recompute_blocks else attend(*args)

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tensor:
        """Frames or token ids -> tokens before block 0, [N, T, D]."""


class VisionTower(Tower):
    """An image encoder: normalised pixels [N, 3, S, S] -> embeddings [N, E] before normalisation."""

    patch: int  # side of a patch, pixels

    @abstractmethod
    def read_out(self, tokens: Tensor) -> Tensor:
        """Tokens after the last block -> the shared space, each by itself: [..., D] -> [..., E]."""

    @abstractmethod
    def prompt_anchor(self) -> Tensor:
        """Where global prompts start, [D]: a token whose read-out is a picture's embedding."""


class TextTower(Tower):
    """A text encoder: token ids [B, L] -> embeddings [B, E] before normalisation."""

    @abstractmethod
    def read(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The texts' embeddings [B, E] from their tokens after the last block, [B, L, D]."""


def recomputed(function: Callable[..., Result], *args: object) -> Result:
    """Call a function, keeping only its arguments for the backward pass, which calls it again."""
    if not torch.is_grad_enabled():
        return function(*args)
    # Nothing here is random, so there is no state of a random generator to restore.
    result: Result = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result


def activate(hidden: Tensor, *, quick_gelu: bool) -> Tensor:
    """QuickGELU (OpenAI's weights) or exact GELU (most of open_clip's)."""
    if not quick_gelu:
        return F.gelu(hidden)
    return hidden * torch.sigmoid(1.702 * hidden)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., T, D] -> [..., H, T, D/H]."""
    return cast(Tensor, x.unflatten(-1, (heads, -1)).transpose(-2, -3))


def merge_heads(x: Tensor) -> Tensor:
    """[..., H, T, D/H] -> [..., T, D]."""
    return x.transpose(-2, -3).flatten(-2)


def attend_within(block: Block, x: Tensor, causal: bool = False) -> Tensor:
    """A plain transformer block: every token of a sequence attends to its sequence, [N, T, D]."""
    q, k, v = block.project_qkv(x)
    return block.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=causal))

"""A residual attention block, in the forms that published encoders have it.

Callers choose who attends to whom: ``project_tokens`` gives them queries, keys and values, ``finish`` takes
what was attended to. What lies around the attention (norms, residuals, MLP) is the block's own affair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


@dataclass(frozen=True)
class BlockShape:
    """Sizes and form of a block.

    Attributes:
        width: D, of a token.
        heads: H.
        hidden: Width inside the MLP.
        activation: One of ``ACTIVATIONS``.
        eps: Of every LayerNorm.
        norms_last: A norm stands behind each residual (BERT), not before attention and MLP.
        is_gated: The MLP's first layer makes twice ``hidden``; its first half, activated, is a factor on
            the second (SwiGLU).
        norms_attended: A norm stands before the attention's output projection (EVA02).
        norms_hidden: A norm stands before the MLP's second layer (EVA02).
    """

    width: int
    heads: int
    hidden: int
    activation: str = "gelu"
    eps: float = 1e-5
    norms_last: bool = False
    is_gated: bool = False
    norms_attended: bool = False
    norms_hidden: bool = False


class AroundAttention(nn.Module):
    """What a block does before and behind its attention."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        self.ln_1 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.ln_attended = _norm_or_nothing(shape.norms_attended, shape.width, shape.eps)
        self.out = nn.Linear(shape.width, shape.width)
        self.ln_2 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.fc = nn.Linear(shape.width, shape.hidden * (2 if shape.is_gated else 1))
        self.ln_hidden = _norm_or_nothing(shape.norms_hidden, shape.hidden, shape.eps)
        self.proj = nn.Linear(shape.hidden, shape.width)

    def enter(self, x: Tensor) -> Tensor:
        """A block's input as its attention reads it, [..., D] -> [..., D]."""
        return x if self.shape.norms_last else cast(Tensor, self.ln_1(x))

    def leave(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output [..., D] from its input and what was attended to, both [..., D].

        Frozen, the MLP is computed again in the backward pass: its inner activations are the larger half
        of all, and without a gradient for its weights nothing else needs them.
        """
        x = x + self.out(self.ln_attended(attended))
        if self.shape.norms_last:
            x = self.ln_1(x)
        return self._mlp(x) if self.fc.weight.requires_grad else recomputed(self._mlp, x)

    def _mlp(self, x: Tensor) -> Tensor:
        """The residual MLP, residual included."""
        activate = ACTIVATIONS[self.shape.activation]
        hidden = self.fc(x if self.shape.norms_last else self.ln_2(x))
        if self.shape.is_gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = activate(gate) * hidden
        else:
            hidden = activate(hidden)
        x = x + self.proj(self.ln_hidden(hidden))
        return cast(Tensor, self.ln_2(x)) if self.shape.norms_last else x


class Block(AroundAttention):
    """A whole block."""

    def __init__(self, shape: BlockShape, rotation: "Rotation | None" = None) -> None:
        """Args: sizes and form, and how the tokens' queries and keys are rotated, if they are."""
        super().__init__(shape)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.rotation = rotation

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of prompts, which have no place: [..., T, D] -> three [..., H, T, D/H]."""
        q, k, v = self.qkv(self.enter(x)).chunk(3, dim=-1)
        heads = self.shape.heads
        return split_heads(q, heads), split_heads(k, heads), split_heads(v, heads)

    def project_tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of all tokens of a frame or text, each rotated as its place asks."""
        q, k, v = self.project_qkv(x)
        if self.rotation is None:
            return q, k, v
        return self.rotation(q), self.rotation(k), v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output from its input [..., T, D] and what each head attended to [..., H, T, D/H]."""
        return self.leave(x, merge_heads(attended))


class Rotation(nn.Module):
    """Rotary positions: each token's query and key turned by its place (RoPE, Su et al. 2021).

    The first half of a head's numbers are the pairs' first, the second half their second. It is computed,
    not trained, and so no part of the weights.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        """Args: both of every token of a frame, [T, D/H]; 1 and 0 for a token without a place."""
        super().__init__()
        first, second = sin.chunk(2, dim=-1)  # the sign is here, not in what is computed
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", torch.cat([-first, second], dim=-1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., T, D/H] -> the same, rotated."""
        first, second = x.chunk(2, dim=-1)
        return self.turn(x, torch.cat([second, first], dim=-1))

    def turn(self, x: Tensor, swapped: Tensor) -> Tensor:
        """The same of tokens, and of these with their pairs' firsts and seconds swapped."""
        cos, sin = self.cos.to(x), self.sin.to(x)  # a product of two types takes the wider one
        return x * cos + swapped * sin


def recomputed(function: Callable[..., Result], *args: object) -> Result:
    """Call a function, keeping only its arguments for the backward pass, which calls it again."""
    if not torch.is_grad_enabled():
        return function(*args)
    # Nothing here is random, so there is no state of a random generator to restore.
    result: Result = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., T, D] -> [..., H, T, D/H]."""
    return cast(Tensor, x.unflatten(-1, (heads, -1)).transpose(-2, -3))


def merge_heads(x: Tensor) -> Tensor:
    """[..., H, T, D/H] -> [..., T, D]."""
    return x.transpose(-2, -3).flatten(-2)


def attend_within(block: Block, x: Tensor, may_see: Tensor | None = None) -> Tensor:
    """A plain transformer block, [N, T, D]: a token attends to those of its sequence that it may see.

    Args:
        block: Its weights.
        x: Tokens [N, T, D].
        may_see: bool, [T, T] or [N, 1, T or 1, T]; None: all see all.
    """
    q, k, v = block.project_tokens(x)
    return block.finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=may_see))


def _norm_or_nothing(present: bool, width: int, eps: float) -> nn.Module:
    return nn.LayerNorm(width, eps=eps) if present else nn.Identity()

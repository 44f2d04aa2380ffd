"""How a frame's embedding is made of its tokens after the last block: [..., T, D] -> [..., D]."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dgl_train.model.backbones.block import ACTIVATIONS, merge_heads, split_heads


class FirstToken(nn.Module):
    """The class token, or whatever stands first."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., T, D] -> [..., D]."""
        return tokens[..., 0, :]


class MeanToken(nn.Module):
    """All tokens alike."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., T, D] -> [..., D]."""
        return tokens.mean(dim=-2)


@dataclass(frozen=True)
class MapShape:
    """Sizes and form of a ``MapPooling``: width D, heads H, width inside the MLP, activation, eps."""

    width: int
    heads: int
    hidden: int
    activation: str
    eps: float


class MapPooling(nn.Module):
    """A learned query attends to the tokens; a residual MLP follows (Zhai et al. 2022, section 3.2)."""

    def __init__(self, shape: MapShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.latent = nn.Parameter(torch.empty(1, shape.width))
        self.q = nn.Linear(shape.width, shape.width)
        self.kv = nn.Linear(shape.width, 2 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=shape.eps)
        self.fc, self.proj = (
            nn.Linear(shape.width, shape.hidden),
            nn.Linear(shape.hidden, shape.width),
        )
        self.activate = ACTIVATIONS[shape.activation]

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., T, D] -> [..., D]."""
        q = split_heads(self.q(self.latent), self.heads)  # [H, 1, D/H]
        k, v = (split_heads(one, self.heads) for one in self.kv(tokens).chunk(2, dim=-1))
        attention = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1)
        return self.finish(merge_heads(attention @ v)[..., 0, :])

    def finish(self, attended: Tensor) -> Tensor:
        """Output projection and MLP of what the query attended to, [..., D] -> [..., D]."""
        x: Tensor = self.out(attended)
        return x + cast(Tensor, self.proj(self.activate(self.fc(self.norm(x)))))

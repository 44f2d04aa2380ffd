"""Towers of transformer blocks into which prompts can be put: what DGL needs of a backbone.

A method that puts prompts between tokens asks a tower for its tokens before block 0, chooses in every
block who attends to whom (see ``block``), and hands the last tokens back to be read.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dgl_runtime.bundle.input_spec import TextSpec
from dgl_train.model.backbones.block import (
    Block,
    BlockShape,
    Result,
    Rotation,
    attend_within,
    recomputed,
)
from dgl_train.model.backbones.pooling import FirstToken, MapPooling

PROJECTIONS = ("matrix", "linear", "none")
"""How a tower's width becomes the shared one: a matrix, one with a bias, or not at all."""


class Tower(nn.Module, ABC):
    """Blocks in a row, with a way in and a way out."""

    blocks: Sequence[Block]
    projection: nn.Parameter | None
    projection_bias: nn.Parameter | None
    recompute_blocks = False
    """Keep only the inputs of blocks for the backward pass and compute the rest again: less memory, a
    third more time, the same numbers."""

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.blocks[0].shape.width

    def run(self, attend: Callable[..., Result], *args: object) -> Result:
        """Call what passes tokens through a block, as ``recompute_blocks`` says."""
        return recomputed(attend, *args) if self.recompute_blocks else attend(*args)

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tensor:
        """Frames or token ids -> tokens before block 0, [N, T, D]."""

    def project(self, x: Tensor) -> Tensor:
        """Into the shared space, [..., D] -> [..., E]."""
        return project(x, self.projection, self.projection_bias)

    def _make(
        self,
        shape: BlockShape,
        layers: int,
        rotation: Rotation | None,
        projection: str,
        embed_dim: int,
    ) -> None:
        """New blocks, and the projection."""
        blocks = nn.ModuleList(Block(shape, rotation) for _ in range(layers))
        self.blocks = cast(Sequence[Block], blocks)  # which type checkers see through
        matrix = torch.empty(shape.width, embed_dim)
        has_matrix, has_bias = projection != "none", projection == "linear"
        self.register_parameter("projection", nn.Parameter(matrix) if has_matrix else None)
        bias = nn.Parameter(torch.empty(embed_dim)) if has_bias else None
        self.register_parameter("projection_bias", bias)


def project(x: Tensor, projection: Tensor | None, bias: Tensor | None) -> Tensor:
    """[..., D] -> [..., E], with what there is of a matrix [D, E] and a bias [E]."""
    if projection is not None:
        x = x @ projection
    return x if bias is None else x + bias


@dataclass(frozen=True)
class VisionShape:
    """Sizes and form of an image encoder.

    Attributes:
        block: Of each block.
        layers: How many blocks.
        patch: Side of a patch, pixels.
        side: Patches along a frame's side.
        embed_dim: E.
        patch_bias: Whether the patch embedding has a bias.
        has_class_token: Whether a learned token stands before the patches.
        has_ln_pre: Whether a norm stands before the blocks.
        pools_class_token: Whether the class token is among those that are pooled.
        norms_pooled: The final norm stands behind the pooling, not before it.
        projection: One of PROJECTIONS.
    """

    block: BlockShape
    layers: int
    patch: int
    side: int
    embed_dim: int
    patch_bias: bool = False
    has_class_token: bool = True
    has_ln_pre: bool = True
    pools_class_token: bool = True
    norms_pooled: bool = False
    projection: str = "matrix"

    @property
    def num_unpooled(self) -> int:
        """How many of a frame's first tokens are not pooled."""
        return int(self.has_class_token and not self.pools_class_token)


class VisionTower(Tower):
    """A vision transformer: normalised pixels [N, 3, S, S] -> embeddings [N, E] before normalisation.

    Args:
        shape: Sizes and form.
        pooling: Makes one token of several, [..., T, D] -> [..., D]; the first by default.
        stem: Pixels -> patches [N, D, side, side], where that is more than one convolution.
        rotation: See ``Block``.
    """

    class_embedding: nn.Parameter | None

    def __init__(
        self,
        shape: VisionShape,
        pooling: nn.Module | None = None,
        stem: nn.Module | None = None,
        rotation: Rotation | None = None,
    ) -> None:
        super().__init__()
        self.shape, width, eps = shape, shape.block.width, shape.block.eps
        self.patch_embedding = stem or nn.Conv2d(
            3, width, shape.patch, stride=shape.patch, bias=shape.patch_bias
        )
        token = nn.Parameter(torch.empty(width)) if shape.has_class_token else None
        self.register_parameter("class_embedding", token)
        self.positions = nn.Parameter(torch.empty(shape.side**2 + shape.has_class_token, width))
        self.ln_pre = nn.LayerNorm(width, eps=eps) if shape.has_ln_pre else nn.Identity()
        self._make(shape.block, shape.layers, rotation, shape.projection, shape.embed_dim)
        self.ln_post = nn.LayerNorm(width, eps=eps)
        self.pooling = pooling or FirstToken()

    @property
    def patch(self) -> int:
        """Side of a patch, pixels."""
        return self.shape.patch

    @property
    def frame_size(self) -> int:
        """S, the side of a frame in pixels."""
        return self.shape.side * self.shape.patch

    @property
    def pools_by_map(self) -> bool:
        """Whether a learned query chooses among a frame's tokens what is read."""
        return isinstance(self.pooling, MapPooling)

    def forward(self, frames: Tensor) -> Tensor:
        """Every frame by itself."""
        x = self.embed(frames)
        for block in self.blocks:
            x = self.run(attend_within, block, x)
        return self.read(x)

    def embed(self, inputs: Tensor) -> Tensor:
        """Normalised pixels [N, 3, S, S] -> tokens before block 0, [N, T, D], a class token first."""
        tokens = self.patch_embedding(inputs).flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            class_token = self.class_embedding.expand(len(inputs), 1, -1)
            tokens = torch.cat([class_token, tokens], dim=1)
        return cast(Tensor, self.ln_pre(tokens + self.positions))

    def read(self, tokens: Tensor) -> Tensor:
        """The embedding of a frame from all its tokens after the last block: [..., T, D] -> [..., E]."""
        return self.read_pooled(tokens[..., self.shape.num_unpooled :, :])

    def read_pooled(self, tokens: Tensor) -> Tensor:
        """Final norm, pooling and projection of tokens: [..., T, D] -> [..., E]."""
        if self.shape.norms_pooled:
            return self.project(self.ln_post(self.pooling(tokens)))
        return self.project(self.pooling(self.ln_post(tokens)))

    def prompt_anchor(self) -> Tensor:
        """Where global prompts start, [D]: the class token before block 0.

        Without one, the mean of a grey frame's tokens.
        """
        if self.class_embedding is not None:
            return cast(Tensor, self.ln_pre(self.class_embedding + self.positions[0]))
        size = self.frame_size
        return self.embed(self.positions.new_zeros(1, 3, size, size))[0].mean(dim=0)


@dataclass(frozen=True)
class TextShape:
    """Sizes and form of a text encoder.

    Attributes:
        block: Of each block.
        layers: How many blocks.
        vocabulary: How many tokens there are.
        context: Tokens of the longest text.
        embed_dim: E.
        is_causal: Whether a token sees only what stands before it.
        masks_padding: Whether padding is hidden from all tokens.
        norms_embedded: Whether a norm stands before the blocks (BERT) in place of one behind them.
        projection: One of PROJECTIONS.
    """

    block: BlockShape
    layers: int
    vocabulary: int
    context: int
    embed_dim: int
    is_causal: bool = True
    masks_padding: bool = False
    norms_embedded: bool = False
    projection: str = "matrix"


class TextTower(Tower):
    """A text transformer: token ids [B, L] -> embeddings [B, E] before normalisation, read at one token.

    Args:
        shape: Sizes and form.
        texts: Which token is read, and the ids of end and padding.
    """

    def __init__(self, shape: TextShape, texts: TextSpec) -> None:
        super().__init__()
        self.shape, self.texts = shape, texts
        width, eps = shape.block.width, shape.block.eps
        self.token_embedding = nn.Embedding(shape.vocabulary, width)
        self.positions = nn.Parameter(torch.empty(shape.context, width))
        self._make(shape.block, shape.layers, None, shape.projection, shape.embed_dim)
        norm = nn.LayerNorm(width, eps=eps)
        self.ln_embedded = norm if shape.norms_embedded else nn.Identity()
        self.ln_final = nn.Identity() if shape.norms_embedded else norm

    def forward(self, tokens: Tensor) -> Tensor:
        """Every token sees what ``may_see`` says."""
        x, may_see = self.embed(tokens), self.may_see(tokens)
        for block in self.blocks:
            x = self.run(attend_within, block, x, may_see)
        return self.read(x, tokens)

    def embed(self, inputs: Tensor) -> Tensor:
        """Token ids [B, L] -> tokens with positions, [B, L, D]."""
        embedded = self.token_embedding(inputs) + self.positions[: inputs.shape[1]]
        return cast(Tensor, self.ln_embedded(embedded))

    def may_see(self, tokens: Tensor) -> Tensor | None:
        """Which tokens (columns) a token (row) sees: bool [L, L] or [B, 1, 1, L]; None: all see all."""
        if self.shape.is_causal:
            length = tokens.shape[1]
            return torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        if self.shape.masks_padding:
            return (tokens != self.texts.pad_id)[:, None, None]
        return None

    def read(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The texts' embeddings [B, E] from their tokens after the last block, [B, L, D]."""
        return self.project(self.ln_final(state_read(state, tokens, self.texts)))


def ends(tokens: Tensor, end_id: int) -> Tensor:
    """Where each text ends: token ids [B, L] -> positions [B] of its first end token."""
    return (tokens == end_id).int().argmax(dim=-1)


def state_read(state: Tensor, tokens: Tensor, texts: TextSpec) -> Tensor:
    """Of each text's tokens [B, L, D] the one that is read, [B, D]."""
    if texts.read != "end":
        return state[:, 0 if texts.read == "first" else -1]
    rows = torch.arange(state.shape[0], device=state.device)  # len() would fix it in an export
    return state[rows, ends(tokens, -1 if texts.end_id is None else texts.end_id)]

"""A folded text tower: constants where the start token and caption prompts were.

Axes: B batch, L caption tokens, S constant keys of a caption (start token and caption prompts), C caption
prompts, H heads, D width, E embedding.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_export.folded_block import FoldedBlock, attend, pick_rows
from dgl_train.model.backbones.clip import ClipText, ends
from dgl_train.model.backbones.towers import attend_within


class TextEncoder(nn.Module):
    """Folded text tower: tokens int32 [B, L] -> unit-norm embeddings float32 [B, E]."""

    blocks: Sequence[FoldedBlock]
    token_embedding: Tensor
    positions: Tensor
    projection: Tensor

    def __init__(self, text: ClipText, prompts: Tensor, start_token: int) -> None:
        """Args: the text tower, caption prompts [blocks, C, D], the start token's id."""
        super().__init__()
        self.register_buffer("token_embedding", text.token_embedding.weight.detach())
        self.register_buffer("positions", text.positions[1:].clone())
        self.ln_final = text.ln_final
        self.register_buffer("projection", text.projection.clone())
        start = text.token_embedding.weight[start_token][None] + text.positions[:1]
        folded = []
        for block, prompt in zip(text.blocks, prompts, strict=True):
            folded.append(FoldedBlock(block, torch.cat([start, prompt])))
            start = attend_within(block, start[None])[0]
        self.blocks = cast(Sequence[FoldedBlock], nn.ModuleList(folded))

    def forward(self, tokens: Tensor) -> Tensor:
        """The start token's column is dropped: it is part of the constants."""
        pieces = tokens[:, 1:].long()
        batch, length = pieces.shape
        end = ends(pieces)
        words = pick_rows(self.token_embedding, pieces.flatten()).unflatten(0, (batch, length))
        x = (words + self.positions[:length]).flatten(0, 1)
        mask = self.causal_mask(length, x.device)
        for block in self.blocks[:-1]:
            normal = block.ln_1(x)
            q = block.split(block.q(normal), batch)
            x = block.finish(x, block.merge(attend(q, *self.see(block, normal, batch), mask)))
        block = self.blocks[-1]
        normal = block.ln_1(x)
        rows = torch.arange(batch, device=x.device) * length + end
        q = block.split(block.q(pick_rows(normal, rows)), batch)
        mask = pick_rows(mask, end)[:, None, None]
        attended = attend(q, *self.see(block, normal, batch), mask)
        x = block.finish(pick_rows(x, rows), block.merge(attended))
        return F.normalize(self.ln_final(x) @ self.projection, dim=-1)

    def see(self, block: FoldedBlock, normal: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Constant and own keys and values of a block, each [B, H, S + L, D/H]."""
        keys, values = block.split(block.k(normal), batch), block.split(block.v(normal), batch)
        return (
            torch.cat([block.keys.expand(batch, -1, -1, -1), keys], dim=2),
            torch.cat([block.values.expand(batch, -1, -1, -1), values], dim=2),
        )

    def causal_mask(self, length: int, device: torch.device) -> Tensor:
        """Additive mask [L, S + L]: a piece sees the constants, itself and the pieces before it."""
        constants = self.blocks[0].keys.shape[1]
        query = torch.arange(length, device=device)[:, None]
        key = torch.arange(constants + length, device=device)[None] - constants
        return torch.where(key > query, float("-inf"), 0.0)

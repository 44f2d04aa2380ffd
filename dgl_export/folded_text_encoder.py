"""A folded text tower: constants where caption prompts were and, under a causal mask, the start token.

Axes: B batch, L caption tokens, S constant keys of a caption (start token and caption prompts), C caption
prompts, H heads, D width, E embedding.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_export.folded_block import FoldedBlock, attend, pick_rows
from dgl_train.model.backbones.block import attend_within
from dgl_train.model.backbones.towers import TextTower, ends, project


class TextEncoder(nn.Module):
    """Folded text tower: tokens int32 [B, L] -> unit-norm embeddings float32 [B, E].

    Under a causal mask the start token sees itself alone: its state is a constant of each block, and its
    column of the tokens is dropped. Padding behind the text is seen by nobody there, hidden by a mask where
    the tower hides it, and seen where the tower was trained so.
    """

    blocks: Sequence[FoldedBlock]
    token_embedding: Tensor
    positions: Tensor
    projection: Tensor | None
    projection_bias: Tensor | None

    def __init__(self, text: TextTower, prompts: Tensor) -> None:
        """Args: the text tower, caption prompts [blocks, C, D]."""
        super().__init__()
        self.shape, self.texts = text.shape, text.texts
        starts = text.shape.is_causal and self.texts.start_id is not None
        self.dropped = int(starts)
        self.register_buffer("token_embedding", text.token_embedding.weight.detach())
        self.register_buffer("positions", text.positions[self.dropped :].clone())
        self.ln_embedded, self.ln_final = text.ln_embedded, text.ln_final
        for name in ("projection", "projection_bias"):
            tensor = getattr(text, name)
            self.register_buffer(name, None if tensor is None else tensor.detach().clone())
        start = text.embed(torch.tensor([[self.texts.start_id or 0]]))[0, : self.dropped]
        folded = []
        for block, prompt in zip(text.blocks, prompts, strict=True):
            folded.append(FoldedBlock(block, torch.cat([start, prompt])))
            if starts:
                start = attend_within(block, start[None])[0]
        self.blocks = cast(Sequence[FoldedBlock], nn.ModuleList(folded))

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed captions."""
        pieces = tokens[:, self.dropped :].long()
        batch, length = pieces.shape
        words = pick_rows(self.token_embedding, pieces.flatten()).unflatten(0, (batch, length))
        x = self.ln_embedded(words + self.positions[:length]).flatten(0, 1)
        mask = self.mask(pieces)
        for block in self.blocks[:-1]:
            normal = block.enter(x)
            q = block.split(block.q(normal), batch)
            x = block.leave(x, block.merge(attend(q, *self.see(block, normal, batch), mask)))
        block = self.blocks[-1]
        normal = block.enter(x)
        read = self.positions_read(pieces)
        rows = torch.arange(batch, device=x.device) * length + read
        q = block.split(block.q(pick_rows(normal, rows)), batch)
        if mask is not None and self.shape.is_causal:
            mask = pick_rows(mask, read)[:, None, None]
        attended = attend(q, *self.see(block, normal, batch), mask)
        x = self.ln_final(block.leave(pick_rows(x, rows), block.merge(attended)))
        return F.normalize(project(x, self.projection, self.projection_bias), dim=-1)

    def positions_read(self, pieces: Tensor) -> Tensor:
        """Which token of each text is read, [B]."""
        if self.texts.read == "end":
            return ends(pieces, -1 if self.texts.end_id is None else self.texts.end_id)
        first = torch.zeros_like(pieces[:, 0])
        return first if self.texts.read == "first" else first + pieces.shape[1] - 1

    def see(self, block: FoldedBlock, normal: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Constant and own keys and values of a block, each [B, H, S + L, D/H]."""
        keys, values = block.split(block.k(normal), batch), block.split(block.v(normal), batch)
        return (
            torch.cat([block.keys.expand(batch, -1, -1, -1), keys], dim=2),
            torch.cat([block.values.expand(batch, -1, -1, -1), values], dim=2),
        )

    def mask(self, pieces: Tensor) -> Tensor | None:
        """Additive mask [L, S + L] or [B, 1, 1, S + L], or none where all tokens see each other."""
        constants, length = self.blocks[0].keys.shape[1], pieces.shape[1]
        if self.shape.is_causal:  # a piece sees the constants, itself and the pieces before it
            query = torch.arange(length, device=pieces.device)[:, None]
            key = torch.arange(constants + length, device=pieces.device)[None] - constants
            return torch.where(key > query, float("-inf"), 0.0)
        if not self.shape.masks_padding:
            return None
        of_pieces = torch.where(pieces == self.texts.pad_id, float("-inf"), 0.0)
        of_constants = torch.zeros_like(of_pieces[:, :1]).expand(-1, constants)
        return torch.cat([of_constants, of_pieces], dim=1)[:, None, None]

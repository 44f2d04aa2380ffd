"""Folded vision towers: constants where global prompts and frame prompts were.

Axes: B batch, F frames, T tokens of a frame (its patches, behind a class token if there is one), G global
prompts, K frame prompts, M = G + K + T keys of a frame, H heads, D width, E embedding.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_export.folded_block import FoldedBlock, attend, pick_rows
from dgl_export.folded_ends import PatchEmbedding, Pixels, ReadOut
from dgl_train.model.backbones.block import split_heads
from dgl_train.model.backbones.towers import VisionTower
from dgl_train.model.prompts import Prompts


class ClipEncoder(nn.Module):
    """Folded vision tower: frames [B, F, 3, S, S] -> embeddings [B, E], frame weights [B, F].

    The global prompts of all clips and then the tokens of all their frames are the rows of one matrix.
    """

    blocks: Sequence[FoldedBlock]
    globals: Tensor
    global_q: Tensor
    global_k: Tensor
    global_v: Tensor
    is_global: Tensor
    positions: Tensor

    def __init__(self, vision: VisionTower, prompts: Prompts, pixels: Pixels) -> None:
        """Args: the vision tower, its evaluated prompts, what its pixels are."""
        super().__init__()
        self.embed = PatchEmbedding(vision, pixels)
        folded = [FoldedBlock(*pair) for pair in zip(vision.blocks, prompts.frames, strict=True)]
        self.blocks = cast(Sequence[FoldedBlock], nn.ModuleList(folded))
        self.read = ReadOut(vision)
        self.reads_all, self.unpooled = vision.pools_by_map, vision.shape.num_unpooled
        self.register_buffer("globals", prompts.globals.clone())
        first = folded[0]
        normal = first.enter(prompts.globals)
        for name, layer in (("global_q", first.q), ("global_k", first.k), ("global_v", first.v)):
            self.register_buffer(name, layer(normal))  # [G, D]
        self.num_globals = prompts.globals.shape[0]
        keys_of_a_frame = self.num_globals + prompts.frames.shape[2] + len(vision.positions)
        is_global = torch.arange(keys_of_a_frame) < self.num_globals
        self.register_buffer("is_global", is_global.float())
        positions = [
            split_heads(of_block, block.shape.heads)
            for of_block, block in zip(prompts.frame_positions, folded, strict=True)
        ]
        self.register_buffer("positions", torch.stack(positions))  # [blocks, H, F or 0, D/H]

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips and tell how much each frame counted."""
        batch, num_frames = frames.shape[:2]
        x = self.embed(frames.float().flatten(0, 1)).flatten(0, 1)
        block = self.blocks[0]
        normal = block.enter(x)
        q = self.put_in_front(self.global_q, block.q(normal), batch)
        k = self.put_in_front(self.global_k, block.k(normal), batch)
        v = self.put_in_front(self.global_v, block.v(normal), batch)
        x = self.put_in_front(self.globals, x, batch)
        attended, _ = self.attend_all(0, (q, k, v), (batch, num_frames))
        x = block.leave(x, attended)
        for number in range(1, len(self.blocks) - 1):
            x, _ = self.pass_through(number, x, (batch, num_frames))
        sizes = batch, num_frames
        tokens, attention = (
            self.all_tokens(x, sizes) if self.reads_all else self.globals_alone(x, sizes)
        )
        mass = attention[:, :, 0, :, self.num_globals :].mean(dim=1).sum(dim=-1)  # [B, F]
        return F.normalize(self.read(tokens), dim=-1), mass / mass.sum(dim=-1, keepdim=True)

    def pass_through(self, number: int, x: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """All rows through a block, and how the global prompts attended in it."""
        block = self.blocks[number]
        normal = block.enter(x)
        qkv = block.q(normal), block.k(normal), block.v(normal)
        attended, attention = self.attend_all(number, qkv, sizes)
        return block.leave(x, attended), attention

    def put_in_front(self, constant: Tensor, x: Tensor, batch: int) -> Tensor:
        """[G, D] of every clip before the rows of all frames: [B*F*T, D] -> [B*G + B*F*T, D]."""
        return torch.cat([constant.expand(batch, -1, -1).flatten(0, 1), x])

    def attend_all(
        self, number: int, qkv: tuple[Tensor, Tensor, Tensor], sizes: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Global and local attention of a block: rows q, k, v and result [B*G + B*F*T, D].

        Beside the result, the global prompts' attention; see ``attend_globally``.
        """
        block = self.blocks[number]
        q, k, v = qkv
        num_globals = sizes[0] * self.num_globals
        keys, values = self.see(block, k, v, sizes)
        global_q = block.split(q[:num_globals], sizes[0])
        frame_q = block.split_frames(q[num_globals:], *sizes)
        globally, attention = self.attend_globally(global_q, keys, values, self.positions[number])
        locally = attend(frame_q, keys, values)
        return torch.cat([block.merge(globally), block.merge(locally)]), attention

    def see(
        self, block: FoldedBlock, k: Tensor, v: Tensor, sizes: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values a frame's tokens see: rows [B*G + B*F*T, D] -> [B, F, H, M, D/H]."""
        num_globals, each = sizes[0] * self.num_globals, (*sizes, -1, -1, -1)

        def seen(x: Tensor, prompts: Tensor, frames: Tensor) -> Tensor:
            globals_ = block.split(x[:num_globals], sizes[0], 1)
            return torch.cat([globals_.expand(each), prompts.expand(each), frames], dim=3)

        return (
            seen(k, block.keys, block.split_frames(k[num_globals:], *sizes)),
            seen(v, block.values, block.split(v[num_globals:], *sizes)),
        )

    def attend_globally(
        self, q: Tensor, keys: Tensor, values: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Global prompts over all frames at once, reading the keys laid out for the frames.

        That layout holds the global prompts' own keys once a frame; log F off their logits makes
        the F copies count as one.

        Args:
            q: Queries [B, H, Q, D/H].
            keys: [B, F, H, M, D/H].
            values: [B, F, H, M, D/H].
            positions: Of frames, for their own keys, [H, F or 0, D/H].

        Returns:
            Attended values [B, H, Q, D/H] and attention [B, H, Q, F, M].
        """
        num_frames, per_frame = keys.shape[1], keys.shape[3]
        copies = torch.ones_like(keys[:1, :, 0, 0, 0]).sum()  # F, in a form that ONNX keeps free
        logits = q[:, None] @ keys.transpose(-1, -2) - copies.log() * self.is_global
        if positions.shape[1]:
            by_frame = (q @ positions.transpose(-1, -2)).permute(0, 3, 1, 2)  # [B, F, H, Q]
            logits = logits + by_frame[..., None] * (1 - self.is_global)
        attention = logits.permute(0, 2, 3, 1, 4).flatten(3).softmax(dim=-1)
        attention = attention.unflatten(3, (num_frames, per_frame))
        return (attention.permute(0, 3, 1, 2, 4) @ values).sum(dim=1), attention

    def globals_alone(self, x: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The last block, for the global prompts that are read: [B, 1 or G, D], and their attention."""
        block = self.blocks[-1]
        normal = block.enter(x)
        keys, values = self.see(block, block.k(normal), block.v(normal), sizes)
        rows = torch.arange(sizes[0], device=x.device) * self.num_globals
        if not self.read.reads_first:
            each = torch.arange(self.num_globals, device=x.device)
            rows = (rows[:, None] + each).flatten()
        q = block.split(block.q(pick_rows(normal, rows)), sizes[0])
        attended, attention = self.attend_globally(q, keys, values, self.positions[-1])
        x = block.leave(pick_rows(x, rows), block.merge(attended))
        return cast(Tensor, x.unflatten(0, (sizes[0], -1))), attention

    def all_tokens(self, x: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The last block: global prompts and then all frames' tokens that are pooled, [B, G + F*T, D]."""
        x, attention = self.pass_through(len(self.blocks) - 1, x, sizes)
        num_globals = sizes[0] * self.num_globals
        globals_ = x[:num_globals].unflatten(0, (sizes[0], -1))
        of_frames = cast(Tensor, x[num_globals:].unflatten(0, (*sizes, -1)))
        pooled = of_frames[:, :, self.unpooled :].flatten(1, 2)
        return torch.cat([globals_, pooled], dim=1), attention


class FrameMeanEncoder(nn.Module):
    """Folded vision tower without global prompts: the mean of its frames' embeddings."""

    blocks: Sequence[FoldedBlock]

    def __init__(
        self, vision: VisionTower, prompts: Tensor, pixels: Pixels, *, unit_frames: bool
    ) -> None:
        """Args: vision tower, frame prompts [blocks, F or 1, K, D], pixels, unit norm for each frame."""
        super().__init__()
        self.unit_frames = unit_frames
        self.embed = PatchEmbedding(vision, pixels)
        folded = [FoldedBlock(*pair) for pair in zip(vision.blocks, prompts, strict=True)]
        self.blocks = cast(Sequence[FoldedBlock], nn.ModuleList(folded))
        self.read = ReadOut(vision)
        self.unpooled = vision.shape.num_unpooled

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips; every frame counts the same."""
        sizes = frames.shape[:2]
        tokens = self.embed(frames.float().flatten(0, 1))
        per_frame = tokens.shape[1]
        x = tokens.flatten(0, 1)
        for block in self.blocks[:-1]:
            normal = block.enter(x)
            q = block.split_frames(block.q(normal), *sizes)
            x = block.leave(x, block.merge(attend(q, *self.see(block, normal, sizes))))
        by_frame = self.read(self.last_tokens(x, per_frame, sizes)).unflatten(0, sizes)  # [B, F, E]
        if self.unit_frames:
            by_frame = F.normalize(by_frame, dim=-1)
        weights = torch.ones_like(by_frame[..., 0])
        embedding = F.normalize(by_frame.mean(dim=1), dim=-1)
        return embedding, weights / weights.sum(dim=-1, keepdim=True)

    def last_tokens(self, x: Tensor, per_frame: int, sizes: Sequence[int]) -> Tensor:
        """The last block, for what is read of each frame: rows [B*F*T, D] -> [B*F, 1 or T, D]."""
        block = self.blocks[-1]
        normal = block.enter(x)
        keys, values = self.see(block, normal, sizes)
        if self.read.reads_first:  # the class token, which no rotation moves
            first = block.split(block.q(_first_tokens(normal, per_frame)), *sizes)
            attended = block.merge(attend(first, keys, values))
            return block.leave(_first_tokens(x, per_frame), attended)[:, None]
        q = block.split_frames(block.q(normal), *sizes)
        x = block.leave(x, block.merge(attend(q, keys, values)))
        return cast(Tensor, x.unflatten(0, (-1, per_frame)))[:, self.unpooled :]

    def see(
        self, block: FoldedBlock, normal: Tensor, sizes: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values a frame's tokens see, each [B, F, H, K + T, D/H]."""
        keys = block.split_frames(block.k(normal), *sizes)
        values = block.split(block.v(normal), *sizes)
        if not block.keys.shape[-2]:
            return keys, values
        each = (*sizes, -1, -1, -1)
        return (
            torch.cat([block.keys.expand(each), keys], dim=3),
            torch.cat([block.values.expand(each), values], dim=3),
        )


def _first_tokens(rows: Tensor, per_frame: int) -> Tensor:
    """Rows of all tokens of all frames [B*F*T, D] -> the first of each frame [B*F, D]."""
    return cast(Tensor, rows.unflatten(0, (-1, per_frame)))[:, 0]

"""Fold a model into two encoders without prompts: exact algebra, no approximation.

After training, prompts do not depend on the input. So the generators are evaluated once, and:

- frame prompts and caption prompts become constant keys and values of each block, because the
  block's output at their places is overwritten before anybody reads it;
- caption prompts behind the end token never existed here (see dgl_train.model.prompts);
- the start token attends only to itself, so its state is constant: one more cached key and value;
- tokens behind the end token reach nothing: a caption is as long as the longest of its batch;
- only one token is read out, so the last block computes query and MLP for that token alone;
- pixel mean, deviation and the factor 255 disappear into the patch embedding;
- at block 0 the global prompts are constants, with their queries, keys and values.

Axes: B batch, F frames, T tokens of a frame (class token and patches), G global prompts, K frame
prompts, M = G + K + T keys of a frame, L caption tokens, S constant keys of a caption (start token
and caption prompts), H heads.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_export.folded_block import FoldedBlock, attend, pick_rows
from dgl_runtime.errors import ExportError
from dgl_train.model.backbone import Backbone, attend_within, split_heads
from dgl_train.model.dgl import DglModel, RetrievalModel
from dgl_train.model.peft import has_adapters, merge_lora
from dgl_train.model.prompts import Prompts


@dataclass(frozen=True)
class FoldedModel:
    """The two encoders of a bundle."""

    captions: "CaptionEncoder"
    clips: "ClipEncoder | FrameMeanEncoder"


@torch.no_grad()
def fold(model: RetrievalModel, *, start_token: int, uint8: bool = True) -> FoldedModel:
    """Fold a tuned or untuned model.

    Args:
        model: The model; it is not changed.
        start_token: Id of the token every caption starts with.
        uint8: Take pixels as uint8; otherwise as floats that are normalised already.

    Returns:
        Encoders in evaluation mode, float32.

    Raises:
        ExportError: The vision tower has a single block, the model is one that does not fold, or it holds
            what is no number.
    """
    backbone = model.backbone
    _check(model)
    if not isinstance(model, DglModel):
        backbone = deepcopy(backbone)
        merge_lora(backbone)
        no_captions = torch.empty(len(backbone.text.blocks), 0, backbone.text.positions.shape[1])
        no_frames = torch.empty(
            len(backbone.vision.blocks), 1, 0, backbone.vision.positions.shape[1]
        )
        captions = CaptionEncoder(backbone, start_token, no_captions)
        means = FrameMeanEncoder(backbone, no_frames, unit_frames=True, uint8=uint8)
        return FoldedModel(captions.eval(), means.eval())
    prompts = model.prompts()
    captions = CaptionEncoder(backbone, start_token, prompts.captions)
    clips: ClipEncoder | FrameMeanEncoder
    if model.prompts.counts.global_prompts:
        clips = ClipEncoder(backbone, prompts, uint8=uint8)
    else:
        clips = FrameMeanEncoder(backbone, prompts.frames, unit_frames=False, uint8=uint8)
    return FoldedModel(captions.eval(), clips.eval())


def _check(model: RetrievalModel) -> None:
    for name, tensor in model.state_dict().items():
        if count := int((~tensor.isfinite()).sum()):
            raise ExportError(
                f"the model's {name} holds {count} NaN or infinite numbers of {tensor.numel()}; none may "
                "be. Export a checkpoint from before training diverged."
            )
    if len(model.backbone.vision.blocks) < 2:
        raise ExportError(
            "the vision tower has 1 block; folding needs its first and last to be two. "
            "Give a backbone of 2 blocks or more."
        )
    if has_adapters(model.backbone):
        raise ExportError(
            "the model has adapters, layers of its own that no weight can absorb; they are not "
            "exported. Train a method that folds: dgl-linear, dgl-transformer, lora."
        )
    if isinstance(model, DglModel) and model.prompts.counts.global_prompts:
        if model.visual_output != "global-prompt":
            raise ExportError(
                f"the model reads clips from {model.visual_output}, which is there to be compared and "
                "is not exported. Train with visual_output global-prompt."
            )


class CaptionEncoder(nn.Module):
    """Folded text tower: tokens int32 [B, L] -> unit-norm embeddings float32 [B, E]."""

    blocks: Sequence[FoldedBlock]
    token_embedding: Tensor
    positions: Tensor
    projection: Tensor

    def __init__(self, backbone: Backbone, start_token: int, prompts: Tensor) -> None:
        """Args: the backbone, the start token's id, caption prompts [blocks, C, D]."""
        super().__init__()
        text = backbone.text
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
        end = pieces.argmax(dim=1)
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


class PatchEmbedding(nn.Module):
    """Pixels to tokens; with ``uint8`` the pixel statistics are part of the weights."""

    weight: Tensor
    positions: Tensor
    class_token: Tensor

    def __init__(self, backbone: Backbone, *, uint8: bool) -> None:
        super().__init__()
        vision = backbone.vision
        weight = vision.patch_embedding.weight
        bias = torch.zeros(weight.shape[0])
        if uint8:
            bias = -(weight * (backbone.mean / backbone.std)).sum(dim=(1, 2, 3))
            weight = weight / (255 * backbone.std)
        self.patch = vision.patch
        self.register_buffer("weight", weight.clone())
        self.register_buffer("positions", vision.positions[1:] + bias)
        self.register_buffer("class_token", (vision.class_embedding + vision.positions[0]).clone())
        self.ln_pre = vision.ln_pre

    def forward(self, frames: Tensor) -> Tensor:
        """Frames as floats [N, 3, S, S] -> [N, T, D]."""
        patches = F.conv2d(frames, self.weight, stride=self.patch)
        patches = patches.flatten(2).transpose(1, 2) + self.positions
        class_token = self.class_token.expand(patches.shape[0], 1, -1)
        tokens: Tensor = self.ln_pre(torch.cat([class_token, patches], dim=1))
        return tokens


class ClipEncoder(nn.Module):
    """Folded vision tower: frames [B, F, 3, S, S] -> embeddings [B, E], frame weights [B, F].

    The global prompts of all clips and then the tokens of all their frames are the rows of one matrix.
    """

    blocks: Sequence[FoldedBlock]
    projection: Tensor
    globals: Tensor
    global_q: Tensor
    global_k: Tensor
    global_v: Tensor
    is_global: Tensor
    positions: Tensor

    def __init__(self, backbone: Backbone, prompts: Prompts, *, uint8: bool) -> None:
        """Args: backbone, its evaluated prompts, pixels as uint8 or as normalised floats."""
        super().__init__()
        vision = backbone.vision
        self.embed = PatchEmbedding(backbone, uint8=uint8)
        folded = [FoldedBlock(*pair) for pair in zip(vision.blocks, prompts.frames, strict=True)]
        self.blocks = cast(Sequence[FoldedBlock], nn.ModuleList(folded))
        self.ln_post = vision.ln_post
        self.register_buffer("projection", vision.projection.clone())
        self.register_buffer("globals", prompts.globals.clone())
        first = folded[0]
        normal = first.ln_1(prompts.globals)
        for name, layer in (("global_q", first.q), ("global_k", first.k), ("global_v", first.v)):
            self.register_buffer(name, layer(normal))  # [G, D]
        self.num_globals = prompts.globals.shape[0]
        keys_of_a_frame = self.num_globals + prompts.frames.shape[2] + vision.positions.shape[0]
        is_global = torch.arange(keys_of_a_frame) < self.num_globals
        self.register_buffer("is_global", is_global.float())
        positions = [
            split_heads(of_block, block.heads)
            for of_block, block in zip(prompts.frame_positions, folded, strict=True)
        ]
        self.register_buffer("positions", torch.stack(positions))  # [blocks, H, F or 0, D/H]

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips and tell how much each frame counted."""
        batch, num_frames = frames.shape[:2]
        x = self.embed(frames.float().flatten(0, 1)).flatten(0, 1)
        block = self.blocks[0]
        normal = block.ln_1(x)
        q = self.put_in_front(self.global_q, block.q(normal), batch)
        k = self.put_in_front(self.global_k, block.k(normal), batch)
        v = self.put_in_front(self.global_v, block.v(normal), batch)
        x = self.put_in_front(self.globals, x, batch)
        x = block.finish(x, self.attend_all(0, (q, k, v), (batch, num_frames)))
        for number, block in enumerate(self.blocks[1:-1], start=1):
            normal = block.ln_1(x)
            qkv = block.q(normal), block.k(normal), block.v(normal)
            x = block.finish(x, self.attend_all(number, qkv, (batch, num_frames)))
        return self.read_out(x, (batch, num_frames))

    def put_in_front(self, constant: Tensor, x: Tensor, batch: int) -> Tensor:
        """[G, D] of every clip before the rows of all frames: [B*F*T, D] -> [B*G + B*F*T, D]."""
        return torch.cat([constant.expand(batch, -1, -1).flatten(0, 1), x])

    def attend_all(
        self, number: int, qkv: tuple[Tensor, Tensor, Tensor], sizes: tuple[int, int]
    ) -> Tensor:
        """Global and local attention of a block: rows q, k, v and result [B*G + B*F*T, D]."""
        block = self.blocks[number]
        q, k, v = qkv
        num_globals = sizes[0] * self.num_globals
        keys = self.see(block, k, block.keys, sizes)
        values = self.see(block, v, block.values, sizes)
        global_q, frame_q = (
            block.split(q[:num_globals], sizes[0]),
            block.split(q[num_globals:], *sizes),
        )
        globally, _ = self.attend_globally(global_q, keys, values, self.positions[number])
        return torch.cat([block.merge(globally), block.merge(attend(frame_q, keys, values))])

    def see(self, block: FoldedBlock, x: Tensor, prompts: Tensor, sizes: tuple[int, int]) -> Tensor:
        """Keys (or values) a frame's tokens see: rows [B*G + B*F*T, D] -> [B, F, H, M, D/H]."""
        num_globals = sizes[0] * self.num_globals
        globals_ = block.split(x[:num_globals], sizes[0], 1)
        frames = block.split(x[num_globals:], *sizes)
        each = (*sizes, -1, -1, -1)
        return torch.cat([globals_.expand(each), prompts.expand(each), frames], dim=3)

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

    def read_out(self, x: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The last block, for global prompt 0 of each clip alone."""
        block = self.blocks[-1]
        normal = block.ln_1(x)
        keys = self.see(block, block.k(normal), block.keys, sizes)
        values = self.see(block, block.v(normal), block.values, sizes)
        rows = torch.arange(sizes[0], device=x.device) * self.num_globals
        q = block.split(block.q(pick_rows(normal, rows)), sizes[0])
        attended, attention = self.attend_globally(q, keys, values, self.positions[-1])
        x = self.ln_post(block.finish(pick_rows(x, rows), block.merge(attended)))
        mass = attention[:, :, 0, :, self.num_globals :].mean(dim=1).sum(dim=-1)  # [B, F]
        return F.normalize(x @ self.projection, dim=-1), mass / mass.sum(dim=-1, keepdim=True)


class FrameMeanEncoder(nn.Module):
    """Folded vision tower without global prompts: the mean of its frames' class tokens."""

    blocks: Sequence[FoldedBlock]
    projection: Tensor

    def __init__(
        self, backbone: Backbone, prompts: Tensor, *, unit_frames: bool, uint8: bool
    ) -> None:
        """Args: backbone, frame prompts [blocks, F or 1, K, D], whether each frame's is unit-norm."""
        super().__init__()
        vision = backbone.vision
        self.unit_frames = unit_frames
        self.embed = PatchEmbedding(backbone, uint8=uint8)
        folded = [FoldedBlock(*pair) for pair in zip(vision.blocks, prompts, strict=True)]
        self.blocks = cast(Sequence[FoldedBlock], nn.ModuleList(folded))
        self.ln_post = vision.ln_post
        self.register_buffer("projection", vision.projection.clone())

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips; every frame counts the same."""
        sizes = frames.shape[:2]
        tokens = self.embed(frames.float().flatten(0, 1))
        per_frame = tokens.shape[1]
        x = tokens.flatten(0, 1)
        for block in self.blocks[:-1]:
            normal = block.ln_1(x)
            q = block.split(block.q(normal), *sizes)
            x = block.finish(x, block.merge(attend(q, *self.see(block, normal, sizes))))
        block = self.blocks[-1]
        normal = block.ln_1(x)
        q = block.split(block.q(_class_tokens(normal, per_frame)), *sizes)
        attended = attend(q, *self.see(block, normal, sizes))
        x = self.ln_post(block.finish(_class_tokens(x, per_frame), block.merge(attended)))
        by_frame = (x @ self.projection).unflatten(0, sizes)  # [B, F, E]
        if self.unit_frames:
            by_frame = F.normalize(by_frame, dim=-1)
        weights = torch.ones_like(by_frame[..., 0])
        embedding = F.normalize(by_frame.mean(dim=1), dim=-1)
        return embedding, weights / weights.sum(dim=-1, keepdim=True)

    def see(
        self, block: FoldedBlock, normal: Tensor, sizes: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values a frame's tokens see, each [B, F, H, K + T, D/H]."""
        keys, values = block.split(block.k(normal), *sizes), block.split(block.v(normal), *sizes)
        if not block.keys.shape[-2]:
            return keys, values
        each = (*sizes, -1, -1, -1)
        return (
            torch.cat([block.keys.expand(each), keys], dim=3),
            torch.cat([block.values.expand(each), values], dim=3),
        )


def _class_tokens(rows: Tensor, per_frame: int) -> Tensor:
    """Rows of all tokens of all frames [B*F*T, D] -> those of the class tokens [B*F, D]."""
    return cast(Tensor, rows.unflatten(0, (-1, per_frame)))[:, 0]

"""Fold a model into two encoders without prompts: exact algebra, no approximation.

After training, prompts do not depend on the input. So the generators are evaluated once, and:

- frame prompts and caption prompts become constant keys and values of each block, because the
  block's output at their places is overwritten before anybody reads it;
- caption prompts behind the end token never existed here (see dgl_train.prompts);
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
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_runtime.errors import ExportError
from dgl_train.backbone import Backbone, Block, activate, attend_within, merge_heads, split_heads
from dgl_train.model import DglModel, RetrievalModel
from dgl_train.prompts import Prompts


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
        ExportError: The vision tower has a single block.
    """
    backbone = model.backbone
    if len(backbone.vision.blocks) < 2:
        raise ExportError(
            "the vision tower has 1 block; folding needs its first and last to be two. "
            "Give a backbone of 2 blocks or more."
        )
    if isinstance(model, DglModel):
        prompts = model.prompts()
        captions = CaptionEncoder(backbone, start_token, prompts.captions)
        clips: ClipEncoder | FrameMeanEncoder = ClipEncoder(backbone, prompts, uint8=uint8)
    else:
        width = backbone.text.positions.shape[1]
        none = torch.empty(len(backbone.text.blocks), 0, width)
        captions = CaptionEncoder(backbone, start_token, none)
        clips = FrameMeanEncoder(backbone, uint8=uint8)
    return FoldedModel(captions.eval(), clips.eval())


class FoldedBlock(nn.Module):
    """A block with the attention scale in its queries, and its prompts' constant keys and values."""

    keys: Tensor
    values: Tensor

    def __init__(self, block: Block, prompts: Tensor) -> None:
        """Args: the block, and the tokens [..., K, D] of which only keys and values are left."""
        super().__init__()
        width = block.out.in_features
        self.heads, self.quick_gelu = block.heads, block.quick_gelu
        weights, biases = block.qkv.weight.chunk(3), block.qkv.bias.chunk(3)
        scale = (width // block.heads) ** -0.5
        self.q = _linear(weights[0] * scale, biases[0] * scale)
        self.k, self.v = _linear(weights[1], biases[1]), _linear(weights[2], biases[2])
        self.ln_1, self.out = block.ln_1, block.out
        self.ln_2, self.fc, self.proj = block.ln_2, block.fc, block.proj
        normal = self.ln_1(prompts)
        self.register_buffer("keys", self.split(self.k(normal)).contiguous())  # [..., H, K, D/H]
        self.register_buffer("values", self.split(self.v(normal)).contiguous())

    def split(self, x: Tensor) -> Tensor:
        """[..., T, D] -> [..., H, T, D/H]."""
        return split_heads(x, self.heads)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual, output projection and MLP: both [..., D] -> [..., D]."""
        x = x + linear(self.out, attended)
        hidden = activate(linear(self.fc, self.ln_2(x)), quick_gelu=self.quick_gelu)
        return x + linear(self.proj, hidden)


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
        x = pick_rows(self.token_embedding, pieces.flatten()).unflatten(0, (batch, length))
        x = x + self.positions[:length]
        mask = self.causal_mask(length, x.device)
        for block in self.blocks[:-1]:
            normal = block.ln_1(x)
            attended = attend(block.split(linear(block.q, normal)), *self.see(block, normal), mask)
            x = block.finish(x, merge_heads(attended))
        block = self.blocks[-1]
        normal = block.ln_1(x)
        rows = torch.arange(batch, device=x.device) * length + end
        q = block.split(linear(block.q, pick_rows(normal.flatten(0, 1), rows))[:, None])
        attended = attend(q, *self.see(block, normal), pick_rows(mask, end)[:, None, None])
        x = block.finish(pick_rows(x.flatten(0, 1), rows), merge_heads(attended)[:, 0])
        return F.normalize(self.ln_final(x) @ self.projection, dim=-1)

    def see(self, block: FoldedBlock, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Constant and own keys and values of a block, each [B, H, S + L, D/H]."""
        batch = (normal.shape[0], -1, -1, -1)
        keys, values = block.split(linear(block.k, normal)), block.split(linear(block.v, normal))
        return (
            torch.cat([block.keys.expand(batch), keys], dim=2),
            torch.cat([block.values.expand(batch), values], dim=2),
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
        """[N, 3, S, S] -> [N, T, D]."""
        patches = F.conv2d(frames.float(), self.weight, stride=self.patch)
        patches = patches.flatten(2).transpose(1, 2) + self.positions
        class_token = self.class_token.expand(patches.shape[0], 1, -1)
        tokens: Tensor = self.ln_pre(torch.cat([class_token, patches], dim=1))
        return tokens


class ClipEncoder(nn.Module):
    """Folded vision tower: frames [B, F, 3, S, S] -> embeddings [B, E], frame weights [B, F].

    The tokens of all frames and the global prompts run through every linear layer as one matrix,
    [globals, frame 0, frame 1, ...] along the token axis.
    """

    blocks: Sequence[FoldedBlock]
    projection: Tensor
    globals: Tensor
    global_q: Tensor
    global_k: Tensor
    global_v: Tensor
    is_global: Tensor

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

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips and tell how much each frame counted."""
        batch, num_frames = frames.shape[:2]
        x = self.embed(frames.flatten(0, 1)).unflatten(0, (batch, num_frames)).flatten(1, 2)
        block = self.blocks[0]
        normal = block.ln_1(x)
        q = self.put_in_front(self.global_q, linear(block.q, normal))
        k = self.put_in_front(self.global_k, linear(block.k, normal))
        v = self.put_in_front(self.global_v, linear(block.v, normal))
        x = self.put_in_front(self.globals, x)
        x = block.finish(x, self.attend_all(block, (q, k, v), num_frames))
        for block in self.blocks[1:-1]:
            normal = block.ln_1(x)
            qkv = linear(block.q, normal), linear(block.k, normal), linear(block.v, normal)
            x = block.finish(x, self.attend_all(block, qkv, num_frames))
        return self.read_out(x, num_frames)

    def put_in_front(self, constant: Tensor, x: Tensor) -> Tensor:
        """[G, D] and [B, F*T, D] -> [B, G + F*T, D]."""
        return torch.cat([constant.expand(x.shape[0], -1, -1), x], dim=1)

    def attend_all(
        self, block: FoldedBlock, qkv: tuple[Tensor, Tensor, Tensor], num_frames: int
    ) -> Tensor:
        """Global and local attention of a block, each of q, k, v and the result [B, G + F*T, D]."""
        q, k, v = qkv
        keys = self.see(block, k, block.keys, num_frames)
        values = self.see(block, v, block.values, num_frames)
        global_q = block.split(q[:, : self.num_globals])
        frame_q = block.split(q[:, self.num_globals :].unflatten(1, (num_frames, -1)))
        globally, _ = self.attend_globally(global_q, keys, values)
        locally = merge_heads(attend(frame_q, keys, values))  # [B, F, T, D]
        return torch.cat([merge_heads(globally), locally.flatten(1, 2)], dim=1)

    def see(self, block: FoldedBlock, x: Tensor, prompts: Tensor, num_frames: int) -> Tensor:
        """Keys (or values) a frame's tokens see: [B, G + F*T, D] -> [B, F, H, M, D/H]."""
        globals_ = block.split(x[:, None, : self.num_globals])
        frames = block.split(x[:, self.num_globals :].unflatten(1, (num_frames, -1)))
        each = (x.shape[0], num_frames, -1, -1, -1)
        return torch.cat([globals_.expand(each), prompts.expand(each), frames], dim=3)

    def attend_globally(self, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Global prompts over all frames at once, reading the keys laid out for the frames.

        That layout holds the global prompts' own keys once a frame; log F off their logits makes
        the F copies count as one.

        Args:
            q: Queries [B, H, Q, D/H].
            keys: [B, F, H, M, D/H].
            values: [B, F, H, M, D/H].

        Returns:
            Attended values [B, H, Q, D/H] and attention [B, H, Q, F, M].
        """
        num_frames, per_frame = keys.shape[1], keys.shape[3]
        copies = torch.ones_like(keys[:1, :, 0, 0, 0]).sum()  # F, in a form that ONNX keeps free
        logits = q[:, None] @ keys.transpose(-1, -2) - copies.log() * self.is_global
        attention = logits.permute(0, 2, 3, 1, 4).flatten(3).softmax(dim=-1)
        attention = attention.unflatten(3, (num_frames, per_frame))
        return (attention.permute(0, 3, 1, 2, 4) @ values).sum(dim=1), attention

    def read_out(self, x: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        """The last block, for global prompt 0 alone."""
        block = self.blocks[-1]
        normal = block.ln_1(x)
        keys = self.see(block, linear(block.k, normal), block.keys, num_frames)
        values = self.see(block, linear(block.v, normal), block.values, num_frames)
        q = block.split(linear(block.q, normal[:, :1]))
        attended, attention = self.attend_globally(q, keys, values)
        x = self.ln_post(block.finish(x[:, 0], merge_heads(attended)[:, 0]))
        mass = attention[:, :, 0, :, self.num_globals :].mean(dim=1).sum(dim=-1)  # [B, F]
        return F.normalize(x @ self.projection, dim=-1), mass / mass.sum(dim=-1, keepdim=True)


class FrameMeanEncoder(nn.Module):
    """Folded vision tower of the untuned backbone: the mean of its frames' unit embeddings."""

    blocks: Sequence[FoldedBlock]
    projection: Tensor

    def __init__(self, backbone: Backbone, *, uint8: bool) -> None:
        super().__init__()
        vision = backbone.vision
        self.embed = PatchEmbedding(backbone, uint8=uint8)
        none = torch.empty(0, vision.positions.shape[1])
        folded = nn.ModuleList(FoldedBlock(block, none) for block in vision.blocks)
        self.blocks = cast(Sequence[FoldedBlock], folded)
        self.ln_post = vision.ln_post
        self.register_buffer("projection", vision.projection.clone())

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips; every frame counts the same."""
        batch, num_frames = frames.shape[:2]
        x = self.embed(frames.flatten(0, 1))
        for block in self.blocks[:-1]:
            normal = block.ln_1(x)
            q, k, v = (block.split(linear(layer, normal)) for layer in (block.q, block.k, block.v))
            x = block.finish(x, merge_heads(attend(q, k, v)))
        block = self.blocks[-1]
        normal = block.ln_1(x)
        q, k = block.split(linear(block.q, normal[:, :1])), block.split(linear(block.k, normal))
        attended = attend(q, k, block.split(linear(block.v, normal)))
        x = self.ln_post(block.finish(x[:, 0], merge_heads(attended)[:, 0]))
        by_frame = F.normalize(x @ self.projection, dim=-1).unflatten(0, (batch, num_frames))
        weights = torch.ones_like(by_frame[..., 0])
        embedding = F.normalize(by_frame.mean(dim=1), dim=-1)
        return embedding, weights / weights.sum(dim=-1, keepdim=True)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention with the scale already in the queries; the mask is additive."""
    logits = q @ k.transpose(-1, -2)
    if mask is not None:
        logits = logits + mask
    return logits.softmax(dim=-1) @ v


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer on all tokens as one matrix: ONNX gets a Gemm that adds the bias as it goes."""
    flat: Tensor = layer(x.flatten(0, -2))
    return cast(Tensor, flat.unflatten(0, x.shape[:-1]))


def pick_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a matrix, written so that ONNX gets one plain Gather."""
    return torch.index_select(table, 0, rows)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer

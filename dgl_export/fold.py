"""Fold a model into two encoders without prompts: exact algebra, no approximation.

After training, prompts do not depend on the input. So the generators are evaluated once, and:

- frame prompts and caption prompts become constant keys and values of each block, because the block's
  output at their places is overwritten before anybody reads it;
- caption prompts behind the end token never existed here (see dgl_train.prompts);
- the start token attends only to itself, so its state is constant: one more cached key and value;
- tokens behind the end token reach nothing: a caption is as long as the longest of its batch;
- only one token is read out, so the last block computes query and MLP for that token alone;
- pixel mean, deviation and the factor 255 disappear into the patch embedding;
- at block 0 the global prompts are constants, with their queries, keys and values.

Axes: B batch, F frames, T tokens of a frame (class token and patches), G global prompts, K frame prompts,
M = G + K + T keys of a frame, L caption tokens, S cached keys (start token and caption prompts), H heads.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """
    backbone = model.backbone
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
    """A block's weights with the attention scale folded into the queries."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        width = block.out.in_features
        self.heads, self.quick_gelu = block.heads, block.quick_gelu
        weights, biases = block.qkv.weight.chunk(3), block.qkv.bias.chunk(3)
        scale = (width // block.heads) ** -0.5
        self.q = _linear(weights[0] * scale, biases[0] * scale)
        self.k, self.v = _linear(weights[1], biases[1]), _linear(weights[2], biases[2])
        self.ln_1, self.out = block.ln_1, block.out
        self.ln_2, self.fc, self.proj = block.ln_2, block.fc, block.proj

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual, output projection and MLP: both [..., D] -> [..., D]."""
        x = x + self.out(attended)
        hidden = activate(self.fc(self.ln_2(x)), quick_gelu=self.quick_gelu)
        return x + self.proj(hidden)


class CaptionEncoder(nn.Module):
    """Folded text tower: tokens int32 [B, L] -> unit-norm embeddings float32 [B, E]."""

    def __init__(self, backbone: Backbone, start_token: int, prompts: Tensor) -> None:
        """Args: the backbone, the start token's id, caption prompts [blocks, C, D]."""
        super().__init__()
        text = backbone.text
        self.register_buffer("token_embedding", text.token_embedding.weight.detach())
        self.register_buffer("positions", text.positions[1:].clone())
        self.ln_final = text.ln_final
        self.register_buffer("projection", text.projection.clone())
        self.blocks = nn.ModuleList(FoldedBlock(block) for block in text.blocks)
        self.cached = 1 + prompts.shape[1]
        start = text.token_embedding.weight[start_token][None] + text.positions[:1]
        for index, (block, prompt) in enumerate(zip(text.blocks, prompts, strict=True)):
            _, keys, values = block.project_qkv(torch.cat([start, prompt]))  # [H, S, D/H]
            self.register_buffer(f"keys_{index}", keys.contiguous())
            self.register_buffer(f"values_{index}", values.contiguous())
            start = attend_within(block, start[None])[0]

    def forward(self, tokens: Tensor) -> Tensor:
        """The start token's column is dropped: it is part of the cache."""
        pieces = tokens[:, 1:].long()
        batch, length = pieces.shape
        end = pieces.argmax(dim=1)
        x = pick_rows(self.token_embedding, pieces.flatten()).unflatten(0, (batch, length))
        x = x + self.positions[:length]
        mask = self.causal_mask(length, x.device)
        for index, block in enumerate(self.blocks[:-1]):
            normal = block.ln_1(x)
            q = split_heads(block.q(normal), block.heads)
            attended = attend(q, *self.keys_and_values(index, block, normal), mask)
            x = block.finish(x, merge_heads(attended))
        block, index = self.blocks[-1], len(self.blocks) - 1
        normal = block.ln_1(x)
        rows = torch.arange(batch, device=x.device) * length + end
        q = split_heads(block.q(pick_rows(normal.flatten(0, 1), rows))[:, None], block.heads)
        mask = pick_rows(mask, end)[:, None, None]
        attended = attend(q, *self.keys_and_values(index, block, normal), mask)
        x = block.finish(pick_rows(x.flatten(0, 1), rows), merge_heads(attended)[:, 0])
        return F.normalize(self.ln_final(x) @ self.projection, dim=-1)

    def keys_and_values(self, index: int, block: nn.Module, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Cached and own keys and values of a block, each [B, H, S + L, D/H]."""
        keys, values = getattr(self, f"keys_{index}"), getattr(self, f"values_{index}")
        cached = (normal.shape[0], -1, -1, -1)
        k, v = split_heads(block.k(normal), block.heads), split_heads(block.v(normal), block.heads)
        return torch.cat([keys.expand(cached), k], dim=2), torch.cat([values.expand(cached), v], dim=2)

    def causal_mask(self, length: int, device: torch.device) -> Tensor:
        """Additive mask [L, S + L]: a piece sees the cache, itself and the pieces before it."""
        query = torch.arange(length, device=device)[:, None]
        key = torch.arange(self.cached + length, device=device)[None] - self.cached
        return torch.where(key > query, float("-inf"), 0.0)


class PatchEmbedding(nn.Module):
    """Pixels to tokens; with ``uint8`` the pixel statistics are part of the weights."""

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
    """Folded vision tower: frames [B, F, 3, S, S] -> unit-norm embeddings [B, E], frame weights [B, F].

    The tokens of all frames and the global prompts run through every linear layer as one matrix,
    [globals, frame 0, frame 1, ...] along the token axis.
    """

    def __init__(self, backbone: Backbone, prompts: Prompts, *, uint8: bool) -> None:
        """Args: the backbone, its evaluated prompts, and whether pixels come as uint8 or normalised."""
        super().__init__()
        vision = backbone.vision
        self.embed = PatchEmbedding(backbone, uint8=uint8)
        self.blocks = nn.ModuleList(FoldedBlock(block) for block in vision.blocks)
        self.ln_post = vision.ln_post
        self.register_buffer("projection", vision.projection.clone())
        self.num_globals = prompts.globals.shape[0]
        self.register_buffer("globals", prompts.globals.clone())
        first = self.blocks[0]
        normal = first.ln_1(prompts.globals)
        for name, layer in (("global_q", first.q), ("global_k", first.k), ("global_v", first.v)):
            self.register_buffer(name, layer(normal))  # [G, D]
        for index, (block, prompt) in enumerate(zip(vision.blocks, prompts.frames, strict=True)):
            _, keys, values = block.project_qkv(prompt)  # [F or 1, H, K, D/H]
            self.register_buffer(f"keys_{index}", keys.contiguous())
            self.register_buffer(f"values_{index}", values.contiguous())
        keys_of_a_frame = self.num_globals + prompts.frames.shape[2] + vision.positions.shape[0]
        is_global = torch.arange(keys_of_a_frame) < self.num_globals
        self.register_buffer("is_global", is_global.float())

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips and tell how much each frame counted."""
        batch, num_frames = frames.shape[:2]
        x = self.embed(frames.flatten(0, 1)).unflatten(0, (batch, num_frames)).flatten(1, 2)
        block, normal = self.blocks[0], self.blocks[0].ln_1(x)
        q, k, v = (
            torch.cat([constant.expand(batch, -1, -1), layer(normal)], dim=1)
            for constant, layer in (
                (self.global_q, block.q),
                (self.global_k, block.k),
                (self.global_v, block.v),
            )
        )
        x = torch.cat([self.globals.expand(batch, -1, -1), x], dim=1)
        x = block.finish(x, self.attend_all(0, q, k, v, num_frames))
        for index, block in enumerate(self.blocks[1:-1], start=1):
            normal = block.ln_1(x)
            q, k, v = block.q(normal), block.k(normal), block.v(normal)
            x = block.finish(x, self.attend_all(index, q, k, v, num_frames))
        return self.read_out(x, num_frames)

    def attend_all(
        self, index: int, q: Tensor, k: Tensor, v: Tensor, num_frames: int
    ) -> Tensor:
        """Global and local attention of one block, all [B, G + F*T, D]."""
        heads = self.blocks[index].heads
        keys = self.keys_of_frames(k, getattr(self, f"keys_{index}"), heads, num_frames)
        values = self.keys_of_frames(v, getattr(self, f"values_{index}"), heads, num_frames)
        global_q = split_heads(q[:, : self.num_globals], heads)
        frame_q = split_heads(q[:, self.num_globals :].unflatten(1, (num_frames, -1)), heads)
        globally, _ = self.attend_globally(global_q, keys, values)
        locally = merge_heads(attend(frame_q, keys, values))  # [B, F, T, D]
        return torch.cat([merge_heads(globally), locally.flatten(1, 2)], dim=1)

    def keys_of_frames(self, x: Tensor, prompts: Tensor, heads: int, num_frames: int) -> Tensor:
        """Keys (or values) that a frame's tokens see: [B, G + F*T, D] -> [B, F, H, M, D/H]."""
        batch = x.shape[0]
        globals_ = split_heads(x[:, None, : self.num_globals], heads)
        frames = split_heads(x[:, self.num_globals :].unflatten(1, (num_frames, -1)), heads)
        return torch.cat(
            [
                globals_.expand(-1, num_frames, -1, -1, -1),
                prompts.expand(batch, num_frames, -1, -1, -1),
                frames,
            ],
            dim=3,
        )

    def attend_globally(self, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Global prompts over all frames at once, reading the keys laid out for the frames.

        That layout holds the global prompts' own keys once a frame; log F off their logits makes the F
        copies count as one.

        Args:
            q: Queries [B, H, Q, D/H].
            keys: [B, F, H, M, D/H].
            values: [B, F, H, M, D/H].

        Returns:
            Attended values [B, H, Q, D/H] and attention [B, H, Q, F, M].
        """
        num_frames, per_frame = keys.shape[1], keys.shape[3]
        copies = torch.ones_like(keys[:1, :, 0, 0, 0]).sum().log()
        logits = q[:, None] @ keys.transpose(-1, -2) - copies * self.is_global  # [B, F, H, Q, M]
        attention = logits.permute(0, 2, 3, 1, 4).flatten(3).softmax(dim=-1)
        attention = attention.unflatten(3, (num_frames, per_frame))
        return (attention.permute(0, 3, 1, 2, 4) @ values).sum(dim=1), attention

    def read_out(self, x: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        """The last block, for global prompt 0 alone."""
        block, index = self.blocks[-1], len(self.blocks) - 1
        normal = block.ln_1(x)
        keys = self.keys_of_frames(block.k(normal), getattr(self, f"keys_{index}"), block.heads, num_frames)
        values = self.keys_of_frames(
            block.v(normal), getattr(self, f"values_{index}"), block.heads, num_frames
        )
        q = split_heads(block.q(normal[:, :1]), block.heads)
        attended, attention = self.attend_globally(q, keys, values)
        embedding = self.ln_post(block.finish(x[:, 0], merge_heads(attended)[:, 0])) @ self.projection
        mass = attention[:, :, 0, :, self.num_globals :].mean(dim=1).sum(dim=-1)  # [B, F]
        return F.normalize(embedding, dim=-1), mass / mass.sum(dim=-1, keepdim=True)


class FrameMeanEncoder(nn.Module):
    """Folded vision tower of the untuned backbone: the mean of its frames' unit embeddings."""

    def __init__(self, backbone: Backbone, *, uint8: bool) -> None:
        super().__init__()
        vision = backbone.vision
        self.embed = PatchEmbedding(backbone, uint8=uint8)
        self.blocks = nn.ModuleList(FoldedBlock(block) for block in vision.blocks)
        self.ln_post = vision.ln_post
        self.register_buffer("projection", vision.projection.clone())

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips; every frame counts the same."""
        batch, num_frames = frames.shape[:2]
        x = self.embed(frames.flatten(0, 1))
        for block in self.blocks[:-1]:
            normal = block.ln_1(x)
            q, k, v = (split_heads(layer(normal), block.heads) for layer in (block.q, block.k, block.v))
            x = block.finish(x, merge_heads(attend(q, k, v)))
        block = self.blocks[-1]
        normal = block.ln_1(x)
        k, v = split_heads(block.k(normal), block.heads), split_heads(block.v(normal), block.heads)
        attended = merge_heads(attend(split_heads(block.q(normal[:, :1]), block.heads), k, v))[:, 0]
        by_frame = F.normalize(self.ln_post(block.finish(x[:, 0], attended)) @ self.projection, dim=-1)
        mean = by_frame.unflatten(0, (batch, num_frames)).mean(dim=1)
        weights = torch.ones_like(by_frame[:, 0]).unflatten(0, (batch, num_frames))
        return F.normalize(mean, dim=-1), weights / weights.sum(dim=-1, keepdim=True)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention with the scale already in the queries; the mask is additive."""
    logits = q @ k.transpose(-1, -2)
    if mask is not None:
        logits = logits + mask
    return logits.softmax(dim=-1) @ v


def pick_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a matrix, written so that ONNX gets one plain Gather."""
    return torch.index_select(table, 0, rows)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer

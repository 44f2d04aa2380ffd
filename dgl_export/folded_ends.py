"""The two ends of a folded vision tower: pixels to tokens, and tokens to embeddings."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dgl_train.model.backbones.block import split_heads
from dgl_train.model.backbones.pooling import FirstToken, MapPooling
from dgl_train.model.backbones.towers import VisionTower, project


@dataclass(frozen=True)
class Pixels:
    """What a clip encoder is given: uint8 or floats already normalised, with the statistics [3, 1, 1]."""

    mean: Tensor
    std: Tensor
    uint8: bool


class PatchEmbedding(nn.Module):
    """Pixels to tokens; of uint8 the pixel statistics are part of the weights where one convolution reads them.

    A stem of several layers pads between them, so that a mean other than zero cannot become part of it.
    """

    positions: Tensor
    class_token: Tensor | None

    def __init__(self, vision: VisionTower, pixels: Pixels) -> None:
        super().__init__()
        has_class_token = vision.shape.has_class_token
        self.stem, bias = _stem(vision.patch_embedding, pixels)
        self.register_buffer("positions", vision.positions[has_class_token:] + bias)
        token = None
        if vision.class_embedding is not None:
            token = (vision.class_embedding + vision.positions[0]).clone()
        self.register_buffer("class_token", token)
        self.ln_pre = vision.ln_pre

    def forward(self, frames: Tensor) -> Tensor:
        """Frames as floats [N, 3, S, S] -> [N, T, D]."""
        tokens = self.stem(frames).flatten(2).transpose(1, 2) + self.positions
        if self.class_token is not None:
            class_token = self.class_token.expand(tokens.shape[0], 1, -1)
            tokens = torch.cat([class_token, tokens], dim=1)
        return cast(Tensor, self.ln_pre(tokens))


def _stem(stem: nn.Module, pixels: Pixels) -> tuple[nn.Module, Tensor]:
    """Pixels -> patches [N, D, side, side], and what is to be added to each patch, [D] or 0."""
    nothing = torch.zeros(())
    if not isinstance(stem, nn.Conv2d):
        return (nn.Sequential(Normalisation(pixels), stem) if pixels.uint8 else stem), nothing
    weight, bias = stem.weight, nothing if stem.bias is None else stem.bias
    if pixels.uint8:
        bias = bias - (weight * (pixels.mean / pixels.std)).sum(dim=(1, 2, 3))
        weight = weight / (255 * pixels.std)
    side = stem.kernel_size[0]
    plain = nn.Conv2d(3, len(weight), side, stride=side, bias=False, device="meta")
    plain.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return plain, bias


class Normalisation(nn.Module):
    """uint8 as floats -> normalised."""

    factor: Tensor
    shift: Tensor

    def __init__(self, pixels: Pixels) -> None:
        super().__init__()
        self.register_buffer("factor", 1 / (255 * pixels.std))
        self.register_buffer("shift", -pixels.mean / pixels.std)

    def forward(self, frames: Tensor) -> Tensor:
        """[N, 3, S, S] -> the same."""
        return frames * self.factor + self.shift


class ReadOut(nn.Module):
    """Tokens after the last block -> embeddings before normalisation: [..., T, D] -> [..., E]."""

    projection: Tensor | None
    projection_bias: Tensor | None

    def __init__(self, vision: VisionTower) -> None:
        super().__init__()
        self.reads_first = isinstance(vision.pooling, FirstToken)
        """Whether the first of the tokens is all that is read."""
        self.norms_pooled = vision.shape.norms_pooled
        self.ln_post = vision.ln_post
        pooling = vision.pooling
        self.pooling = FoldedMapPooling(pooling) if isinstance(pooling, MapPooling) else pooling
        for name in ("projection", "projection_bias"):
            tensor = getattr(vision, name)
            self.register_buffer(name, None if tensor is None else tensor.detach().clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """Norm, pooling and projection."""
        if self.norms_pooled:
            pooled = self.ln_post(self.pooling(tokens))
        else:
            pooled = self.pooling(self.ln_post(tokens))
        return project(pooled, self.projection, self.projection_bias)


class FoldedMapPooling(nn.Module):
    """Map pooling with its query, a constant, in the key projection, and values after the average.

    A key projection is then one vector a head; the values are projected once a frame, not once a token.
    """

    keys: Tensor
    value: Tensor
    value_bias: Tensor

    def __init__(self, pooling: MapPooling) -> None:
        super().__init__()
        heads, width = pooling.heads, pooling.latent.shape[-1]
        q = (
            split_heads(pooling.q(pooling.latent), heads)[:, 0] * (width // heads) ** -0.5
        )  # [H, D/H]
        key, value = pooling.kv.weight.chunk(2)  # [D, D]; a key's bias is the same for all tokens
        by_head = key.unflatten(0, (heads, -1))  # [H, D/H, D]
        self.register_buffer("keys", torch.einsum("hk,hkd->dh", q, by_head))
        self.register_buffer("value", value.unflatten(0, (heads, -1)).transpose(1, 2).contiguous())
        self.register_buffer("value_bias", pooling.kv.bias.chunk(2)[1].clone())
        self.pooling = pooling  # whose last layers stay

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., T, D] -> [..., D]."""
        lead = tokens.shape[:-2]
        x = tokens.flatten(0, -3)  # [N, T, D]
        attention = (x @ self.keys).transpose(-1, -2).softmax(dim=-1)  # [N, H, T]
        by_head = (attention @ x).transpose(0, 1) @ self.value  # [H, N, D/H]
        values = by_head.transpose(0, 1).flatten(1) + self.value_bias
        return cast(Tensor, self.pooling.finish(values).unflatten(0, lead))

"""CLIP's own architecture: two towers with blocks, built from tensors under OpenAI's names.

open_clip and the DGL research checkpoints share these names, so a backbone can come from a model name, a
folder, a weight file or a research checkpoint.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dgl_runtime.bundle.input_spec import CLIP_END, InputSpec, clip_frames
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_train.model.backbones.backbone import (
    DEFAULT_FRAMES,
    UNKNOWN_LICENCE,
    Backbone,
    BackboneSource,
    Facts,
)
from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from dgl_train.model.backbones.towers import Block, TextTower, VisionTower, attend_within

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Kind:
    """What a CLIP's tensors do not tell of it."""

    vision_heads: int
    text_heads: int
    quick_gelu: bool
    eps: float = 1e-5
    frames: FrameSpec | None = None  # None: OpenAI's pixels
    licence: str = UNKNOWN_LICENCE


def clip_backbone(state: Mapping[str, Tensor], source: BackboneSource, kind: Kind) -> Backbone:
    """Build the towers from tensors under OpenAI's names; shapes are read off the tensors."""
    embed_dim = state["text_projection"].shape[1]
    vision = ClipVision(
        _shape(state, "visual.transformer.", kind.vision_heads, kind),
        patch=state["visual.conv1.weight"].shape[-1],
        patches=state["visual.positional_embedding"].shape[0] - 1,
        embed_dim=embed_dim,
    )
    context = state["positional_embedding"].shape[0]
    text = ClipText(
        _shape(state, "transformer.", kind.text_heads, kind),
        vocabulary=state["token_embedding.weight"].shape[0],
        context=context,
        embed_dim=embed_dim,
    )
    frames = kind.frames or clip_frames(DEFAULT_FRAMES, vision.frame_size, OPENAI_MEAN, OPENAI_STD)
    tokenizer = clip_tokenizer(context)
    inputs = InputSpec(frames, tokenizer.spec)
    facts = Facts(source, inputs, tokenizer, embed_dim, licence=kind.licence)
    backbone = Backbone(vision, text, facts)
    backbone.load_state_dict(dict(rename_openai_state(state)))
    return backbone


def _shape(state: Mapping[str, Tensor], prefix: str, heads: int, kind: Kind) -> "TowerShape":
    hidden, width = state[f"{prefix}resblocks.0.mlp.c_fc.weight"].shape
    layers = sum(name.startswith(prefix) and name.endswith("ln_1.weight") for name in state)
    return TowerShape(width, heads, hidden, layers, kind.quick_gelu, kind.eps)


@dataclass(frozen=True)
class TowerShape:
    """Width, depth and kind of one tower's blocks."""

    width: int
    heads: int
    hidden: int
    layers: int
    quick_gelu: bool
    eps: float

    def make_blocks(self) -> Sequence[Block]:
        """New blocks of this shape, in a module list that type checkers see through."""
        blocks = (
            Block(self.width, self.heads, self.hidden, quick_gelu=self.quick_gelu, eps=self.eps)
            for _ in range(self.layers)
        )
        return cast(Sequence[Block], nn.ModuleList(blocks))


class ClipVision(VisionTower):
    """ViT with a class token, which is read; patch, width and depth are free."""

    def __init__(self, shape: TowerShape, *, patch: int, patches: int, embed_dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.patch_embedding = nn.Conv2d(3, shape.width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(shape.width))
        self.positions = nn.Parameter(torch.empty(patches + 1, shape.width))
        self.ln_pre = nn.LayerNorm(shape.width, eps=shape.eps)
        self.blocks = shape.make_blocks()
        self.ln_post = nn.LayerNorm(shape.width, eps=shape.eps)
        self.projection = nn.Parameter(torch.empty(shape.width, embed_dim))

    @property
    def frame_size(self) -> int:
        """S, the side of a frame in pixels."""
        return math.isqrt(self.positions.shape[0] - 1) * self.patch

    def forward(self, frames: Tensor) -> Tensor:
        """Every frame by itself."""
        x = self.embed(frames)
        for block in self.blocks:
            x = self.run(attend_within, block, x)
        return self.read_out(x[:, 0])

    def embed(self, inputs: Tensor) -> Tensor:
        """Normalised pixels [N, 3, S, S] -> tokens before block 0, [N, 1+P, D], class token first."""
        patches = self.patch_embedding(inputs).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(inputs), 1, -1)
        tokens: Tensor = self.ln_pre(torch.cat([class_token, patches], dim=1) + self.positions)
        return tokens

    def read_out(self, tokens: Tensor) -> Tensor:
        """Final normalisation and projection of tokens: [..., D] -> [..., E]."""
        features: Tensor = self.ln_post(tokens) @ self.projection
        return features

    def prompt_anchor(self) -> Tensor:
        """The class token before block 0."""
        anchor: Tensor = self.ln_pre(self.class_embedding + self.positions[0])
        return anchor


class ClipText(TextTower):
    """Causal transformer over CLIP's BPE tokens, read at the end token."""

    def __init__(self, shape: TowerShape, *, vocabulary: int, context: int, embed_dim: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, shape.width)
        self.positions = nn.Parameter(torch.empty(context, shape.width))
        self.blocks = shape.make_blocks()
        self.ln_final = nn.LayerNorm(shape.width, eps=shape.eps)
        self.projection = nn.Parameter(torch.empty(shape.width, embed_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Every token sees its past."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = self.run(attend_within, block, x, True)
        return self.read(x, tokens)

    def embed(self, inputs: Tensor) -> Tensor:
        """Token ids [B, L] -> tokens with positions, [B, L, D]."""
        embedded: Tensor = self.token_embedding(inputs) + self.positions[: inputs.shape[1]]
        return embedded

    def read(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Final normalisation and projection of each text's end token."""
        features: Tensor = self.ln_final(state_at_end(state, tokens, CLIP_END)) @ self.projection
        return features


def ends(tokens: Tensor, end_id: int = CLIP_END) -> Tensor:
    """Where each text ends: token ids [B, L] -> positions [B] of its first end token."""
    return (tokens == end_id).int().argmax(dim=-1)


def state_at_end(state: Tensor, tokens: Tensor, end_id: int) -> Tensor:
    """The token of each text, [B, L, D], where it ends: [B, D]."""
    rows = torch.arange(state.shape[0], device=state.device)  # len() would fix it in an export
    return state[rows, ends(tokens, end_id)]


_BLOCK_NAMES = {
    "attn.in_proj_weight": "qkv.weight",
    "attn.in_proj_bias": "qkv.bias",
    "attn.out_proj.": "out.",
    "mlp.c_fc.": "fc.",
    "mlp.c_proj.": "proj.",
}
_TENSOR_NAMES = {
    "logit_scale": "logit_scale",
    "text_projection": "text.projection",
    "positional_embedding": "text.positions",
    "token_embedding.weight": "text.token_embedding.weight",
    "visual.conv1.weight": "vision.patch_embedding.weight",
    "visual.class_embedding": "vision.class_embedding",
    "visual.positional_embedding": "vision.positions",
    "visual.proj": "vision.projection",
}
_PREFIXES = {
    "visual.transformer.resblocks.": "vision.blocks.",
    "transformer.resblocks.": "text.blocks.",
    "visual.ln_": "vision.ln_",
    "ln_final.": "text.ln_final.",
}


def rename_block(name: str) -> str:
    """OpenAI's name of a tensor inside a block -> ours."""
    for theirs, ours in _BLOCK_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def rename_openai_state(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """CLIP's tensors under our names; tensors that are not CLIP's are passed over."""
    for name, tensor in state.items():
        if name in _TENSOR_NAMES:
            ours = _TENSOR_NAMES[name]
            yield ours, tensor.reshape(()) if ours == "logit_scale" else tensor
            continue
        for theirs, ours in _PREFIXES.items():
            if name.startswith(theirs):
                yield rename_block(ours + name[len(theirs) :]), tensor
                break

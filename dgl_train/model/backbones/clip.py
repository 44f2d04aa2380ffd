"""CLIP's own architecture: two towers built from tensors under OpenAI's names.

open_clip and the DGL research checkpoints share these names.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from dgl_runtime.bundle.input_spec import InputSpec, clip_frames
from dgl_train.model.backbones.backbone import DEFAULT_FRAMES, Backbone, BackboneSource, Facts
from dgl_train.model.backbones.block import BlockShape
from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from dgl_train.model.backbones.towers import TextShape, TextTower, VisionShape, VisionTower

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Kind:
    """What a CLIP's tensors do not tell of it."""

    vision_heads: int
    text_heads: int
    quick_gelu: bool


def clip_backbone(state: Mapping[str, Tensor], source: BackboneSource, kind: Kind) -> Backbone:
    """Build the towers from tensors under OpenAI's names; shapes are read off the tensors."""
    embed_dim = state["text_projection"].shape[1]
    block, layers = _blocks(state, "visual.transformer.", kind.vision_heads, kind)
    side = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
    patch = state["visual.conv1.weight"].shape[-1]
    vision = VisionTower(VisionShape(block, layers, patch, side, embed_dim))
    block, layers = _blocks(state, "transformer.", kind.text_heads, kind)
    context = state["positional_embedding"].shape[0]
    vocabulary, tokenizer = state["token_embedding.weight"].shape[0], clip_tokenizer(context)
    text = TextTower(TextShape(block, layers, vocabulary, context, embed_dim), tokenizer.spec)
    frames = clip_frames(DEFAULT_FRAMES, vision.frame_size, OPENAI_MEAN, OPENAI_STD)
    inputs = InputSpec(frames, tokenizer.spec)
    facts = Facts(source, inputs, tokenizer, embed_dim)
    backbone = Backbone(vision, text, facts)
    backbone.load_state_dict(dict(rename_openai_state(state)))
    return backbone


def _blocks(
    state: Mapping[str, Tensor], prefix: str, heads: int, kind: Kind
) -> tuple[BlockShape, int]:
    """Shape and number of a tower's blocks."""
    hidden, width = state[f"{prefix}resblocks.0.mlp.c_fc.weight"].shape
    layers = sum(name.startswith(prefix) and name.endswith("ln_1.weight") for name in state)
    activation = "quick_gelu" if kind.quick_gelu else "gelu"
    return BlockShape(width, heads, hidden, activation), layers


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

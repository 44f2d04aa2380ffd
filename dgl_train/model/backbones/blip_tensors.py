"""BLIP's tensors under our names: out of Hugging Face's files, and out of the authors' own.

A BLIP holds more than its dual encoder: cross-attention, a head for matching, a decoder, and for training
copies of its encoders that follow them slowly and queues of embeddings. Those are passed over by name; any
other tensor that is not known here is an error, because without it embeddings might be others.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dgl_runtime.bundle.input_spec import TextSpec
from dgl_runtime.errors import ConfigError
from dgl_train.model.backbones.block import BlockShape
from dgl_train.model.backbones.open_clip_towers import in_row
from dgl_train.model.backbones.towers import TextShape, TextTower, VisionShape, VisionTower

State = Mapping[str, Tensor]
TEMPERATURE = "temp"  # in the authors' files alone
_PASSED_OVER = re.compile(
    r"\.crossattention\.|^itm_head\.|^text_decoder\."
    r"|^(visual_encoder|text_encoder|vision_proj|text_proj)_m\."
    r"|^(image|text|idx|ptr)_queue$|^queue_ptr$|^text_encoder\.embeddings\.position_ids$|^temp$"
)


@dataclass(frozen=True)
class Names:
    """What a file calls the parts of a tower: our names to theirs.

    Attributes:
        tensors: Tensors by themselves.
        layers: Layers with a weight and a bias.
        block: What stands before the names of a block, with {} for its number.
        in_block: Layers of a block; several of theirs are one of ours, one below the other.
    """

    tensors: Mapping[str, str]
    layers: Mapping[str, str]
    block: str
    in_block: Mapping[str, tuple[str, ...]]


HUGGING_FACE = Names(
    {
        "class_embedding": "vision_model.embeddings.class_embedding",
        "positions": "vision_model.embeddings.position_embedding",
    },
    {
        "patch_embedding": "vision_model.embeddings.patch_embedding",
        "ln_post": "vision_model.post_layernorm",
    },
    "vision_model.encoder.layers.{}.",
    {
        "ln_1": ("layer_norm1",),
        "qkv": ("self_attn.qkv",),
        "out": ("self_attn.projection",),
        "ln_2": ("layer_norm2",),
        "fc": ("mlp.fc1",),
        "proj": ("mlp.fc2",),
    },
)
AUTHORS = Names(
    {"class_embedding": "visual_encoder.cls_token", "positions": "visual_encoder.pos_embed"},
    {"patch_embedding": "visual_encoder.patch_embed.proj", "ln_post": "visual_encoder.norm"},
    "visual_encoder.blocks.{}.",
    {
        "ln_1": ("norm1",),
        "qkv": ("attn.qkv",),
        "out": ("attn.proj",),
        "ln_2": ("norm2",),
        "fc": ("mlp.fc1",),
        "proj": ("mlp.fc2",),
    },
)
"""Of the image encoder; the text encoder's names are the same in both files."""
_TEXT = Names(
    {
        "token_embedding.weight": "text_encoder.embeddings.word_embeddings.weight",
        "positions": "text_encoder.embeddings.position_embeddings.weight",
    },
    {"ln_embedded": "text_encoder.embeddings.LayerNorm"},
    "text_encoder.encoder.layer.{}.",
    {
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "out": ("attention.output.dense",),
        "ln_1": ("attention.output.LayerNorm",),
        "fc": ("intermediate.dense",),
        "proj": ("output.dense",),
        "ln_2": ("output.LayerNorm",),
    },
)


@dataclass(frozen=True)
class Kind:
    """What tensors do not tell of a BLIP; heads by default as in all that its authors trained."""

    vision_heads: int | None = None
    text_heads: int | None = None
    vision_eps: float = 1e-6
    text_eps: float = 1e-12


def vision_tower(file: "File", kind: Kind) -> VisionTower:
    """BLIP's image encoder."""
    state, layers = file.tower(file.names, "vision_proj")
    state["class_embedding"] = state["class_embedding"].flatten()
    state["positions"] = state["positions"].flatten(0, -2)
    side = math.isqrt(len(state["positions"]) - 1)
    shape = VisionShape(
        _block_shape(state, kind.vision_heads, kind.vision_eps, "vision"),
        layers,
        patch=state["patch_embedding.weight"].shape[-1],
        side=side,
        embed_dim=state["projection"].shape[1],
        patch_bias=True,
        has_ln_pre=False,
        projection="linear",
    )
    with torch.device("meta"):
        tower = VisionTower(shape)
    tower.load_state_dict(state, assign=True)
    return tower


def text_tower(file: "File", kind: Kind, texts: TextSpec) -> TextTower:
    """BLIP's text encoder: a BERT, read at its first token. Positions behind the longest text are left out."""
    state, layers = file.tower(_TEXT, "text_proj")
    state["positions"] = state["positions"][: texts.max_tokens].clone()
    shape = TextShape(
        _block_shape(state, kind.text_heads, kind.text_eps, "text"),
        layers,
        vocabulary=len(state["token_embedding.weight"]),
        context=len(state["positions"]),
        embed_dim=state["projection"].shape[1],
        is_causal=False,
        masks_padding=True,
        norms_embedded=True,
        projection="linear",
    )
    with torch.device("meta"):
        tower = TextTower(shape, texts)
    tower.load_state_dict(state, assign=True)
    return tower


class File:
    """The tensors of a file, float32, all of them known.

    Args:
        path: Of the file, for messages.
        state: Its tensors.
        names: Of the image encoder's parts.

    Raises:
        ConfigError: One is missing, or not known.
    """

    def __init__(self, path: Path, state: State, names: Names) -> None:
        self.path, self.state, self.names = path, state, names
        needed = {
            *self._theirs(names),
            *self._theirs(_TEXT),
            *_both("vision_proj"),
            *_both("text_proj"),
        }
        if missing := sorted(needed - state.keys()):
            raise ConfigError(
                f"{path} has {len(needed) - len(missing)} of the {len(needed)} tensors of a BLIP's dual "
                f"encoder; {missing[0]!r} is not there. Give a BLIP for retrieval or matching, such as "
                "Salesforce/blip-itm-base-coco"
            )
        unknown = sorted(name for name in state.keys() - needed if not _PASSED_OVER.search(name))
        if unknown:
            raise ConfigError(
                f"{path} has tensors that no BLIP has, {len(unknown)} in all, {unknown[0]!r} first; what "
                "they do to embeddings is not known here. Give a BLIP as its authors or Hugging Face have it"
            )

    @property
    def positions(self) -> int:
        """How many tokens the longest text may have."""
        return len(self.state[_TEXT.tensors["positions"]])

    @property
    def vocabulary(self) -> int:
        """How many tokens have an embedding."""
        return len(self.state[_TEXT.tensors["token_embedding.weight"]])

    def tower(self, names: Names, projection: str) -> tuple[dict[str, Tensor], int]:
        """A tower's tensors under our names, and the number of its blocks."""
        layers = self._layers(names)
        state = {ours: self._take(theirs) for ours, theirs in names.tensors.items()}
        for ours, theirs in names.layers.items():
            state |= self._layer(ours, theirs)
        state |= in_row(self._block(names, number) for number in range(layers))
        weight, bias = map(self._take, _both(projection))
        return {**state, "projection": weight.T.contiguous(), "projection_bias": bias}, layers

    def _block(self, names: Names, number: int) -> dict[str, Tensor]:
        before, block = names.block.format(number), dict[str, Tensor]()
        for ours, theirs in names.in_block.items():
            block |= self._layer(ours, *(before + one for one in theirs))
        return block

    def _layer(self, ours: str, *theirs: str) -> dict[str, Tensor]:
        parts = [tuple(map(self._take, _both(one))) for one in theirs]
        both = zip(_both(ours), zip(*parts, strict=True), strict=True)
        return {name: one[0] if len(one) == 1 else torch.cat(one) for name, one in both}

    def _take(self, theirs: str) -> Tensor:
        return self.state[theirs].float()

    def _layers(self, names: Names) -> int:
        """Blocks in a row; one at least, so that a file without is told what it lacks."""
        first = next(iter(names.in_block.values()))[0]
        number = 1
        while f"{names.block.format(number)}{first}.weight" in self.state:
            number += 1
        return number

    def _theirs(self, names: Names) -> list[str]:
        """What a tower of this file must have."""
        layers = [*names.layers.values()]
        for number in range(self._layers(names)):
            before = names.block.format(number)
            layers += [before + one for theirs in names.in_block.values() for one in theirs]
        return [*names.tensors.values(), *(name for layer in layers for name in _both(layer))]


def _both(layer: str) -> tuple[str, str]:
    """The names of a layer's weight and bias."""
    return f"{layer}.weight", f"{layer}.bias"


def _block_shape(state: State, heads: int | None, eps: float, which: str) -> BlockShape:
    """Shape of a tower's blocks.

    Raises:
        ConfigError: Its width is not divided by its heads.
    """
    hidden, width = state["blocks.0.fc.weight"].shape
    heads = heads or width // 64
    if not heads or width % heads:
        raise ConfigError(
            f"its {which} encoder has {heads} heads, which do not divide its width, {width}. "
            "Give the number it was trained with"
        )
    return BlockShape(width, heads, hidden, "gelu", eps, norms_last=which == "text")

"""open_clip's own transformers as towers: blocks that prompts can be put into.

LayerScale becomes part of the layers that it scales.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dgl_runtime.bundle.input_spec import TextSpec
from dgl_train.model.backbones.block import BlockShape
from dgl_train.model.backbones.pooling import FirstToken, MeanToken
from dgl_train.model.backbones.towers import (
    TextShape,
    TextTower,
    VisionShape,
    VisionTower,
)

State = dict[str, Tensor]
_ACTIVATIONS = {
    "QuickGELU": "quick_gelu",
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "SiLU": "silu",
}


class NoTowerError(Exception):
    """What an encoder has that our blocks have not, in words."""


def require(parts: Mapping[str, bool]) -> None:
    """Parts that would be in the way, each with whether it is there.

    Raises:
        NoTowerError: One is.
    """
    if found := [part for part, present in parts.items() if present]:
        raise NoTowerError(", ".join(found))


def vision_tower(visual: Any) -> VisionTower:  # noqa: ANN401 - open_clip is untyped
    """open_clip's VisionTransformer.

    Raises:
        NoTowerError: It has parts that ours has not.
    """
    require(
        {
            "attentional pooling": visual.attn_pool is not None,
            f"{visual.pool_type!r} pooling of patches": visual.pool_type not in ("tok", "avg"),
            "frames that are not square": visual.grid_size[0] != visual.grid_size[1],
        }
    )
    shape = VisionShape(
        block_shape(visual.transformer, visual.ln_post.eps),
        len(visual.transformer.resblocks),
        patch=visual.patch_size[0],
        side=visual.grid_size[0],
        embed_dim=visual.output_dim,
        has_ln_pre=not isinstance(visual.ln_pre, nn.Identity),
        pools_class_token=visual.pool_type == "tok",
        norms_pooled=visual.final_ln_after_pool,
        projection="none" if visual.proj is None else "matrix",
    )
    pooling = FirstToken() if shape.pools_class_token else MeanToken()
    with torch.device("meta"):
        tower = VisionTower(shape, pooling)
    state = {
        "class_embedding": visual.class_embedding,
        "positions": visual.positional_embedding,
        **named("patch_embedding", visual.conv1),
        **named("ln_pre", visual.ln_pre),
        **named("ln_post", visual.ln_post),
        **in_row(map(_block, visual.transformer.resblocks)),
        **({} if visual.proj is None else {"projection": visual.proj}),
    }
    tower.load_state_dict(state, assign=True)
    return tower


def text_tower(text: Any, texts: TextSpec) -> TextTower:  # noqa: ANN401 - open_clip is untyped
    """open_clip's text transformer.

    Args:
        text: A CLIP, or its ``text``: what holds the transformer.
        texts: How texts are read.

    Raises:
        NoTowerError: It has parts that ours has not.
    """
    require(
        {
            f"a {type(text).__name__} text encoder": not hasattr(text, "ln_final"),
            "a class token at the end of texts": getattr(text, "cls_emb", None) is not None,
            "hidden padding": bool(getattr(text, "use_pad_mask", False)),
        }
    )
    projection = text.text_projection
    shape = TextShape(
        block_shape(text.transformer, text.ln_final.eps),
        len(text.transformer.resblocks),
        vocabulary=len(text.token_embedding.weight),
        context=len(text.positional_embedding),
        embed_dim=text.ln_final.weight.shape[0] if projection is None else output_width(projection),
        is_causal=text.attn_mask is not None,
        projection=projection_kind(projection),
    )
    with torch.device("meta"):
        tower = TextTower(shape, texts)
    state = {
        "positions": text.positional_embedding,
        **named("token_embedding", text.token_embedding),
        **named("ln_final", text.ln_final),
        **in_row(map(_block, text.transformer.resblocks)),
        **projection_state(projection),
    }
    tower.load_state_dict(state, assign=True)
    return tower


def block_shape(transformer: Any, eps: float) -> BlockShape:  # noqa: ANN401
    """Of open_clip's blocks.

    Raises:
        NoTowerError: They are not its plain ones.
    """
    block = transformer.resblocks[0]
    kind = type(block).__name__
    require({f"{kind} blocks": kind != "ResidualAttentionBlock"})
    require_same_eps(transformer, eps)
    hidden, width = block.mlp.c_fc.weight.shape
    return BlockShape(width, block.attn.num_heads, hidden, activation_of(block.mlp.gelu), eps)


def require_same_eps(module: nn.Module, eps: float) -> None:
    """All norms of an encoder have the epsilon of its last one.

    Raises:
        NoTowerError: They have not.
    """
    found = {one.eps for one in module.modules() if isinstance(one, nn.LayerNorm)}
    require({f"norms with eps {sorted(found | {eps})}": found != {eps}})


def activation_of(module: nn.Module) -> str:
    """Our name of an activation.

    Raises:
        NoTowerError: We have none like it.
    """
    kind = type(module).__name__
    require({f"the activation {kind}": kind not in _ACTIVATIONS})
    is_tanh = getattr(module, "approximate", "none") == "tanh"
    return "gelu_tanh" if is_tanh else _ACTIVATIONS[kind]


def named(name: str, module: nn.Module) -> State:
    """A module's tensors under a name."""
    return {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}


def scaled(name: str, layer: nn.Module, factor: Tensor | None) -> State:
    """A linear layer's tensors under a name, its outputs times a factor [D]."""
    state = named(name, layer)
    if factor is None:
        return state
    return {
        key: tensor * (factor if tensor.dim() == 1 else factor[:, None])
        for key, tensor in state.items()
    }


def projection_kind(projection: nn.Module | Tensor | None) -> str:
    """One of PROJECTIONS."""
    if isinstance(projection, nn.Linear):
        return "matrix" if projection.bias is None else "linear"
    return "none" if projection is None else "matrix"


def output_width(projection: Any) -> int:  # noqa: ANN401
    """E, of a linear layer or a matrix [D, E]."""
    is_linear = isinstance(projection, nn.Linear)
    return int(projection.weight.shape[0] if is_linear else projection.shape[1])


def projection_state(projection: nn.Module | Tensor | None) -> State:
    """Its tensors under our names."""
    if isinstance(projection, nn.Linear):
        bias = {} if projection.bias is None else {"projection_bias": projection.bias}
        return {"projection": projection.weight.T.contiguous(), **bias}
    return {} if projection is None else {"projection": torch.as_tensor(projection)}


def in_row(blocks: Iterable[State]) -> State:
    """The tensors of all blocks of a tower."""
    return {
        f"blocks.{number}.{name}": tensor
        for number, block in enumerate(blocks)
        for name, tensor in block.items()
    }


def _block(block: Any) -> State:  # noqa: ANN401
    return {
        **named("ln_1", block.ln_1),
        "qkv.weight": block.attn.in_proj_weight,
        "qkv.bias": block.attn.in_proj_bias,
        **scaled("out", block.attn.out_proj, getattr(block.ls_1, "gamma", None)),
        **named("ln_2", block.ln_2),
        **named("fc", block.mlp.c_fc),
        **scaled("proj", block.mlp.c_proj, getattr(block.ls_2, "gamma", None)),
    }

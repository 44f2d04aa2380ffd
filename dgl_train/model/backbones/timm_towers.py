"""timm's vision transformers as towers: SigLIP, MobileCLIP-B (ViT), PE-Core, EVA02 (Eva).

LayerScale becomes part of the layers that it scales. Pairs of numbers that RoPE turns are brought into the
order that ``Rotation`` reads, in queries and keys alike, which changes no attention.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from dgl_train.model.backbones.block import BlockShape, Rotation
from dgl_train.model.backbones.open_clip_towers import (
    State,
    activation_of,
    in_row,
    named,
    output_width,
    projection_kind,
    projection_state,
    require,
    require_same_eps,
    scaled,
)
from dgl_train.model.backbones.pooling import FirstToken, MapPooling, MapShape, MeanToken
from dgl_train.model.backbones.towers import VisionShape, VisionTower

_MLPS = ("Mlp", "GluMlp", "SwiGLU")
_POOLINGS = ("token", "avg", "map")
_NOTHING = (nn.Dropout, nn.Identity)  # when nothing is trained


def timm_tower(model: Any) -> VisionTower:  # noqa: ANN401 - timm is untyped
    """open_clip's TimmModel.

    Raises:
        NoTowerError: It is no vision transformer, or has parts that ours has not.
    """
    trunk = model.trunk
    kind = type(trunk).__name__
    require({f"a {kind} image encoder": kind not in ("VisionTransformer", "Eva")})
    heads = [one for one in (*model.head, trunk.head) if not isinstance(one, _NOTHING)]
    norms = [one for one in (trunk.norm, trunk.fc_norm) if not isinstance(one, nn.Identity)]
    side = trunk.patch_embed.grid_size[0]
    require(
        {
            "register tokens": trunk.reg_token is not None,
            f"{trunk.global_pool!r} pooling": trunk.global_pool not in _POOLINGS,
            "no positions": trunk.pos_embed is None,
            "frames that are not square": trunk.patch_embed.grid_size != (side, side),
            "a projection of several layers": len(heads) > 1
            or any(not isinstance(one, nn.Linear) for one in heads),
            f"{len(norms)} final norms": len(norms) != 1,
        }
    )
    return _tower(trunk, norms[0], heads[0] if heads else None)


def _tower(trunk: Any, norm: nn.LayerNorm, projection: nn.Linear | None) -> VisionTower:  # noqa: ANN401
    """A tower of a transformer with one final norm and at most one layer behind it."""
    block, side = _block_shape(trunk.blocks[0], norm.eps), trunk.patch_embed.grid_size[0]
    require_same_eps(trunk.blocks, norm.eps)
    stem, patch = _stem(trunk.patch_embed, side)
    rotation = _rotation(trunk, trunk.blocks[0].attn)
    shape = VisionShape(
        block,
        len(trunk.blocks),
        patch=patch,
        side=side,
        embed_dim=block.width if projection is None else output_width(projection),
        patch_bias=getattr(trunk.patch_embed.proj, "bias", None) is not None,
        has_class_token=trunk.cls_token is not None,
        has_ln_pre=not isinstance(trunk.norm_pre, nn.Identity),
        pools_class_token=_pools_class_token(trunk),
        norms_pooled=norm is trunk.fc_norm,
        projection=projection_kind(projection),
    )
    with torch.device("meta"):
        tower = VisionTower(shape, _pooling(trunk), stem, rotation)
    state = {
        "positions": _positions(trunk),
        **({} if trunk.cls_token is None else {"class_embedding": trunk.cls_token[0, 0]}),
        **named("patch_embedding", stem or trunk.patch_embed.proj),
        **named("ln_pre", trunk.norm_pre),
        **named("ln_post", norm),
        **in_row(_block(one, rotation) for one in trunk.blocks),
        **projection_state(projection),
        **_pooling_state(trunk.attn_pool),
    }
    tower.load_state_dict(state, assign=True)
    return tower


def _stem(embed: Any, side: int) -> tuple[nn.Module | None, int]:  # noqa: ANN401
    """More than one convolution, if it is that, and a patch's side in pixels."""
    require(
        {"a norm of patches": not isinstance(getattr(embed, "norm", nn.Identity()), nn.Identity)}
    )
    patch = embed.img_size[0] // side
    if isinstance(embed.proj, nn.Conv2d) and not hasattr(embed, "backbone"):
        return None, patch
    require({"a patch embedding that is not known": not hasattr(embed, "backbone")})
    return nn.Sequential(embed.backbone, embed.proj), patch


def _positions(trunk: Any) -> Tensor:  # noqa: ANN401
    """[T, D]; a class token without a place has zeros."""
    positions: Tensor = trunk.pos_embed[0]
    if trunk.cls_token is not None and trunk.no_embed_class:
        positions = torch.cat([torch.zeros_like(positions[:1]), positions])
    return positions


def _block_shape(block: Any, eps: float) -> BlockShape:  # noqa: ANN401
    attention, mlp, kind = block.attn, block.mlp, type(block).__name__
    require(
        {
            f"{kind} blocks": kind not in ("Block", "EvaBlock"),
            f"{type(attention).__name__}": type(attention).__name__
            not in ("Attention", "AttentionRope", "EvaAttention"),
            f"a {type(mlp).__name__} MLP": type(mlp).__name__ not in _MLPS,
        }
    )
    width = block.norm1.weight.shape[0]
    require(
        {
            "normed queries": not isinstance(attention.q_norm, nn.Identity),
            "gated attention": getattr(attention, "gate", None) is not None,
            "fewer keys than queries": getattr(attention, "num_kv_groups", 1) > 1,
            "heads of another width": attention.head_dim * attention.num_heads != width,
        }
    )
    is_gated = type(mlp).__name__ != "Mlp"
    return BlockShape(
        width,
        attention.num_heads,
        mlp.fc2.weight.shape[1],
        activation_of(mlp.act),
        eps,
        is_gated=is_gated,
        norms_attended=not isinstance(attention.norm, nn.Identity),
        norms_hidden=not isinstance(mlp.norm, nn.Identity),
    )


def _block(block: Any, rotation: Rotation | None) -> State:  # noqa: ANN401
    attention, mlp = block.attn, block.mlp
    weight, bias = _qkv(attention)
    if rotation is not None and not attention.rotate_half:
        weight, bias = (_halves(one, attention.num_heads) for one in (weight, bias))
    return {
        **named("ln_1", block.norm1),
        "qkv.weight": weight,
        "qkv.bias": bias,
        **named("ln_attended", attention.norm),
        **scaled("out", attention.proj, _scale(block, 1)),
        **named("ln_2", block.norm2),
        **_first_layer(mlp),
        **named("ln_hidden", mlp.norm),
        **scaled("proj", mlp.fc2, _scale(block, 2)),
    }


def _first_layer(mlp: Any) -> State:  # noqa: ANN401
    if type(mlp).__name__ != "SwiGLU":
        return named("fc", mlp.fc1)
    gate, other = named("fc", mlp.fc1_g), named("fc", mlp.fc1_x)
    return {name: torch.cat([gate[name], other[name]]) for name in gate}


def _scale(block: Any, number: int) -> Tensor | None:  # noqa: ANN401
    """LayerScale of attention (1) or MLP (2)."""
    of_eva: Tensor | None = getattr(block, f"gamma_{number}", None)
    of_vit: Tensor | None = getattr(getattr(block, f"ls{number}", None), "gamma", None)
    return of_vit if of_eva is None else of_eva


def _qkv(attention: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Weight [3D, D] and bias [3D]; what has no bias gets zeros."""
    apart = [attention.q_proj, attention.k_proj, attention.v_proj] if attention.qkv is None else []
    layers = apart or [attention.qkv]
    weight = torch.cat([one.weight for one in layers])
    biases = [torch.zeros(one.weight.shape[0]) if one.bias is None else one.bias for one in layers]
    own = [getattr(attention, f"{name}_bias", None) for name in "qkv"]
    if own[0] is not None and own[2] is not None:  # EVA's, where keys have none
        biases = [own[0], torch.zeros_like(own[0]), own[2]]
    return weight, torch.cat(biases)


def _halves(qkv: Tensor, heads: int) -> Tensor:
    """Queries and keys, rows [3D, ...], with each head's even numbers before its odd ones."""
    q, k, v = qkv.chunk(3)

    def ordered(x: Tensor) -> Tensor:
        pairs = cast(Tensor, x.unflatten(0, (heads, -1, 2)))  # [H, D/H/2, 2, ...]
        return pairs.transpose(1, 2).flatten(0, 2)

    return torch.cat([ordered(q), ordered(k), v])


def _rotation(trunk: Any, attention: Any) -> Rotation | None:  # noqa: ANN401
    """A frame's places as angles; the class token has none."""
    if (rope := getattr(trunk, "rope", None)) is None:
        return None
    require({f"rotation by {type(rope).__name__}": type(rope).__name__ != "RotaryEmbeddingCat"})
    sin, cos = rope.get_embed().chunk(2, dim=-1)  # [P, D/H]
    if not attention.rotate_half:
        sin, cos = (torch.cat([one[:, ::2], one[:, 1::2]], dim=1) for one in (sin, cos))
    before = trunk.num_prefix_tokens
    ones, zeros = torch.ones_like(cos[:before]), torch.zeros_like(sin[:before])
    return Rotation(torch.cat([ones, cos]), torch.cat([zeros, sin]))


def _pools_class_token(trunk: Any) -> bool:  # noqa: ANN401
    of_vit = getattr(trunk, "pool_include_prefix", None)
    is_map = trunk.global_pool == "map"
    return trunk.global_pool == "token" or (is_map if of_vit is None else bool(of_vit))


def _pooling(trunk: Any) -> nn.Module:  # noqa: ANN401
    if trunk.global_pool == "token":
        return FirstToken()
    if (pool := trunk.attn_pool) is None:
        return MeanToken()
    width = pool.latent.shape[-1]
    require(
        {
            "a pooling with positions": pool.pos_embed is not None,
            "a pooling with several queries": pool.latent_len != 1,
            "a pooling without layers": not isinstance(pool.q, nn.Linear) or pool.mlp is None,
            "a pooling with normed queries": not isinstance(pool.q_norm, nn.Identity),
            "a pooling of another width": pool.kv.weight.shape != (2 * width, width),
        }
    )
    hidden, activation = pool.mlp.fc1.weight.shape[0], activation_of(pool.mlp.act)
    shape = MapShape(width, pool.num_heads, hidden, activation, pool.norm.eps)
    return MapPooling(shape)


def _pooling_state(pool: Any) -> State:  # noqa: ANN401
    if pool is None:
        return {}
    layers = {"q": pool.q, "kv": pool.kv, "out": pool.proj, "norm": pool.norm}
    layers |= {"fc": pool.mlp.fc1, "proj": pool.mlp.fc2}
    state = {"pooling.latent": pool.latent[0]}
    for name, layer in layers.items():
        state |= named(f"pooling.{name}", layer)
    return state

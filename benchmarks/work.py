"""FLOP and bytes that a folded encoder cannot do without: the roofline's two axes."""

from collections.abc import Container
from dataclasses import dataclass
from typing import cast

from torch import nn

from dgl_export.fold import FoldedModel
from dgl_export.folded_block import FoldedBlock
from dgl_train.model.backbones.backbone import Backbone, require_towers
from dgl_train.model.backbones.towers import Tower


@dataclass(frozen=True)
class Work:
    """What one call of a folded encoder cannot do without."""

    flop: int
    weights: int  # numbers read, whatever their size


def block_flop(width: int, hidden: int, *, kv: int, q: int, pairs: int) -> int:
    """FLOP of the matrix products of one block; a multiply-add is 2.

    2 * (2 kv D^2 + 2 q D^2 + 2 q D H + 2 pairs D): keys and values of ``kv`` tokens; queries, output
    projection and MLP (hidden width H) of ``q`` tokens; and ``pairs`` of a query with a key, once for the
    logit and once for the value. Normalisation, softmax and activation are left out: below 1%.
    """
    return 4 * (kv * width**2 + q * width**2 + q * width * hidden + pairs * width)


def caption_work(backbone: Backbone, folded: FoldedModel, *, pieces: int) -> Work:
    """The folded text tower on n = ``pieces`` tokens without the start token, batch 1.

    Each of n queries meets S constant keys and n of its own (the mask is applied after the product). The
    last block has one query. Then the projection, 2 D E. Of the two embedding tables n rows are read.
    """
    width, hidden, layers = _size(require_towers(backbone, "this count").text)
    keys = _first_block(folded.captions).keys.shape[1] + pieces
    inner = block_flop(width, hidden, kv=pieces, q=pieces, pairs=pieces * keys)
    last = block_flop(width, hidden, kv=pieces, q=1, pairs=keys)
    tables = {"token_embedding", "positions"}
    weights = _numbers(folded.captions, without=tables) + 2 * pieces * width
    return Work((layers - 1) * inner + last + 2 * width * backbone.facts.embed_dim, weights)


def clip_work(backbone: Backbone, folded: FoldedModel, num_frames: int) -> Work:
    """The folded vision tower on F frames, batch 1.

    N = G + F T tokens, T = 1 + P. A frame's T queries and the G global ones meet the frame's M = G + K + T
    keys, in every frame. In block 0 the globals' queries, keys and values are constants; the last block
    has one query. Then the projection, 2 D E; before, the patch convolution, 2 F P (3 p^2) D.
    """
    vision, clips = require_towers(backbone, "this count").vision, folded.clips
    width, hidden, layers = _size(vision)
    per_frame = 1 + (backbone.facts.inputs.frames.size // vision.patch) ** 2
    num_globals = int(clips.get_buffer("globals").shape[0])
    keys = num_globals + _first_block(clips).keys.shape[-2] + per_frame
    tokens = num_globals + num_frames * per_frame
    pairs = num_frames * (per_frame + num_globals) * keys
    inner = block_flop(width, hidden, kv=tokens, q=tokens, pairs=pairs)
    constant = 2 * 3 * num_globals * width**2  # of block 0, not computed
    last = block_flop(width, hidden, kv=tokens, q=1, pairs=num_frames * keys)
    patches = 2 * num_frames * (per_frame - 1) * 3 * vision.patch**2 * width
    projection = 2 * width * backbone.facts.embed_dim
    flop = patches + (layers - 1) * inner - constant + last + projection
    return Work(flop, _numbers(clips))


def _size(tower: Tower) -> tuple[int, int, int]:
    blocks = tower.blocks
    return blocks[0].fc.in_features, blocks[0].fc.out_features, len(blocks)


def _first_block(encoder: nn.Module) -> FoldedBlock:
    return cast(FoldedBlock, encoder.get_submodule("blocks.0"))


def _numbers(module: nn.Module, *, without: Container[str] = ()) -> int:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return sum(tensor.numel() for name, tensor in tensors.items() if name not in without)

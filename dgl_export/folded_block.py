"""The pieces every folded encoder is made of: a block with constant keys and values, and its layers.

They are written so that ONNX gets plain, fast operators.
"""

import torch
from torch import Tensor, nn

from dgl_train.model.backbones.block import AroundAttention, Block


class FoldedBlock(AroundAttention):
    """A block with the attention scale in its queries, and its prompts' constant keys and values.

    Between blocks all tokens are the rows of one matrix, so that every linear layer is one plain Gemm.
    """

    keys: Tensor
    values: Tensor
    swapped: Tensor

    def __init__(self, block: Block, prompts: Tensor) -> None:
        """Args: the block, and the tokens [..., K, D] of which only keys and values are left."""
        with torch.device("meta"):
            super().__init__(block.shape)
        kept = {name: tensor for name, tensor in block.state_dict().items() if name[:4] != "qkv."}
        self.load_state_dict(kept, assign=True)
        self.rotation = block.rotation
        if self.rotation is not None:
            self.register_buffer("swapped", torch.tensor([1, 0]))
        weights, biases = block.qkv.weight.chunk(3), block.qkv.bias.chunk(3)
        scale = (block.shape.width // block.shape.heads) ** -0.5
        self.q = _linear(weights[0] * scale, biases[0] * scale)
        self.k, self.v = _linear(weights[1], biases[1]), _linear(weights[2], biases[2])
        normal = self.enter(prompts)
        lead = prompts.shape[:-2]  # keys and values are [..., H, K, D/H]
        self.register_buffer("keys", self.split(self.k(normal), *lead).contiguous())
        self.register_buffer("values", self.split(self.v(normal), *lead).contiguous())

    def split(self, x: Tensor, *lead: int) -> Tensor:
        """Rows [N, D] of N = lead x T tokens -> [*lead, H, T, D/H]."""
        heads = x.reshape(*lead, -1, self.shape.heads, x.shape[-1] // self.shape.heads)
        return heads.transpose(-2, -3)

    def split_frames(self, x: Tensor, *lead: int) -> Tensor:
        """The same of queries or keys of all tokens of frames, which are rotated where the block rotates."""
        heads = self.split(x, *lead)
        if self.rotation is None:
            return heads
        halves = torch.index_select(heads.unflatten(-1, (2, -1)), -2, self.swapped)  # one Gather
        return self.rotation.turn(heads, halves.flatten(-2))

    def merge(self, attended: Tensor) -> Tensor:
        """[..., H, T, D/H] -> rows [N, D]."""
        return attended.transpose(-2, -3).reshape(-1, self.shape.width)


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
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer

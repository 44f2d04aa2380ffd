"""The alternatives to prompts: other ways to tune a backbone, each on the mean over frames.

All of them change the backbone itself: full fine-tuning, biases only (BitFit), low-rank updates of the
attention's projections (LoRA, Hu et al. 2021) and bottleneck adapters (Houlsby et al. 2019).
"""

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from dgl_train.model.backbones.backbone import Backbone, require_towers
from dgl_train.model.backbones.open_clip_encoders import Attention
from dgl_train.model.backbones.towers import Block, Tower

LORA_RANK = 8
ADAPTER_WIDTH = 64

_MATRICES = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class LowRankLinear(nn.Linear):
    """A frozen linear layer plus a trained update of low rank, which starts at zero."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return super().forward(x) + x @ self.down.T @ self.up.T

    def merged(self) -> nn.Linear:
        """The plain layer that does the same."""
        layer = nn.Linear(self.in_features, self.out_features, device="meta")
        layer.weight = nn.Parameter(self.weight + self.up @ self.down, requires_grad=False)
        layer.bias = self.bias
        return layer


class LowRankUpdate(nn.Module):
    """The same as a parametrization: whoever reads the matrix, however, reads it updated.

    Slower than ``LowRankLinear``, since the gradient of the whole matrix is made.
    """

    def __init__(self, matrix: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(matrix.new_empty(rank, matrix.shape[1]))
        self.up = nn.Parameter(matrix.new_zeros(matrix.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, matrix: Tensor) -> Tensor:
        """[out, in] -> [out, in]."""
        return matrix + self.up @ self.down


class AdaptedLinear(nn.Linear):
    """A frozen linear layer with a bottleneck behind it, which starts as the identity."""

    def __init__(self, layer: nn.Linear, width: int) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.down = nn.Linear(layer.out_features, width)
        self.up = nn.Linear(width, layer.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        x = super().forward(x)
        adapted: Tensor = x + self.up(F.gelu(self.down(x)))
        return adapted


def train_all(backbone: Backbone) -> None:
    """Full fine-tuning, temperature and bias of the logits included."""
    backbone.requires_grad_(True)


def train_biases(backbone: Backbone) -> None:
    """Every bias of both encoders, those of the norms included."""
    for encoder in (backbone.vision, backbone.text):
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))


def add_lora(backbone: Backbone) -> None:
    """Low-rank updates of queries, keys and values in every block of a tower.

    In an encoder whose blocks are not ours, of every matrix that a linear layer or an attention holds.
    """
    for encoder in (backbone.vision, backbone.text):
        if isinstance(encoder, Tower):
            for block in encoder.blocks:
                block.qkv = LowRankLinear(block.qkv, LORA_RANK)
        else:
            _update_matrices(encoder)


def _update_matrices(encoder: nn.Module) -> None:
    for layer in list(encoder.modules()):
        for name in _MATRICES:
            matrix = getattr(layer, name, None)
            is_linear = isinstance(layer, nn.Linear | nn.MultiheadAttention | Attention)
            if is_linear and isinstance(matrix, nn.Parameter):
                register_parametrization(layer, name, LowRankUpdate(matrix, LORA_RANK))


def add_attention_adapters(backbone: Backbone) -> None:
    """An adapter behind every block's attention."""
    for block in _blocks(backbone):
        block.out = AdaptedLinear(block.out, ADAPTER_WIDTH)


def add_mlp_adapters(backbone: Backbone) -> None:
    """An adapter behind every block's MLP."""
    for block in _blocks(backbone):
        block.proj = AdaptedLinear(block.proj, ADAPTER_WIDTH)


@torch.no_grad()
def merge_lora(encoder: nn.Module) -> None:
    """Put low-rank updates into the weights they update; anything else stays."""
    for layer in list(encoder.modules()):
        for name, child in list(layer.named_children()):
            if isinstance(child, LowRankLinear):
                setattr(layer, name, child.merged())
        if is_parametrized(layer):
            names = list(cast(nn.ModuleDict, layer.parametrizations))
            merged = {name: getattr(layer, name) for name in names}
            # Not remove_parametrizations: it changes a class, which the layer's copies share.
            layer.__class__ = type(layer).__bases__[0]
            del layer.parametrizations
            for name, matrix in merged.items():
                setattr(layer, name, nn.Parameter(matrix, requires_grad=False))


def has_adapters(backbone: Backbone) -> bool:
    """Whether a layer has a bottleneck behind it, which no weight can absorb."""
    return any(isinstance(layer, AdaptedLinear) for layer in backbone.modules())


ALTERNATIVES = {
    "full": train_all,
    "bias": train_biases,
    "lora": add_lora,
    "adapter-attention": add_attention_adapters,
    "adapter-mlp": add_mlp_adapters,
}


def _blocks(backbone: Backbone) -> Iterator[Block]:
    for tower in require_towers(backbone, "an adapter"):
        yield from tower.blocks

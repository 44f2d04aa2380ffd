"""The encoders of any open_clip model, as they are: a dual encoder without blocks to attend in."""

from copy import copy

import torch.nn.functional as F
from torch import Tensor, nn

from dgl_train.model.backbones.block import merge_heads, split_heads

READ_OUTS = {"argmax": "end", "eos": "end", "first": "first", "last": "last"}
"""How open_clip calls the position that is read, and how TextSpec does."""

_NOT_OF_TEXT = ("visual", "logit_scale", "logit_bias")


class WholeVision(nn.Module):
    """An image encoder of open_clip: normalised pixels [N, 3, S, S] -> embeddings [N, E]."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, frames: Tensor) -> Tensor:
        """Every frame by itself."""
        return _first(self.visual(frames))


class WholeText(nn.Module):
    """A text encoder that reads rows of one length alone: token ids [B, L] -> embeddings [B, E]."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor) -> Tensor:
        """Padding is attended to, or masked by the encoder itself."""
        encode = getattr(self.text, "encode_text", self.text)
        return _first(encode(tokens))


def text_of(model: nn.Module) -> nn.Module:
    """The text encoder of a model of open_clip; of a CLIP, which holds its parts itself, all but the rest."""
    if isinstance(text := getattr(model, "text", None), nn.Module):
        return text
    text = copy(model)
    for kept in ("_modules", "_parameters"):
        held = getattr(model, kept).items()
        setattr(text, kept, {name: part for name, part in held if name not in _NOT_OF_TEXT})
    return text


_APART = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class Attention(nn.Module):
    """torch's MultiheadAttention in few words: it can be exported for any number of rows and tokens."""

    in_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None

    def __init__(self, theirs: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.batch_first = theirs.num_heads, theirs.batch_first
        self.out_proj = theirs.out_proj
        self.register_parameter("in_proj_bias", theirs.in_proj_bias)
        for name in ("in_proj_weight", *_APART):  # the one, or the others where widths differ
            self.register_parameter(name, getattr(theirs, name))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, None]:
        """Tokens [N, T, D], or [T, N, D] without ``batch_first`` -> the same of the queries.

        Args:
            query: Who attends.
            key: To whom.
            value: What they say.
            attn_mask: Added to the logits: [T, T], or [N * H, T, T].
            need_weights: Ignored: open_clip asks for none.
        """
        inputs = [query, key, value]
        if not self.batch_first:
            inputs = [one.transpose(0, 1) for one in inputs]
        q, k, v = (
            split_heads(F.linear(one, weight, bias), self.heads)
            for one, (weight, bias) in zip(inputs, self._projections(), strict=True)
        )
        if attn_mask is not None and attn_mask.dim() == 3:  # one for each head of each row
            attn_mask = attn_mask.unflatten(0, (-1, self.heads))
        attended = merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask))
        out: Tensor = self.out_proj(attended)
        return out if self.batch_first else out.transpose(0, 1), None

    def _projections(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of queries, keys and values."""
        together = self.in_proj_weight
        weights = [getattr(self, one) for one in _APART] if together is None else together.chunk(3)
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return list(zip(weights, biases, strict=True))


def exportable(encoder: nn.Module) -> nn.Module:
    """An encoder whose MultiheadAttention is ``Attention``, with the same tensors under the same names."""
    for name, module in encoder.named_children():
        if type(module) is nn.MultiheadAttention:
            setattr(encoder, name, Attention(module))
        else:
            exportable(module)
    return encoder


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Of an encoder that also gives its tokens, the embedding."""
    return out[0] if isinstance(out, tuple) else out

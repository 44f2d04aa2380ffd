"""The encoders of any open_clip model, as they are: a dual encoder without blocks to attend in."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_runtime.bundle.input_spec import TextSpec
from dgl_train.model.backbones.clip import state_at_end
from dgl_train.model.backbones.towers import merge_heads, split_heads

READ_OUTS = {"argmax": "end", "eos": "end", "first": "first", "last": "last"}
"""How open_clip calls the position that is read, and how TextSpec does."""


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
        return _first(self.text(tokens))


class TransformerText(nn.Module):
    """open_clip's own text transformer, on rows of any length up to its context.

    open_clip asks for whole rows; where no token sees what follows it, what is behind the end token
    changes nothing and need not be there.

    Args:
        text: A CLIP, or its ``text``: what holds the transformer.
        spec: Which position is read, and the end token.
    """

    def __init__(self, text: Any, spec: TextSpec) -> None:  # noqa: ANN401 - open_clip is untyped
        super().__init__()
        self.token_embedding, self.transformer = text.token_embedding, text.transformer
        self.positional_embedding, self.ln_final = text.positional_embedding, text.ln_final
        self.text_projection, self.causal = text.text_projection, text.attn_mask is not None
        self.read, self.end_id = spec.read, -1 if spec.end_id is None else spec.end_id

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] -> embeddings [B, E]."""
        # Numbers of places, not slices: a slice fixes the length in an export.
        places = torch.arange(tokens.shape[1], device=tokens.device)
        follows = places > places[:, None]
        mask = torch.zeros_like(follows, dtype=torch.float32).masked_fill(follows, -torch.inf)
        x = self.token_embedding(tokens) + self.positional_embedding[places]
        x = self.ln_final(self.transformer(x, attn_mask=mask if self.causal else None))
        return self._project(self._read(x, tokens))

    def _read(self, x: Tensor, tokens: Tensor) -> Tensor:
        if self.read == "end":
            return state_at_end(x, tokens, self.end_id)
        return x[:, 0 if self.read == "first" else -1]

    def _project(self, x: Tensor) -> Tensor:
        match self.text_projection:
            case None:
                return x
            case nn.Linear() as linear:
                return cast(Tensor, linear(x))
            case matrix:
                return cast(Tensor, x @ matrix)


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

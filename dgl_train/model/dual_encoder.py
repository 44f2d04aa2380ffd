"""What training, evaluation, export and benchmarks ask of a model, whatever its backbone.

Two kinds of model answer: a backbone with a clip as the mean of its frames, and DGL's prompts on a
backbone. What both take over from their backbone is ``OnBackbone``.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_runtime.bundle.input_spec import InputSpec
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_train.model.backbones.backbone import Backbone, BackboneSource


class DualEncoder(Protocol):
    """An nn.Module that embeds captions and clips in one space."""

    frame_wise: bool
    """Whether a clip's embedding is the mean of its frames' unit embeddings, made unit again."""

    @property
    def inputs(self) -> InputSpec:
        """How captions and clips become what is embedded."""

    @property
    def tokenizer(self) -> Tokenizer:
        """From captions to token ids."""

    @property
    def embed_dim(self) -> int:
        """E, the width of an embedding."""

    @property
    def longest_text(self) -> int:
        """Tokens of the longest text that its backbone reads; ``inputs`` may ask for fewer."""

    @property
    def source(self) -> BackboneSource:
        """Where its backbone comes from."""

    @property
    def licence(self) -> str:
        """Of its backbone's weights, in words."""

    @property
    def loss(self) -> str:
        """Name of the loss its backbone was pretrained with, one of ``LOSSES``."""

    @property
    def logit_scale(self) -> Tensor:
        """The factor on the cosine that makes logits, [] float32."""

    @property
    def logit_bias(self) -> Tensor | None:
        """What the sigmoid loss adds to logits, [] float32; None: its backbone has none."""

    def encode_captions(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] as ``tokenizer`` gives them -> unit-norm embeddings [B, E]."""

    def encode_clips(self, frames: Tensor) -> Tensor:
        """uint8 pixels, or floats already normalised, [B, F, 3, S, S] RGB -> unit-norm embeddings [B, E]."""

    def frame_weights(self, frames: Tensor) -> Tensor:
        """How much each frame of the same clips counted: [B, F], rows sum to 1."""

    def limit_temperature(self) -> None:
        """Keep a trained temperature within what its backbone was trained with."""

    def digest(self) -> str:
        """sha256 of the backbone's weights as they are now."""

    # Of nn.Module, which a protocol cannot name as its base:

    def parameters(self) -> Iterator[nn.Parameter]:
        """As in torch."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As in torch."""

    def state_dict(self) -> Mapping[str, Any]:
        """As in torch."""

    def to(self, device: torch.device) -> Self:
        """As in torch."""


class OnBackbone(nn.Module):
    """What a model takes over from its backbone.

    Args:
        backbone: The network.
        inputs: What the model wants where that is not all its backbone can read: fewer tokens, another
            number of frames.
    """

    frame_wise = False

    def __init__(self, backbone: Backbone, inputs: InputSpec | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs or backbone.facts.inputs

    @property
    def tokenizer(self) -> Tokenizer:
        """The backbone's own, which reads as many tokens as this model."""
        return self.backbone.facts.tokenizer.fed_as(self.inputs.texts)

    @property
    def embed_dim(self) -> int:
        """E, the width of an embedding."""
        return self.backbone.facts.embed_dim

    @property
    def longest_text(self) -> int:
        """Tokens of the longest text that the backbone reads."""
        return self.backbone.facts.inputs.texts.max_tokens

    @property
    def source(self) -> BackboneSource:
        """Where the backbone comes from."""
        return self.backbone.facts.source

    @property
    def licence(self) -> str:
        """Of the backbone's weights, in words."""
        return self.backbone.facts.licence

    @property
    def loss(self) -> str:
        """Name of the loss of the backbone's pretraining."""
        return self.backbone.facts.loss

    @property
    def logit_scale(self) -> Tensor:
        """The factor on the cosine that makes logits, [] float32."""
        return self.backbone.logit_scale.exp()

    @property
    def logit_bias(self) -> Tensor | None:
        """What the sigmoid loss adds to logits, [] float32, or None."""
        return self.backbone.logit_bias

    @torch.no_grad()
    def limit_temperature(self) -> None:
        """Where the temperature is trained, it stays below the backbone's limit."""
        if self.backbone.logit_scale.requires_grad:
            self.backbone.logit_scale.clamp_(max=math.log(self.backbone.facts.max_logit_scale))

    def digest(self) -> str:
        """sha256 of the backbone's weights as they are now."""
        return self.backbone.digest()


class FrameMeanModel(OnBackbone):
    """A backbone without prompts: a clip is the mean of its frames' unit embeddings (CLIP4Clip's meanP).

    Untuned it is zero-shot retrieval; the alternatives to prompts tune it.
    """

    frame_wise = True

    def encode_captions(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] -> unit-norm embeddings [B, E]."""
        return F.normalize(self.backbone.text(tokens).float(), dim=-1)

    def encode_clips(self, frames: Tensor) -> Tensor:
        """uint8 pixels [B, F, 3, S, S] -> unit-norm embeddings [B, E]."""
        pictures = self.backbone.normalize(frames).flatten(0, 1)
        by_frame = F.normalize(self.backbone.vision(pictures).float(), dim=-1)
        return F.normalize(by_frame.unflatten(0, frames.shape[:2]).mean(dim=1), dim=-1)

    def frame_weights(self, frames: Tensor) -> Tensor:
        """Every frame counts the same, [B, F]."""
        return equal_weights(frames)


def equal_weights(frames: Tensor) -> Tensor:
    """Clips [B, F, ...] -> weights [B, F] of frames that count the same."""
    ones = torch.ones_like(frames[:, :, 0, 0, 0], dtype=torch.float32)
    return ones / ones.sum(dim=1, keepdim=True)

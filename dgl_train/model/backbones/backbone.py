"""A backbone: a pretrained image encoder and text encoder with one space for both.

There are two levels of support. *Dual encoder*: any two modules that embed frames and token ids; it is
searched with untuned, tuned by what changes its weights, and exported. *Prompted*: towers whose blocks can
be attended in (see ``towers``); DGL and the adapters need them.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dgl_runtime.bundle.input_spec import InputSpec
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.errors import ConfigError
from dgl_train.model.backbones.towers import TextTower, VisionTower

DEFAULT_FRAMES = 12
"""Frames of a clip for a backbone alone."""
LOSSES = ("softmax", "sigmoid")
"""What pairs are trained with; see ``dgl_train.training.losses``."""
UNKNOWN_LICENCE = "unknown"
OWN_LOSS = "auto"
"""In a recipe: the loss of the backbone's pretraining."""


@dataclass(frozen=True)
class BackboneSource:
    """Where a backbone comes from: everything needed to load it again."""

    name: str  # a model's name, or a folder
    pretrained: str = ""  # a weight tag of open_clip or a weight file; empty for none


@dataclass(frozen=True)
class Facts:
    """What is known of a backbone beside its tensors.

    Attributes:
        source: Where it comes from.
        inputs: What it wants; ``max_tokens`` is the longest text it can read.
        tokenizer: Its own.
        embed_dim: E, the width of its embeddings.
        loss: One of ``LOSSES``, the one of its pretraining.
        max_logit_scale: Where training stops its temperature.
        licence: Of its weights, in words.
    """

    source: BackboneSource
    inputs: InputSpec
    tokenizer: Tokenizer
    embed_dim: int
    loss: str = LOSSES[0]
    max_logit_scale: float = 100.0  # of CLIP's own training
    licence: str = UNKNOWN_LICENCE


class Backbone(nn.Module):
    """Two encoders, frozen, in evaluation mode.

    Args:
        vision: Normalised pixels float32 [N, 3, S, S] -> embeddings [N, E], of any length.
        text: Token ids [B, L] -> embeddings [B, E], of any length.
        facts: What is known beside the tensors.
        logit_scale: Logarithm of the factor on the cosine.
        logit_bias: What the sigmoid loss adds to a logit; None for a backbone without.
    """

    logit_bias: nn.Parameter | None
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vision: nn.Module,
        text: nn.Module,
        facts: Facts,
        *,
        logit_scale: float = 0.0,
        logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.facts = facts
        self.vision, self.text = vision, text
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))
        bias = None if logit_bias is None else nn.Parameter(torch.tensor(logit_bias))
        self.register_parameter("logit_bias", bias)
        for name in ("mean", "std"):
            numbers = torch.tensor(getattr(facts.inputs.frames, name)).view(3, 1, 1)
            self.register_buffer(name, numbers, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def inputs_of(self, num_frames: int, max_tokens: int) -> InputSpec:
        """What a model on this backbone wants that reads so many frames and tokens."""
        both = self.facts.inputs
        return InputSpec(
            replace(both.frames, num_frames=num_frames), replace(both.texts, max_tokens=max_tokens)
        )

    def normalize(self, frames: Tensor) -> Tensor:
        """uint8 [..., 3, S, S] -> normalised float32; floats are taken as normalised already."""
        if frames.dtype != torch.uint8:
            return frames
        return (frames.float() / 255 - self.mean) / self.std

    def digest(self) -> str:
        """sha256 over every tensor's name and bytes: the identity of the weights."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return sha.hexdigest()


class Towers(NamedTuple):
    """Both encoders of a backbone of the level "prompted"."""

    vision: VisionTower
    text: TextTower


def require_towers(backbone: Backbone, what: str, instead: str = "full, bias or lora") -> Towers:
    """The towers of a backbone of the level "prompted".

    Args:
        backbone: Any.
        what: Who needs them, for the message.
        instead: What works without them.

    Raises:
        ConfigError: An encoder of this backbone is no tower.
    """
    vision, text = backbone.vision, backbone.text
    if isinstance(vision, VisionTower) and isinstance(text, TextTower):
        return Towers(vision, text)
    lacking = {"image": VisionTower, "text": TextTower}
    encoders = {"image": vision, "text": text}
    which = " and ".join(
        name for name, kind in lacking.items() if not isinstance(encoders[name], kind)
    )
    raise ConfigError(
        f"{what} needs a backbone of the level 'prompted', but {backbone.facts.source.name!r} is of the "
        f"level 'dual encoder': the blocks of its {which} encoder cannot be attended in. Take {instead}, "
        "or a backbone such as ViT-B-32-quickgelu."
    )

"""The losses by name: what a batch's captions and clips are compared by."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgl_runtime.errors import ConfigError
from dgl_train.model.backbones.backbone import OWN_LOSS
from dgl_train.model.dual_encoder import DualEncoder


@dataclass(frozen=True)
class Logits:
    """What makes logits of cosines: ``scale`` times the cosine plus ``bias``, both []."""

    scale: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, model: DualEncoder) -> "Logits":
        """A model's own."""
        return cls(model.logit_scale, model.logit_bias)

    @property
    def trained(self) -> list[Tensor]:
        """Those that training changes."""
        both = (self.scale, self.bias)
        return [one for one in both if one is not None and one.requires_grad]


def softmax_loss(
    captions: Tensor, clips: Tensor, logits: Logits, reversed_clips: Tensor | None = None
) -> Tensor:
    """Symmetric cross-entropy over a batch's similarities; the diagonal is right.

    Args:
        captions: Unit-norm embeddings [B, E].
        clips: Unit-norm embeddings [B, E].
        logits: Its scale is read; a bias would change nothing.
        reversed_clips: One more wrong answer for each caption, [B, E]; a row of zeros is none.

    Returns:
        Mean of the losses over rows and over columns, [].
    """
    similarity = logits.scale * captions @ clips.T
    target = torch.arange(len(similarity), device=similarity.device)
    by_clip = F.cross_entropy(similarity.T, target)
    if reversed_clips is not None:
        own = logits.scale * (captions * reversed_clips).sum(dim=1, keepdim=True)
        similarity = torch.cat([similarity, own.masked_fill(_none(reversed_clips), -torch.inf)], 1)
    return (F.cross_entropy(similarity, target) + by_clip) / 2


def sigmoid_loss(
    captions: Tensor, clips: Tensor, logits: Logits, reversed_clips: Tensor | None = None
) -> Tensor:
    """Every pair by itself is right or wrong (SigLIP, Zhai et al. 2023).

    Args:
        captions: Unit-norm embeddings [B, E].
        clips: Unit-norm embeddings [B, E].
        logits: Scale and bias.
        reversed_clips: One more wrong pair for each caption, [B, E]; a row of zeros is none.

    Returns:
        The sum of all pairs' losses, for each caption, [].
    """
    if logits.bias is None:
        raise ValueError("the sigmoid loss needs a bias, and these logits have none")
    similarity = logits.scale * captions @ clips.T + logits.bias
    signs = 2 * torch.eye(len(similarity), device=similarity.device) - 1
    loss = -F.logsigmoid(signs * similarity).sum()
    if reversed_clips is not None:
        own = logits.scale * (captions * reversed_clips).sum(dim=1, keepdim=True) + logits.bias
        loss = loss - F.logsigmoid(-own).masked_fill(_none(reversed_clips), 0).sum()
    return loss / len(similarity)


def _none(reversed_clips: Tensor) -> Tensor:
    """Which rows [B, 1] hold no clip."""
    return (reversed_clips == 0).all(dim=1, keepdim=True)


Loss = Callable[[Tensor, Tensor, Logits, Tensor | None], Tensor]
_FUNCTIONS: dict[str, Loss] = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


def choose_loss(name: str, model: DualEncoder) -> Loss:
    """The loss that a recipe names for a model; ``OWN_LOSS`` is that of its backbone's pretraining.

    Raises:
        ConfigError: It needs what the backbone lacks.
    """
    name = model.loss if name == OWN_LOSS else name
    if name == "sigmoid" and model.logit_bias is None:
        raise ConfigError(
            f"loss is 'sigmoid', which needs a backbone with a bias of its logits; {model.source.name!r} "
            "was trained without one. Set loss=softmax."
        )
    return _FUNCTIONS[name]

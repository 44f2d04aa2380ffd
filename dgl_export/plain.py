"""Export without folding, for encoders of any architecture; a clip is the mean of its frames."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_export.folded_ends import Pixels


class PlainTextEncoder(nn.Module):
    """Any text encoder: tokens int32 [B, L] -> unit-norm embeddings float32 [B, E]."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed captions."""
        return F.normalize(self.text(tokens.long()), dim=-1)


class PlainClipEncoder(nn.Module):
    """Any image encoder, frame by frame: [B, F, 3, S, S] -> embeddings [B, E], frame weights [B, F].

    Args:
        vision: The encoder; it is not changed.
        pixels: What the graph is given.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, vision: nn.Module, pixels: Pixels) -> None:
        super().__init__()
        self.vision = merged(vision)
        ones, zeros = torch.ones_like(pixels.std), torch.zeros_like(pixels.std)
        self.register_buffer("factor", 1 / (255 * pixels.std) if pixels.uint8 else ones)
        self.register_buffer("shift", -pixels.mean / pixels.std if pixels.uint8 else zeros)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips; every frame counts the same."""
        pictures = frames.float().flatten(0, 1) * self.factor + self.shift
        by_frame = F.normalize(self.vision(pictures), dim=-1).unflatten(0, frames.shape[:2])
        weights = torch.ones_like(by_frame[..., 0])
        embedding = F.normalize(by_frame.mean(dim=1), dim=-1)
        return embedding, weights / weights.sum(dim=-1, keepdim=True)


def merged(vision: nn.Module) -> nn.Module:
    """One convolution in place of those that stand side by side for the sake of training (FastViT's).

    timm calls that ``reparameterize``; the sum of linear maps is one, so the numbers stay as they are.
    """
    if not any(hasattr(module, "reparameterize") for module in vision.modules()):
        return vision
    vision = deepcopy(vision)
    _merge(vision)
    return vision


def _merge(module: nn.Module) -> None:
    if (merge := getattr(module, "reparameterize", None)) is not None:
        merge()
    else:
        for child in module.children():
            _merge(child)
